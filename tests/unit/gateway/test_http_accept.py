"""The way in, on real sockets and on both event loops: who waits is let in, however busy the loop is."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn
from batchyard.gateway import http_accept
from batchyard.gateway.http_accept import Server
from batchyard.gateway.http_connection import connection_of

LOOPS: list[Any] = [asyncio.new_event_loop]
try:
    import uvloop
except ImportError:  # Windows
    pass
else:
    LOOPS.append(uvloop.new_event_loop)
MANY = 60


class Listening(socket.socket):
    """`failures`: what the next calls of accept raise."""

    failures: list[int]

    def accept(self) -> Any:
        if self.failures:
            code = self.failures.pop()
            raise OSError(code, os.strerror(code))
        return super().accept()


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture(params=LOOPS, ids=lambda loop: loop.__module__.partition(".")[0])
def runner(request: Any) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as started:
        yield started


@pytest.fixture
def listening() -> Iterator[Listening]:
    with Listening() as made:
        made.failures = []
        made.bind(("127.0.0.1", 0))
        made.listen(MANY)
        yield made


def serve(runner: asyncio.Runner, listening: Listening, client: Callable[[Server], Awaitable[None]]) -> None:
    async def run() -> None:
        kind = connection_of(2 * MANY)
        config = uvicorn.Config(app, http=kind, log_config=None, lifespan="off", ws="none")
        server = Server(config, 2 * MANY)
        async with asyncio.timeout(20):
            serving = asyncio.ensure_future(server.serve([listening]))
            try:
                await client(server)
            finally:
                server.should_exit = True
                await serving

    runner.run(run())


async def ask(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    await loop.sock_sendall(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await loop.sock_recv(connection, 4096)).startswith(b"HTTP/1.1 200 ")


def test_all_that_wait_are_let_in_within_a_few_turns(runner: asyncio.Runner, listening: Listening) -> None:
    """libuv accepts one a turn: with a loop that is busy, new connections wait for every turn before them."""
    waiting = [socket.create_connection(listening.getsockname()) for _ in range(MANY)]

    async def client(server: Server) -> None:
        turns = 0
        while len(server.server_state.connections) < MANY:
            turns += 1
            await asyncio.sleep(0)
        assert turns < MANY / 2
        for connection in waiting:
            await ask(connection)

    try:
        serve(runner, listening, client)
    finally:
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ECONNABORTED])
def test_a_connection_that_cannot_be_accepted_is_not_the_last(
    runner: asyncio.Runner, listening: Listening, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_accept, "AGAIN_S", 0)
    listening.failures = [code] * 2

    async def client(_: Server) -> None:
        with socket.create_connection(listening.getsockname()) as connection:
            await ask(connection)
        assert not listening.failures

    serve(runner, listening, client)


def test_the_end_closes_the_door_and_answers_who_is_inside(
    runner: asyncio.Runner, listening: Listening
) -> None:
    address = listening.getsockname()
    with socket.create_connection(address) as inside:

        async def client(server: Server) -> None:
            await ask(inside)
            server.should_exit = True
            while listening.fileno() >= 0:
                await asyncio.sleep(0)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)

        serve(runner, listening, client)
        assert inside.recv(1) == b""
