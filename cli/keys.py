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
    """Return 0 once the folder is created; raises Unauthorized if it already has keys."""
    purpose = "Create keys. A yard that other machines can reach is encrypted and admits known keys only."
    arguments = parser("keys", purpose, EXAMPLES)
    verbs = arguments.add_subparsers(dest="verb", required=True, metavar="create")
    what = "create a folder with key pairs for a yard and a client"
    create = order(verbs, "create", what, EXAMPLES)
    create.add_argument("folder", type=Path, help="created if missing; existing keys are never replaced")
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
    """The folder's contents, and where each file belongs."""
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
