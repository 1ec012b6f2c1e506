"""python -m batchyard.tests.campaigns.pace.plain_detector FILE ENDPOINT: a detector for Frigate without a
yard, as one would write it by hand: a ROUTER, and onnxruntime with one thread in the same process.

Without FILE (""): a bare REP that looks at nothing and answers 480 bytes of zeros. What that costs, no detector
can save: the camera's own copies, libzmq's threads at either end, and the kernel's two copies."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import zmq
from batchyard.adapters.frigate import messages as m
from batchyard.adapters.frigate.detections import yolo

from ...plain import Plain


def main(file: str, endpoint: str) -> None:
    context: zmq.Context[Any] = zmq.Context()
    if not file:
        nothing = m.detections(np.zeros((m.ROWS, m.COLUMNS), np.float32))
        bare = context.socket(zmq.REP)
        bare.bind(endpoint)
        while True:
            bare.recv_multipart(copy=False)
            bare.send_multipart(nothing)
    session = Plain(file).session
    socket = context.socket(zmq.ROUTER)
    socket.bind(endpoint)
    while True:
        identity, _, *parts = socket.recv_multipart(copy=False)
        frame = m.parse([part.buffer for part in parts])
        assert isinstance(frame, m.Frame)
        _, _, height, width = frame.pixels.shape
        outputs = session.run(None, {session.get_inputs()[0].name: frame.pixels.astype(np.float32)})
        socket.send_multipart([identity, b"", *m.detections(yolo(outputs, width, height))])


if __name__ == "__main__":
    main(*sys.argv[1:])
