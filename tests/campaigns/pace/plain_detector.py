"""python -m batchyard.tests.campaigns.pace.plain_detector FILE ENDPOINT: a detector for Frigate without a
yard, as one would write it by hand: a ROUTER, and onnxruntime with one thread in the same process."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import zmq
from batchyard.adapters.frigate import messages as m
from batchyard.adapters.frigate.detections import yolo

from ...plain import Plain


def main(file: str, endpoint: str) -> None:
    session = Plain(file).session
    context: zmq.Context[Any] = zmq.Context()
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
