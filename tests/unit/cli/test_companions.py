"""The ports that `up` is asked to open."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from batchyard.cli.up import _parser, check_port, companions_of
from batchyard.cli.up_gateway import gateway_of
from batchyard.transport.arguments import PORT_MAX
from batchyard.transport.errors import EndpointInUse, InvalidRequest


def test_two_companions_at_one_port_are_told_before_anything_starts() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    taken: dict[int, str] = {}
    check_port("metrics", port, taken)
    with pytest.raises(InvalidRequest, match=f"--metrics and --gateway both use port {port}"):
        check_port("gateway", port, taken)


def one_above_a_free_port() -> socket.socket:
    """Bound at a port whose neighbour below nobody holds: --gateway looks there first."""
    while True:
        other = socket.socket()
        other.bind(("127.0.0.1", 0))
        try:
            with socket.socket() as below:
                below.bind(("127.0.0.1", other.getsockname()[1] - 1))
        except OSError:
            other.close()
        else:
            return other


def test_a_port_that_is_taken_or_none_is_told_with_its_option() -> None:
    with one_above_a_free_port() as other:
        other.listen()
        port = int(other.getsockname()[1])
        with pytest.raises(
            EndpointInUse, match=rf"port {port} \(Address.*in use\): choose another --metrics"
        ):
            check_port("metrics", port, {})
        why = rf"port {port} for gRPC, the one after --gateway \(Address.*in use\): choose another --gateway"
        options = _parser().parse_args(["--gateway", str(port - 1)])
        with pytest.raises(EndpointInUse, match=why):
            companions_of(options, gateway_of(options, None, Path("batchyard.toml")))
    with pytest.raises(InvalidRequest, match="port after --gateway, and there is no port 65536"):
        check_port("gateway", PORT_MAX + 1, {})
