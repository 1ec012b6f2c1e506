"""Models that Frigate sends along: taken only when the operator has named their digest.

Owns a folder of `NAME` files. A name becomes a file only as it is: letters, digits, '.', '_' and '-'.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from ...transport.errors import InvalidRequest

UPLOAD_BYTES_MAX = 1 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Uploads:
    """`digests`: the SHA-256 of every file that may be taken, in hex. Raises InvalidRequest for one that is
    no digest."""

    def __init__(self, folder: Path, digests: Collection[str]) -> None:
        wrong = [text for text in digests if not _DIGEST.fullmatch(text.lower())]
        if wrong:
            raise InvalidRequest(f"{wrong[0][:80]!r} is no SHA-256: 64 hexadecimal digits, from `sha256sum`")
        self._folder = folder
        self._digests = frozenset(text.lower() for text in digests)

    def path(self, name: str) -> Path:
        """Where the file of that name lies or would lie. Raises InvalidRequest for a name that is none."""
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name[:80]!r} can't be a file's name: letters, digits, '.', '_', and '-'")
        return self._folder / name

    def holds(self, name: str) -> bool:
        """Whether an accepted file of that name lies here."""
        try:
            path = self.path(name)
            return bool(self._digests) and path.is_file() and _digest(path.read_bytes()) in self._digests
        except (InvalidRequest, OSError):
            return False

    def save(self, name: str, content: memoryview) -> Path:
        """Keep a file that the operator has accepted. Raises InvalidRequest for any other, OSError."""
        path = self.path(name)
        digest = _digest(content)
        if digest not in self._digests:
            raise InvalidRequest(f"this model is not accepted; to accept it: --accept {digest}")
        self._folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
