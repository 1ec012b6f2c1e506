"""Reads facts about this machine for `batchyard doctor`, without judging them.

Changes nothing: a segment is made and closed again, and an endpoint's lock is shared for a moment.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import numpy as np

from ...client import Client, ModelInfo
from ...client.operator import Operator
from ...transport import endpoints, machine, segments
from ...transport.endpoints import Endpoint
from ...transport.errors import BatchyardError, DeadlineExceeded
from .checks import WHEELS, YardFacts

SEGMENT_BYTES = 1 << 20
ANSWER_TIMEOUT_S = 1.0
CGROUP = Path("/sys/fs/cgroup")


def wheels() -> dict[str, str]:
    """Versions of the wheels that own the name onnxruntime, those that we don't know included."""
    found = {}
    for name in dict.fromkeys((*WHEELS, *sorted(packages_distributions().get("onnxruntime", ())))):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def providers() -> tuple[list[str], list[str], str]:
    """(onnxruntime's providers, those that we can use, why it cannot be imported)."""
    from ...gpuworker import providers as ours

    try:
        import onnxruntime

        return onnxruntime.get_available_providers(), ours.available(), ""
    except Exception as error:  # two wheels over each other break it in any way they like
        return [], [], f"{type(error).__name__}: {error}"


def segment(backend: str) -> str:
    """Make, fill, attach, and compare a small segment; why that failed, or nothing."""
    pattern = np.arange(SEGMENT_BYTES // 8, dtype=np.int64)
    try:
        with segments.create(SEGMENT_BYTES, backend) as made:
            made.commit(0, SEGMENT_BYTES)
            np.frombuffer(made.buffer, np.int64, pattern.size)[:] = pattern
            with segments.attach(made.handle, os.getpid()) as seen:
                same = np.array_equal(np.frombuffer(seen.buffer, np.int64, pattern.size), pattern)
        return "" if same else "a second mapping shows other bytes"
    except (BatchyardError, OSError) as error:
        return str(error)


def shm_bytes() -> tuple[int | None, int]:
    """(size, free) of /dev/shm; (None, 0) where there is none."""
    if not os.path.isdir("/dev/shm"):
        return None, 0
    found = os.statvfs("/dev/shm")
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def memory_bytes() -> tuple[int | None, int | None]:
    """(available on the machine, the container's limit), None where nothing tells."""
    available = None
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    return available, machine.container_bytes()


def cores_allowed() -> float:
    """Cores that this process may use: by its affinity and by its container's quota."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        allowed = min(allowed, int(quota) / int(period))
    return allowed


def socket_path_bytes(endpoint: Endpoint) -> int | None:
    """Of the endpoint's longest socket path; None for tcp."""
    if endpoint.folder is None:
        return None
    return max(len(os.fsencode(endpoint.folder / name)) for name in endpoints.SOCKETS)


def yard(endpoint: Endpoint, keys: Path | None) -> YardFacts:
    """The process that holds an endpoint, and the report of a yard there."""
    if endpoint.folder is not None and endpoint.folder.exists():
        try:
            endpoints.check_private(endpoint.folder)
        except BatchyardError as error:
            return YardFacts(error=str(error))
    holder = endpoints.holder(endpoint)
    if holder is None and (endpoint.is_ipc or not _listens(endpoint)):
        return YardFacts()
    holder = holder or 0
    try:
        counters = Operator(endpoint.url, keys).snapshot(ANSWER_TIMEOUT_S)
        models = _models(endpoint, keys)
    except DeadlineExceeded:
        return YardFacts(holder)
    except BatchyardError as error:
        return YardFacts(holder, silence=str(error))
    return YardFacts(holder, answers=True, models=tuple(models), workers=counters["workers"])


def orphans(remove: bool) -> list[str]:
    """The segments of dead processes; `remove` deletes them."""
    if sys.platform != "linux":
        return []
    from ...transport.segments import named

    return named.sweep(dry_run=not remove)


def _models(endpoint: Endpoint, keys: Path | None) -> list[ModelInfo]:
    with Client(endpoint.url, keys=keys, segment="frames", connect_timeout=ANSWER_TIMEOUT_S) as client:
        return client.models()


def _listens(endpoint: Endpoint) -> bool:
    """Whether anything accepts connections at a tcp endpoint."""
    host, _, port = endpoint.clients.removeprefix("tcp://").rpartition(":")
    host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))
    try:
        socket.create_connection((host, int(port)), ANSWER_TIMEOUT_S).close()
    except OSError:
        return False
    return True
