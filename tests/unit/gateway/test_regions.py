"""Regions of clients: names, owners, bounds, and a client that shrinks its own. A folder stands for /dev/shm."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from batchyard.client.remote.calls import bytes_of
from batchyard.gateway import regions as module
from batchyard.gateway.errors import Refusal
from batchyard.gateway.regions import Regions


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    (tmp_path / "mine").write_bytes(bytes(range(64)))
    return tmp_path


def test_what_is_written_to_a_region_is_read_from_it(shm: Path) -> None:
    regions = Regions(shm)
    regions.register("r", "/mine", 16, 32)

    async def run() -> bytes:
        await regions.write(regions.place("r", 8, 8), bytes_of(np.arange(4, dtype="<u2")))
        view = bytearray(16)
        await regions.read(regions.place("r", 4, 16), memoryview(view))
        return bytes(view)

    assert asyncio.run(run()) == bytes([20, 21, 22, 23, 0, 0, 1, 0, 2, 0, 3, 0, 32, 33, 34, 35])
    regions.close()
    assert regions.status() == []


def test_long_copies_are_the_same(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THREAD_BYTES", 1)
    test_what_is_written_to_a_region_is_read_from_it(shm)


@pytest.mark.parametrize(
    "key",
    ["", "/", "..", "/..", "/a/b", "/../mine", "mine/../mine", "batchyard-1", "/sem.x", "/mi ne", "/x" * 300],
)
def test_a_key_that_is_no_plain_name_is_refused(shm: Path, key: str) -> None:
    with pytest.raises(Refusal):
        Regions(shm).register("r", key, 0, 1)


def test_links_folders_and_what_is_not_there_are_refused(shm: Path) -> None:
    (shm / "link").symlink_to(shm / "mine")
    (shm / "folder").mkdir()
    os.mkfifo(shm / "pipe")
    for key in ("link", "folder", "nothing", "pipe"):
        with pytest.raises(Refusal):
            Regions(shm).register("r", key, 0, 1)


def test_another_users_memory_is_refused(shm: Path) -> None:
    with pytest.raises(Refusal, match="gateway's user"):
        Regions(shm, owner=os.geteuid() + 1).register("r", "mine", 0, 1)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 65), (64, 1), (65, 1), (0, 0), (1 << 63, 1), (-1, 1)])
def test_a_region_lies_within_its_memory(shm: Path, offset: int, nbytes: int) -> None:
    with pytest.raises(Refusal, match="64 bytes"):
        Regions(shm).register("r", "mine", offset, nbytes)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 33), (33, 0), (32, 1), (-1, 1), (0, -1), (1 << 64, 1)])
def test_a_place_lies_within_its_region(shm: Path, offset: int, nbytes: int) -> None:
    regions = Regions(shm)
    regions.register("r", "mine", 16, 32)
    with pytest.raises(Refusal, match="32 bytes"):
        regions.place("r", offset, nbytes)
    regions.close()


def test_a_region_that_shrinks_costs_its_own_request_alone(shm: Path) -> None:
    regions = Regions(shm)
    regions.register("r", "mine", 0, 64)
    place = regions.place("r", 0, 64)
    os.truncate(shm / "mine", 10)
    for how in (regions.read(place, memoryview(bytearray(64))), regions.write(place, memoryview(bytearray(64)))):
        with pytest.raises(Refusal, match="smaller"):
            asyncio.run(how)
    assert (shm / "mine").stat().st_size == 10
    regions.close()


def test_names_are_taken_once_and_counted(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REGIONS_MAX", 1)
    regions = Regions(shm)
    regions.register("r", "mine", 0, 1)
    for name, status in (("r", 409), ("s", 429), ("", 400)):
        with pytest.raises(Refusal) as caught:
            regions.register(name, "mine", 0, 1)
        assert caught.value.status == status
    regions.unregister("r")
    regions.unregister("r")
    with pytest.raises(Refusal, match="no region"):
        regions.place("r", 0, 1)


def test_a_refused_region_leaves_no_descriptor(shm: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(10):
        with pytest.raises(Refusal):
            Regions(shm).register("r", "mine", 0, 1000)
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_a_copy_keeps_its_descriptor_when_its_request_is_cancelled_twice(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its number is another file's by then, and the copy goes on there."""
    monkeypatch.setattr(module, "THREAD_BYTES", 1)
    regions = Regions(shm)
    regions.register("r", "/mine", 0, 64)
    given, go_on = threading.Event(), threading.Event()
    found: list[int] = []
    preadv = os.preadv

    def slow_preadv(fd: int, buffers: list[memoryview], at: int) -> int:
        given.set()
        go_on.wait(10)
        found.append(os.fstat(fd).st_ino)
        return preadv(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", slow_preadv)

    async def run() -> None:
        copy = asyncio.ensure_future(regions.read(regions.place("r", 0, 64), memoryview(bytearray(64))))
        await asyncio.to_thread(given.wait, 10)
        for _ in range(2):
            copy.cancel()
            await asyncio.wait({copy}, timeout=0)
        regions.unregister()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await copy
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(run())
    assert found == [(shm / "mine").stat().st_ino]
