"""A camera as Frigate's zmq_ipc plugin is one: a REQ socket, 200 ms of patience, no answer taken for nothing
seen. And what it films: noise, seeded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import zmq

SIDE = 320
TIMEOUT_MS = 200


class Camera:
    """What the plugin does, in its order. `late`: frames without an answer. `error`: the last answer's."""

    def __init__(self, context: Any, endpoint: str, timeout_ms: int = TIMEOUT_MS) -> None:
        self.context, self.endpoint, self.timeout_ms = context, endpoint, timeout_ms
        self.late = 0
        self.error = ""
        self.open()

    def open(self) -> None:
        self.socket = self.context.socket(zmq.REQ)
        self.socket.rcvtimeo = self.socket.sndtimeo = self.timeout_ms
        self.socket.linger = 0
        self.socket.connect(self.endpoint)

    def ask(self, *parts: bytes) -> list[bytes]:
        """The answer's parts; none when it is late."""
        try:
            self.socket.send_multipart(parts)
            answer: list[bytes] = self.socket.recv_multipart()
        except zmq.Again:
            self.late += 1
            self.socket.close()
            self.open()
            return []
        return answer

    def detect(self, pixels: Any, model_type: str = "yologeneric") -> Any:
        """float32[20, 6]; all zeros when the answer is late."""
        head = {"shape": list(pixels.shape), "dtype": str(pixels.dtype), "model_type": model_type}
        answer = self.ask(json.dumps(head).encode(), pixels.tobytes())
        if not answer:
            return np.zeros((20, 6), np.float32)
        said = json.loads(answer[0])
        assert (said["shape"], said["dtype"]) == ([20, 6], "float32"), said
        self.error = said.get("error", "")
        return np.frombuffer(answer[1], np.float32).reshape(20, 6)


def frames(seed: int, count: int) -> list[Any]:
    """uint8[1, 3, 320, 320], 307,200 bytes: smooth noise, in which a detector sees more than 20 things."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (count, 1, 3, 10, 10), np.uint8)
    return list(coarse.repeat(SIDE // 10, axis=3).repeat(SIDE // 10, axis=4))
