"""The HTTP load against a server that answers in small pieces: what it must not take for an answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from batchyard.tools.wire import HttpLoad, output_of, request_of

OUTPUT = np.arange(6, dtype=np.float32).reshape(2, 3)


def answer(status: int) -> bytes:
    entry = {"name": "y", "shape": [2, 3], "parameters": {"binary_data_size": OUTPUT.nbytes}}
    head = json.dumps({"outputs": [entry]}).encode()
    return (
        f"HTTP/1.1 {status} Said\r\nInference-Header-Content-Length: {len(head)}\r\n"
        f"Content-Length: {len(head) + OUTPUT.nbytes}\r\n\r\n"
    ).encode() + head + OUTPUT.tobytes()  # fmt: skip


class Server:
    """Answers every request of `length` bytes with `answer(status)`, byte for byte in pieces of 50."""

    def __init__(self, length: int, status: int) -> None:
        self._length, self._status = length, status
        self.port = 0
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,))
        self._thread.start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            self._stop = asyncio.Event()
            await self._stop.wait()
            server.close()

        self._loop.run_until_complete(serve())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readexactly(self._length)
                raw = answer(self._status)
                for at in range(0, len(raw), 50):
                    writer.write(raw[at : at + 50])
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


REQUEST = request_of("m", "x", np.ones((1, 2), np.float32))


@pytest.fixture(params=[200, 503])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Server, int]]:
    server = Server(len(REQUEST), request.param)
    yield server, request.param
    server.close()


def test_answers_are_whole_and_refusals_are_counted(served: tuple[Server, int]) -> None:
    server, status = served
    with HttpLoad(server.port, REQUEST, 2) as load:
        measured = load.slice(0.05)
        assert (len(measured.latencies_ns) > 10) is (status == 200)
        assert measured.errors == ({} if status == 200 else {"Refused": 2})
        if status == 200:
            assert np.array_equal(output_of(load.once()), OUTPUT)
