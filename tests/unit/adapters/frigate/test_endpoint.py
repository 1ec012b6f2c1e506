from __future__ import annotations

import socket
from pathlib import Path

import pytest
from batchyard.adapters.frigate import endpoint
from batchyard.transport.errors import EndpointInUse, InvalidRequest


def test_an_ipc_endpoints_folder_is_made_and_a_dead_ones_socket_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "detector"
    endpoint.check(f"ipc://{path}")
    assert path.parent.is_dir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    endpoint.check(f"ipc://{path}")


def test_a_detector_that_listens_is_not_pushed_aside(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(tmp_path / "detector"))
        living.listen()
        with pytest.raises(EndpointInUse, match="another detector listens"):
            endpoint.check(f"ipc://{tmp_path / 'detector'}")


def test_beyond_this_machine_only_when_it_is_said_so() -> None:
    endpoint.check("tcp://127.0.0.1:5555")
    endpoint.check("tcp://0.0.0.0:5555", allow_remote=True)
    with pytest.raises(InvalidRequest, match="--allow-remote"):
        endpoint.check("tcp://0.0.0.0:5555")
    with pytest.raises(InvalidRequest, match="ipc://PATH or tcp"):
        endpoint.check("/tmp/cache/zmq_detector")
