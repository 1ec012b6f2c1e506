"""`batchyard keys create FOLDER`: the keys of a yard that other machines may use."""

from __future__ import annotations

from pathlib import Path

from ..transport.errors import Unauthorized
from ..transport.keys import KeyFolder
from .arguments import order, parser

EXAMPLES = """example:
  batchyard keys create keys
  batchyard up --url tcp://0.0.0.0:7070 --keys keys"""


def main(argv: list[str]) -> int:
    """0 when the folder has been made; raises Unauthorized where keys lie already."""
    purpose = "Make keys: a yard beyond this machine is encrypted, and closed to strangers."
    arguments = parser("keys", purpose, EXAMPLES)
    verbs = arguments.add_subparsers(dest="verb", required=True, metavar="create")
    what = "make a folder with a yard's and a client's pair of keys"
    create = order(verbs, "create", what, EXAMPLES)
    create.add_argument("folder", type=Path, help="made if it isn't there; keys in it are never replaced")
    folder: Path = arguments.parse_args(argv).folder
    try:
        keys = KeyFolder.create(folder)
    except OSError as error:
        if isinstance(error, Unauthorized):
            raise
        raise Unauthorized(f"{folder} cannot hold the keys: {error.strerror or error}") from None
    print(said(keys.path))
    return 0


def said(folder: Path) -> str:
    """What lies in the folder now, and what goes where."""
    return f"""made {folder} (mode 0700):
  server.key, server.key_secret   the yard's pair: the secret never leaves this machine
  client.key, client.key_secret   a client's pair
  authorized/                     the public keys that the yard lets in; client.key is there already

On this machine:
  batchyard up --url tcp://0.0.0.0:7070 --keys {folder}

For a program on another machine, copy server.key, client.key and client.key_secret into a folder
there (mode 0700), and then:
  batchyard.Client("tcp://this-machine:7070", keys="that-folder")

For one more client, make a pair on its machine (`batchyard keys create` there), replace its
server.key by this one, and copy its client.key into {folder / "authorized"} under a name of its own.
The yard reads that folder when it starts."""
