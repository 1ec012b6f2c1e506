"""Clients' own shared memory, as Triton's clients register it: only when asked for, only on loopback.

Owns the names. Regions are read and written through their descriptor and never mapped: a client that
shrinks its region would kill whoever has it mapped (SIGBUS), and gets a short read here. No resource
tracker of Python's ever hears of them, so none unlinks them.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .errors import Refusal, invalid

FOLDER = Path("/dev/shm")  # where Linux has what shm_open makes
REGIONS_MAX = 1024
NAME_CHARS_MAX = 128
KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9_.\-]{0,200})")
OURS = ("batchyard-", "sem.")  # a yard's own segments, and the system's semaphores
SHARED_MEMORY_OFF = "clients' shared memory is off; the gateway must be started with --shared-memory"
NO_CUDA = (
    "CUDA shared memory is not taken: the gateway uses no GPU. Send tensors as bytes, or use system shared "
    "memory (--shared-memory)"
)
THREAD_BYTES = 1 << 20  # a longer copy is made on a thread: the loop has others to serve


class Place(NamedTuple):
    """A range of a region, checked."""

    region: str
    offset: int
    nbytes: int


@dataclass(slots=True)
class _Region:
    key: str
    offset: int
    nbytes: int
    fd: int


class Regions:
    """What is registered. `owner`: the only user whose regions are taken."""

    def __init__(self, folder: Path = FOLDER, owner: int | None = None) -> None:
        self._folder = folder
        self._owner = os.geteuid() if owner is None else owner
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, nbytes: int) -> None:
        """Open a region. Raises Refusal for a name that is taken, and for a key that names no shared
        memory of this user that has `nbytes` at `offset`."""
        if not 0 < len(name) <= NAME_CHARS_MAX:
            raise invalid(f"a region's name has 1 to {NAME_CHARS_MAX} characters")
        if name in self._regions:
            raise Refusal(409, "REGION_EXISTS", f"there is a region {name!r} already; unregister it first")
        if len(self._regions) >= REGIONS_MAX:
            raise Refusal(429, "TOO_MANY_REGIONS", f"{REGIONS_MAX} regions are registered; unregister some")
        found = KEY.fullmatch(key)
        if found is None or found[1].startswith(OURS):
            raise invalid("a region's key names shared memory: '/' and letters, digits, '_', '.', '-'")
        try:
            fd = os.open(self._folder / found[1], os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise invalid(f"there is no shared memory {key!r} to open: {error.strerror}") from None
        try:
            self._check(os.fstat(fd), key, offset, nbytes)
        except BaseException:
            os.close(fd)
            raise
        self._regions[name] = _Region(key, offset, nbytes, fd)

    def _check(self, status: os.stat_result, key: str, offset: int, nbytes: int) -> None:
        if not stat.S_ISREG(status.st_mode) or status.st_uid != self._owner:
            raise invalid(f"{key!r} is not shared memory of the gateway's user")
        if offset < 0 or nbytes < 1 or offset > status.st_size or nbytes > status.st_size - offset:
            raise invalid(f"{key!r} has {status.st_size} bytes, not {nbytes} at offset {offset}")

    def unregister(self, name: str | None = None) -> None:
        """Forget a region, or all of them. One that is not there is forgotten already."""
        for one in list(self._regions) if name is None else [name]:
            region = self._regions.pop(one, None)
            if region is not None:
                os.close(region.fd)

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """What is registered. Raises Refusal for a name that is not."""
        if name is not None and name not in self._regions:
            raise Refusal(404, "UNKNOWN_REGION", f"there is no region {name[:80]!r}")
        return [
            {"name": one, "key": region.key, "offset": region.offset, "byte_size": region.nbytes}
            for one, region in self._regions.items()
            if name is None or one == name
        ]

    def place(self, name: str, offset: int, nbytes: int) -> Place:
        """A range of a region, by the request's own numbers. Raises Refusal."""
        region = self._regions.get(name)
        if region is None:
            raise invalid(f"there is no region {name[:80]!r}; register it first")
        if offset < 0 or nbytes < 0 or offset > region.nbytes or nbytes > region.nbytes - offset:
            raise invalid(f"region {name!r} has {region.nbytes} bytes, not {nbytes} at offset {offset}")
        return Place(name, offset, nbytes)

    async def read(self, place: Place, view: memoryview) -> None:
        """Copy a place's bytes into `view`. Raises Refusal when they are not there any more."""
        await self._move(place, view, os.preadv)

    async def write(self, place: Place, view: memoryview) -> None:
        """Copy a tensor's bytes into a place. Raises Refusal when it is too small."""
        if len(view) > place.nbytes:
            raise invalid(
                f"region {place.region!r}: the output has {len(view)} bytes, and its place {place.nbytes}"
            )
        await self._move(place, view, os.pwritev)

    async def _move(self, place: Place, view: memoryview, how: Any) -> None:
        region = self._regions.get(place.region)
        if region is None:
            raise invalid(f"region {place.region!r} was unregistered meanwhile")
        at = region.offset + place.offset
        if os.fstat(region.fd).st_size < at + len(view):
            raise invalid(f"region {place.region!r} was made smaller meanwhile")
        if len(view) < THREAD_BYTES:
            _all(how, region.fd, view, at)
            return
        # A descriptor of its own, which the thread closes: whoever gives up, and however often, and when
        # the region is unregistered meanwhile, it must not be another file's before the copy has ended.
        fd = os.dup(region.fd)
        try:
            copy = asyncio.get_running_loop().run_in_executor(None, _all_and_close, how, fd, view, at)
        except BaseException:
            os.close(fd)
            raise
        await asyncio.shield(copy)

    def close(self) -> None:
        self.unregister()


def _all_and_close(how: Any, fd: int, view: memoryview, at: int) -> None:
    try:
        _all(how, fd, view, at)
    finally:
        os.close(fd)


def _all(how: Any, fd: int, view: memoryview, at: int) -> None:
    while view:
        try:
            moved = how(fd, [view], at)
        except OSError as error:
            raise invalid(f"a region cannot be used: {error.strerror}") from None
        if not moved:
            raise invalid("a region was made smaller meanwhile")
        view, at = view[moved:], at + moved
