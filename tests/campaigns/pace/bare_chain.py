"""python -m batchyard.tests.campaigns.pace.bare_chain FILE ENDPOINT: the floor of a detector with a broker and a
worker: plain_detector's work, with the run two processes away.

The three of them share memory, and pass 200 bytes on over unix sockets. None looks at what it passes on."""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
import sys
from typing import Any

import numpy as np
import zmq
from batchyard.adapters.frigate import messages as m
from batchyard.adapters.frigate.detections import yolo

from ...camera import SIDE
from ...plain import Plain

MESSAGE_BYTES = 200
SHAPE = (1, 3, SIDE, SIDE)
MAPPED_BYTES = 1 << 22
Array = np.ndarray[Any, Any]


def placed(memory: mmap.mmap, shape: tuple[int, ...]) -> Array:
    return np.frombuffer(memory, np.float32, int(np.prod(shape))).reshape(shape)


def pass_on(one: socket.socket, other: socket.socket) -> None:
    """The broker's place, until either end closes."""
    poll = select.epoll()
    ways = {one.fileno(): (one, other), other.fileno(): (other, one)}
    for fd in ways:
        poll.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            source, target = ways[fd]
            message = source.recv(MESSAGE_BYTES)
            if not message:
                return
            target.sendall(message)


def run(file: str, pixels: Array, outputs: mmap.mmap, line: socket.socket) -> None:
    """The worker's place: tells the output's shape, then runs for every message until the end closes."""
    session = Plain(file).session
    given, wanted = session.get_inputs()[0].name, session.get_outputs()[0].name
    shape = session.run(None, {given: np.zeros(SHAPE, np.float32)})[0].shape
    binding = session.io_binding()
    binding.bind_input(given, "cpu", 0, np.float32, SHAPE, pixels.ctypes.data)
    binding.bind_output(wanted, "cpu", 0, np.float32, shape, placed(outputs, shape).ctypes.data)
    line.sendall(json.dumps(shape).encode())
    while message := line.recv(MESSAGE_BYTES):
        session.run_with_iobinding(binding)
        line.sendall(message)


def main(file: str, endpoint: str) -> None:
    inputs, outputs = mmap.mmap(-1, MAPPED_BYTES), mmap.mmap(-1, MAPPED_BYTES)
    pixels = placed(inputs, SHAPE)
    ours, near = socket.socketpair()
    far, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        theirs.close()
        pass_on(near, far)
        os._exit(0)
    near.close()
    far.close()
    if not os.fork():
        ours.close()
        run(file, pixels, outputs, theirs)
        os._exit(0)
    theirs.close()
    table = placed(outputs, tuple(json.loads(ours.recv(MESSAGE_BYTES))))
    context: zmq.Context[Any] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(endpoint)
    while True:
        identity, _, *parts = router.recv_multipart(copy=False)
        frame = m.parse([part.buffer for part in parts])
        assert isinstance(frame, m.Frame)
        np.copyto(pixels, frame.pixels, casting="unsafe")
        ours.sendall(bytes(MESSAGE_BYTES))
        ours.recv(MESSAGE_BYTES)
        router.send_multipart([identity, b"", *m.detections(yolo([table], SIDE, SIDE))])


if __name__ == "__main__":
    main(*sys.argv[1:])
