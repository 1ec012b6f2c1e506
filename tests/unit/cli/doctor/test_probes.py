"""What the doctor reads of this machine, where a test can arrange it."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from batchyard.cli.doctor import probes
from batchyard.cli.doctor.checks import YardFacts
from batchyard.transport import segments
from batchyard.transport.endpoints import Endpoint, claim, holder

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux's /dev/shm and ipc")


@pytest.fixture
def orphan() -> Iterator[Path]:
    """A segment that nobody holds, as a killed process leaves it."""
    path = Path("/dev/shm") / f"batchyard-{secrets.token_hex(16)}"
    path.write_bytes(b"\0" * 4096)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with tempfile.TemporaryDirectory(prefix="yt-", dir="/tmp") as folder:
        yield Endpoint.parse(f"ipc://{folder}/y")


@linux_only
def test_orphans_are_only_found_until_removing_is_asked_for(orphan: Path) -> None:
    assert orphan.name in probes.orphans(remove=False)
    assert orphan.exists()
    assert orphan.name in probes.orphans(remove=True)
    assert not orphan.exists()


@linux_only
def test_a_living_segment_is_no_orphan() -> None:
    with segments.create(4096, "named") as living:
        assert living.handle.name not in probes.orphans(remove=False)


def test_this_systems_segments_work_and_unknown_ones_say_why() -> None:
    assert probes.segment(segments.default_backend()) == ""
    assert "no segment backend 'floppy'" in probes.segment("floppy")


@linux_only
def test_who_holds_an_endpoint_is_known_only_while_it_is_held(endpoint: Endpoint) -> None:
    assert holder(endpoint) is None
    with claim(endpoint):
        assert holder(endpoint) == os.getpid()
    assert holder(endpoint) is None
    assert probes.yard(endpoint, None) == YardFacts()


@linux_only
def test_a_folder_that_others_can_enter_is_an_error_of_the_yard(endpoint: Endpoint) -> None:
    assert endpoint.folder is not None
    endpoint.folder.mkdir()
    endpoint.folder.chmod(0o755)
    assert "open to other users" in probes.yard(endpoint, None).error


def test_a_port_is_free_until_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert probes._listens(Endpoint.parse(f"tcp://127.0.0.1:{port}"))
    assert not probes._listens(Endpoint.parse(f"tcp://127.0.0.1:{port}"))
