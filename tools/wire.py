"""The load over HTTP: so many connections, each with one request of the Open Inference Protocol under way.

Owns a client that costs as little as one can in Python: the request's bytes are made once, and of an
answer only the status and the length are read. A client that did more would be measured instead.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np

from ..bench.loops import WARM_UP_S
from ..bench.statistics import Measured

HEADER_LENGTH = "Inference-Header-Content-Length"
CONNECT_S = 10.0
DRAIN_S = 30.0  # the patience with what is still in flight after the last send


class Refused(Exception):
    """An answer that is no 200."""


def request_of(model: str, name: str, x: np.ndarray[Any, Any]) -> bytes:
    """An inference of float32 `x`, as bytes, with its outputs as bytes, too."""
    entry = {
        "name": name,
        "shape": list(x.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": x.nbytes},
    }
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    return (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n{HEADER_LENGTH}: {len(head)}\r\n"
        f"Content-Length: {len(head) + x.nbytes}\r\n\r\n"
    ).encode() + b"".join((head, x.tobytes()))


def output_of(answer: bytes) -> np.ndarray[Any, Any]:
    """The first output of an answer, whose first bytes are those of the status line."""
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(fields[HEADER_LENGTH.lower().encode()])
    (output, *_) = json.loads(body[:length])["outputs"]
    nbytes = output["parameters"]["binary_data_size"]
    return np.frombuffer(body[length : length + nbytes], np.float32).reshape(output["shape"])


class HttpLoad:
    """`in_flight` connections to a gateway, kept between slices. A context manager."""

    def __init__(self, port: int, request: bytes, in_flight: int) -> None:
        self._port = port
        self._request = request
        self._in_flight = in_flight
        self._runner = asyncio.Runner()
        self._connections: list[_Connection] = []

    def __enter__(self) -> HttpLoad:
        self._runner.run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        self._runner.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self._in_flight):
            async with asyncio.timeout(CONNECT_S):
                _, made = await loop.create_connection(
                    lambda: _Connection(self._request), "127.0.0.1", self._port
                )
            self._connections.append(made)

    def once(self) -> bytes:
        """One whole answer."""
        return self._runner.run(self._connections[0].once())

    def slice(self, duration_s: float) -> Measured:
        """All connections for `duration_s`; each answer sends the next request."""
        return self._runner.run(self._slice(duration_s))

    async def _slice(self, duration_s: float) -> Measured:
        measured = Measured()
        from_ns = time.perf_counter_ns() + int(WARM_UP_S * 1e9)
        until_ns = from_ns + int(duration_s * 1e9)
        ends = [one.start(measured, from_ns, until_ns) for one in self._connections]
        async with asyncio.timeout(duration_s + DRAIN_S):
            for end in ends:
                try:
                    await end
                except (Refused, ConnectionError) as error:
                    measured.failed(error)
        measured.elapsed_ns = until_ns - from_ns
        return measured


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._measured = Measured()
        self._from_ns = self._until_ns = self._sent_ns = 0
        self._answer = b""
        self._left = -1  # bytes of the answer that are still to come; -1: its head has not ended
        self._end: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_exception(error or ConnectionError("the gateway has closed the connection"))

    def start(self, measured: Measured, from_ns: int, until_ns: int) -> asyncio.Future[bytes]:
        self._measured, self._from_ns, self._until_ns = measured, from_ns, until_ns
        self._end = asyncio.get_running_loop().create_future()
        self._send()
        return self._end

    async def once(self) -> bytes:
        return await self.start(Measured(), 0, 0)

    def _send(self) -> None:
        assert self._transport is not None
        self._answer = b""
        self._left = -1
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self._left < 0:
            head, ended, _ = self._answer.partition(b"\r\n\r\n")
            if not ended:
                return
            length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
            self._left = len(head) + 4 + int(length)
        if len(self._answer) >= self._left:
            self._answered()

    def _answered(self) -> None:
        now_ns = time.perf_counter_ns()
        assert self._end is not None
        if not self._answer.startswith(b"HTTP/1.1 200"):
            self._end.set_exception(Refused(self._answer.decode(errors="replace")[-200:]))
            return
        if self._from_ns <= now_ns < self._until_ns:
            self._measured.latencies_ns.append(now_ns - self._sent_ns)
        if now_ns < self._until_ns:
            self._send()
        else:
            self._end.set_result(self._answer)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
