"""A yard's secret: it tells the yard's own workers and operators from others who can merely connect.

Owns how it is made, where it lies, and how it is found again. A broker without CURVE keys asks every worker
for it and, over tcp, every operator. It is 256 random bits, in hexadecimal digits:

    $BATCHYARD_SECRET     handed to a yard's processes by their starter
    the yard's folder     in a file (0600), for workers that its user starts by hand
    a folder of the user  the same for tcp: batchyard-secrets (0700), a file per address

A process of the same user can read it: it could read the yard's memory as well.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from .endpoints import Endpoint, check_private
from .errors import Unauthorized

VARIABLE = "BATCHYARD_SECRET"
FILE = "secret"
BYTES = 32
CHARACTERS_MAX = 256  # of a file that is read, and of what is sent


def make() -> str:
    """A new one."""
    return secrets.token_hex(BYTES)


def take(environ: MutableMapping[str, str] = os.environ) -> str:
    """The one that this process was handed, or "". Taken out, so that no process it starts inherits it."""
    return environ.pop(VARIABLE, "")


def find(endpoint: Endpoint) -> str:
    """The secret of the yard at `endpoint`, as far as this process may know it, or ""."""
    return os.environ.get(VARIABLE) or read(endpoint)


def read(endpoint: Endpoint) -> str:
    """The one that its broker has written down; "" where there is none that this user can read."""
    try:
        with path(endpoint).open(encoding="ascii") as file:
            return file.read(CHARACTERS_MAX).strip()
    except (OSError, ValueError):
        return ""


def write(endpoint: Endpoint, secret: str) -> None:
    """Write it down for this user alone, in the place of an earlier broker's. The endpoint is claimed.
    Raises Unauthorized when others can write there, OSError."""
    file = path(endpoint)
    if endpoint.folder is None:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        if os.name == "posix":
            check_private(file.parent)
    # Then a rename: a reader never finds half of it, and a link of that name is not followed.
    fd, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)  # 0600
    try:
        with os.fdopen(fd, "w", encoding="ascii") as new:
            new.write(f"{secret}\n")
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove(endpoint: Endpoint, secret: str) -> None:
    """Remove what `write` wrote, unless another broker has written since."""
    if read(endpoint) == secret:
        path(endpoint).unlink(missing_ok=True)


def path(endpoint: Endpoint) -> Path:
    """Where a yard's secret lies."""
    if endpoint.folder is not None:
        return endpoint.folder / FILE
    name = "".join(char if char.isalnum() or char in ".-" else "_" for char in endpoint.clients[6:])
    runtime_folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime_folder and os.path.isdir(runtime_folder) and os.access(runtime_folder, os.W_OK | os.X_OK):
        return Path(runtime_folder) / "batchyard-secrets" / name
    user = f"-{os.getuid()}" if os.name == "posix" else ""
    return Path(tempfile.gettempdir()) / f"batchyard-secrets{user}" / name


def required(what: str) -> Unauthorized:
    """What a peer without it is told."""
    return Unauthorized(
        f"this yard admits no {what} without its secret: run it as the yard's user on the yard's machine, or "
        f"set {VARIABLE}"
    )
