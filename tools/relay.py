"""The baseline's own processes: a relay between two ZeroMQ sockets, and a worker that echoes.

Run as `python -m batchyard.tools.relay proxy|router FOLDER` and `... worker URL`. Imports nothing of
ours: these processes stand for what one would write without batchyard. All three leave when their
standard input ends, so that none outlives the process that started it.

    client DEALER -- front ROUTER | relay | back DEALER or ROUTER -- DEALER worker

The relay prints `FRONT_URL BACK_URL` when both are bound, and `ready` when the worker has greeted it:
a ROUTER drops what it has for a worker that is not there yet.
"""

from __future__ import annotations

import os
import sys
import threading

import zmq

WORKER = b"worker"
HELLO = b"hello"
START_MS = 30_000


def proxy(front: zmq.Socket[bytes], back: zmq.Socket[bytes]) -> None:
    """The relay in C: libzmq's own loop, no Python per message."""
    zmq.proxy(front, back)


def router(front: zmq.Socket[bytes], back: zmq.Socket[bytes]) -> None:
    """The relay in Python, as a good programmer would write it: poll, then forward what is ready."""
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if back in ready:
            _, client, payload = back.recv_multipart()
            front.send_multipart([client, payload])
        if front in ready:
            client, payload = front.recv_multipart()
            back.send_multipart([WORKER, client, payload])


def relay(kind: str, folder: str) -> None:
    """Bind both sides, wait for the worker, and forward for ever."""
    context = zmq.Context()
    front = context.socket(zmq.ROUTER)
    back = context.socket(zmq.DEALER if kind == "proxy" else zmq.ROUTER)
    print(_bind(front, folder, "front"), _bind(back, folder, "back"), flush=True)
    back.setsockopt(zmq.RCVTIMEO, START_MS)
    greeting = back.recv_multipart()
    assert greeting[-1] == HELLO, greeting
    back.setsockopt(zmq.RCVTIMEO, -1)
    print("ready", flush=True)
    (proxy if kind == "proxy" else router)(front, back)


def worker(back_url: str) -> None:
    """Greet the relay, then send every message back as it came."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, WORKER)
    socket.connect(back_url)
    socket.send(HELLO)
    while True:
        socket.send_multipart(socket.recv_multipart())


def _bind(socket: zmq.Socket[bytes], folder: str, name: str) -> str:
    # Over ipc where there is one, as the yard itself; pyzmq's Windows wheels have none.
    socket.bind(f"ipc://{folder}/{name}" if zmq.has("ipc") else "tcp://127.0.0.1:*")
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # the main thread sits in a C loop that no exception reaches


def main(argv: list[str]) -> int:
    role, where = argv
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if role == "worker":
        worker(where)
    else:
        relay(role, where)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
