"""Where the detector listens: an ipc path that Frigate's container mounts, or a loopback port."""

from __future__ import annotations

import socket as sockets
import stat
from pathlib import Path

import zmq

from ...transport.errors import EndpointInUse, InvalidRequest
from .uploads import UPLOAD_BYTES_MAX

DEFAULT = "ipc:///tmp/cache/zmq_detector"  # the plugin's own
IPC = "ipc://"
LOOPBACK = ("tcp://127.", "tcp://localhost:", "tcp://[::1]:")


def check(endpoint: str, allow_remote: bool = False) -> None:
    """Make an ipc endpoint's folder. Raises InvalidRequest for what is no endpoint or would be open to other
    machines, EndpointInUse where another detector listens."""
    if endpoint.startswith(IPC):
        path = Path(endpoint.removeprefix(IPC))
        path.parent.mkdir(parents=True, exist_ok=True)
        if _answers(path):
            text = f"another detector listens at {endpoint}: stop it, or choose another --endpoint"
            raise EndpointInUse(text)
    elif not endpoint.startswith("tcp://"):
        raise InvalidRequest(f"an endpoint is ipc://PATH or tcp://ADDRESS:PORT, not {endpoint!r}")
    elif not endpoint.startswith(LOOPBACK) and not allow_remote:
        raise InvalidRequest(
            f"{endpoint} is open to other machines, and Frigate's protocol knows no password: "
            "add --allow-remote if only Frigate can reach it"
        )


def _answers(path: Path) -> bool:
    """Whether somebody listens at a unix socket. What is no socket is left alone: binding to it fails."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(str(path))
    except OSError:
        return False
    return True


def bind(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A ROUTER socket there. Raises EndpointInUse."""
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.setsockopt(zmq.MAXMSGSIZE, UPLOAD_BYTES_MAX)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise EndpointInUse(f"cannot listen at {endpoint}: {zmq.strerror(error.errno or 0)}") from None
    return socket
