"""Files from elsewhere: fetched in pieces that survive a broken line, and believed only by their sha256.

Owns `FILE.part` beside the file that is wanted: what has come so far. The file itself appears whole and
checked, or not at all. Standard library only.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...transport.errors import BatchyardError

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 20.0  # without a byte
ATTEMPTS = 4  # in a row that bring nothing new
PROGRESS_S = 1.0
MEMBERS_MAX = 64  # of an archive; CIFAR's have 9 at most
SMALL_BYTES_MAX = 1 << 16

Say = Callable[[str], None]


class Unavailable(BatchyardError):
    """The file could not be fetched: no network, or a server that ends early. Try again, or do without."""


class Damaged(BatchyardError):
    """A file isn't what it should be. It was not used; fetch it again."""


@dataclass(frozen=True)
class Remote:
    """A file of exactly `nbytes` bytes with this sha256 (hexadecimal)."""

    url: str
    nbytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def fetch(remote: Remote, path: Path, say: Say = lambda line: None) -> Path:
    """`path`, holding `remote` whole and checked; what an earlier call left in `path.part` is gone on with.

    say: is told how far it is, about once a second. Raises Unavailable (what has come is kept), Damaged
    (the parts are thrown away), OSError where the disk refuses.
    """
    if path.is_file():
        check(path, remote)
        return path
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    reason, fruitless, most = "", 0, _length(part)
    while (have := _length(part)) < remote.nbytes:
        if fruitless == ATTEMPTS:
            kept = f"; {have:,} bytes are kept, the next try goes on with them" if have else ""
            raise Unavailable(f"{remote.url} cannot be fetched: {reason}{kept}")
        reason = _append(remote, part, say)
        fruitless = 0 if _length(part) > most else fruitless + 1
        most = max(most, _length(part))
    try:
        check(part, remote)
    except Damaged:
        part.unlink()
        raise
    os.replace(part, path)
    return path


def check(path: Path, remote: Remote) -> None:
    """Raises Damaged unless the file at `path` is `remote`, by length and sha256."""
    length = _length(path)
    if length != remote.nbytes:
        raise Damaged(f"{path} has {length:,} bytes, and should have {remote.nbytes:,}: remove it")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != remote.sha256:
        raise Damaged(f"{path} has sha256 {found}, and should have {remote.sha256}: it was not used")


def _append(remote: Remote, part: Path, say: Say) -> str:
    """One connection's worth of bytes behind those that `part` has; why it ended."""
    have = _length(part)
    request = urllib.request.Request(remote.url, headers={"User-Agent": "batchyard"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            resumed = answer.status == 206 and _starts_at(answer, have)
            with part.open("ab" if resumed else "wb") as file:
                _copy(answer, file, remote, say)
    except urllib.error.HTTPError as error:
        return f"the server says {error.code} {error.reason}"
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        return str(getattr(error, "reason", "") or error or type(error).__name__)
    return "the line broke"


def _starts_at(answer: Any, offset: int) -> bool:
    """Whether a 206 begins where it was asked to (RFC 9110, section 14.4)."""
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {offset}-")


def _copy(answer: Any, file: Any, remote: Remote, say: Say) -> None:
    """At most what is missing, so that no server can fill the disk."""
    first = have = file.tell()
    began_s = told_s = time.monotonic()
    while have < remote.nbytes and (chunk := answer.read(min(CHUNK_BYTES, remote.nbytes - have))):
        file.write(chunk)
        have += len(chunk)
        now_s = time.monotonic()
        if now_s - told_s >= PROGRESS_S or have == remote.nbytes:
            told_s = now_s
            say(progress(remote, have, (have - first) / max(now_s - began_s, 1e-9)))


def progress(remote: Remote, have: int, bytes_per_s: float) -> str:
    """`cifar-10-binary.tar.gz  34 %  58 of 170 MB  12.1 MB/s, 9 s left`."""
    left_s = (remote.nbytes - have) / max(bytes_per_s, 1.0)
    return (
        f"{remote.name} {have / remote.nbytes:>5.0%}  {have / 1e6:,.0f} of {remote.nbytes / 1e6:,.0f} MB  "
        f"{bytes_per_s / 1e6:.1f} MB/s, {left_s:.0f} s left"
    )


def unpack(archive: Path, folder: Path, wanted: Mapping[str, int | None]) -> None:
    """Put the members `folder.name/NAME` of a .tar.gz into `folder`, which appears complete or not at all.

    wanted: the members' names with their exact lengths in bytes, or None for a text of SMALL_BYTES_MAX at
    most; all others are left in the archive. Raises Damaged where one is missing or is something else,
    Unavailable where this Python is too old.
    """
    if not hasattr(tarfile, "data_filter"):
        raise Unavailable(f"Python 3.11.4 or later is needed to unpack {archive} safely; or do it yourself")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        files = Path(work, "files")
        files.mkdir()
        try:
            with tarfile.open(archive, "r:gz") as tar:
                missing = set(wanted) - _extract(tar, folder.name, files, wanted)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(f"{archive} cannot be unpacked: {error}") from None
        if missing:
            raise Damaged(f"{archive} lacks {', '.join(sorted(missing))}")
        if folder.exists():  # it was not complete, or nobody would have come here
            shutil.rmtree(folder)
        os.replace(files, folder)


def _extract(tar: tarfile.TarFile, top: str, into: Path, wanted: Mapping[str, int | None]) -> set[str]:
    """The names that were found and now lie in `into`."""
    found: set[str] = set()
    for count, member in enumerate(tar, 1):
        if count > MEMBERS_MAX:
            raise tarfile.TarError(f"more than {MEMBERS_MAX} members")
        name = member.name.removeprefix(f"{top}/")
        if name not in wanted or name in found:
            continue
        length = wanted[name]
        fits = member.size <= SMALL_BYTES_MAX if length is None else member.size == length
        if not member.isreg() or not fits:
            what = f"{member.size:,} bytes" if member.isreg() else "no plain file"
            raise tarfile.TarError(f"{member.name} is {what}")
        member.name = name  # a name from our own list: the archive chooses no path
        tar.extract(member, into, filter="data")  # nor rights, owners or devices
        found.add(name)
    return found


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
