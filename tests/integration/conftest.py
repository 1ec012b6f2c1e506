"""Real processes: what the tests share, and the proof that each leaves nothing behind.

Everything that a test starts inherits a mark in its environment, so that even an orphan of an orphan
is found. Temporary folders lie in one of this run's own, so that another run beside it is no leak.
"""

from __future__ import annotations

import fcntl
import gc
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..certificates import certificate
from ..ports import free_port
from .gateways import Gateway, gateway

if sys.platform != "linux":
    pytest.skip("what is left behind is read from /proc", allow_module_level=True)

MARK = "BATCHYARD_TEST_RUN"
GONE_WITHIN_S = 5.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session", autouse=True)
def run_folder() -> Iterator[Path]:
    """This run's own temporary folder, with a short name: a socket's path has 107 bytes."""
    folder = tempfile.mkdtemp(prefix="yt-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv(MARK, secrets.token_hex(8))
        patch.delenv("BATCHYARD_URL", raising=False)
        yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


# ---- what is left behind ------------------------------------------------------------------------


def marked_processes() -> dict[int, str]:
    """Living processes that this run has started, directly or not: pid -> command line."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if mark not in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                continue
            command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended, or is another user's
        if command and "resource_tracker" not in command:  # Python's own; it lives as long as we do
            found[int(name)] = command
    return found


def orphaned_segments() -> set[str]:
    """Shared memory of the named kind whose creator is dead, or which we still map ourselves."""
    ours = Path("/proc/self/maps").read_text()
    found = set()
    for path in Path("/dev/shm").glob("batchyard-*"):
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.add(path.name)
        except BlockingIOError:
            if path.name in ours:
                found.add(path.name)
        finally:
            os.close(fd)
    return found


def yard_folders() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("y*-*")}


def own_mappings() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:batchyard")


def left_behind(before: tuple[dict[int, str], set[str], set[str]]) -> str:
    """What there is now and was not before; a yard that was there may have new processes."""
    urls = {text.partition("--url ")[2].partition(" ")[0] for text in before[0].values()} - {""}
    processes = {
        pid: text
        for pid, text in marked_processes().items()
        if pid not in before[0] and not any(url in text for url in urls)
    }
    return "; ".join(
        f"{what}: {found}"
        for what, found in (
            ("processes", processes),
            ("segments", orphaned_segments() - before[1]),
            ("folders", yard_folders() - before[2]),
        )
        if found
    )


def check_nothing_is_left(before: tuple[dict[int, str], set[str], set[str]]) -> None:
    give_up_s = time.monotonic() + GONE_WITHIN_S
    while (left := left_behind(before)) and time.monotonic() < give_up_s:
        time.sleep(0.02)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing_behind(run_folder: Path) -> Iterator[None]:
    before = (marked_processes(), orphaned_segments(), yard_folders())
    mappings = own_mappings()
    yield
    check_nothing_is_left(before)
    assert own_mappings() <= mappings, "shared memory is still mapped in this process"


@pytest.fixture(autouse=True)
def test_leaves_nothing_behind(module_leaves_nothing_behind: None) -> Iterator[None]:
    before = (marked_processes(), orphaned_segments(), yard_folders())
    yield
    check_nothing_is_left(before)


# ---- what the tests share -----------------------------------------------------------------------


class Tools:
    """Small things that several files need."""

    @staticmethod
    def until(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
        """The condition's first true value; a failure when there is none in time."""
        give_up_s = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > give_up_s:
                raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
            time.sleep(0.005)
        return value

    @staticmethod
    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    @staticmethod
    def mappings(pid: int) -> int:
        """Arenas that a process has mapped."""
        return Path(f"/proc/{pid}/maps").read_text().count("memfd:batchyard")

    @staticmethod
    def worker_pids(client: Any, model: str) -> list[int]:
        """The session children that serve a model."""
        (info,) = [info for info in client.models() if info.name == model]
        return [worker.pid for worker in info.workers]

    @staticmethod
    def free_port() -> int:
        """The first of three ports in a row on 127.0.0.1: of HTTP, of gRPC, and of an Envoy's own page."""
        return free_port(3)

    @staticmethod
    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tools: Tools) -> Iterator[Gateway]:
    """A gateway of this module's yard; started for the first test that asks by its address."""
    with gateway(request.getfixturevalue("yard").url, tools.free_port()) as started:
        yield started


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> str:
    """Where this module's yard is asked: `everywhere` and `behind_a_gateway` in gateways.py say how."""
    way = getattr(request, "param", "ipc")
    if way == "ipc":
        return str(request.getfixturevalue("yard").url)
    pytest.importorskip("httpx" if way == "http" else "grpc", reason="pip install 'batchyard[fleet]'")
    return f"{way}://{getattr(request.getfixturevalue('served'), way)}"


@pytest.fixture(scope="session")
def pair(run_folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key. One for all tests: grpc reads its roots once in a process."""
    return certificate(run_folder)


@pytest.fixture(scope="session")
def slow_model(onnx_models: Any) -> Path:
    """`y = x` of float32[n, 512], by a detour of some 30 ms that no optimizer can take out."""
    depth = 1000
    nodes = [
        ("MatMul", [f"h{i}" if i else "x", "w"], [f"h{i + 1}" if i < depth - 1 else "y"], {})
        for i in range(depth)
    ]
    path: Path = onnx_models.save(
        "slow", nodes, [("x", 1, ["n", 512])], [("y", 1, ["n", 512])], {"w": np.eye(512, dtype=np.float32)}
    )
    return path


@pytest.fixture(scope="session")
def neg_model(onnx_models: Any) -> Path:
    """`y = -x` of float32[n, 4]."""
    path: Path = onnx_models.unary("neg", "Neg", ["n", 4])
    return path
