"""Connections that are no request yet, on a real socket: whoever opens them has shown no token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from batchyard.gateway import http_connection as connection
from batchyard.gateway.http_connection import HEAD_BYTES_MAX, connection_of, descriptors
from uvicorn.server import ServerState

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
TOO_LONG = b"a" * (1 << 20)  # in several pieces
LONG_BYTES = 64 << 20  # more than the system keeps of a connection
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers without a look at the body, as the gateway does when the token is wrong."""
    body = bytes(LONG_BYTES) if scope["path"] == "/long" else b""
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


def serving(client: Callable[[Connect], Awaitable[None]], connections_max: int = 10) -> None:
    """Run `client` against a server of these connections."""

    async def run() -> None:
        state, kind = ServerState(), connection_of(connections_max)
        config = uvicorn.Config(app, http=kind, log_config=None, lifespan="off")
        server = await asyncio.get_running_loop().create_server(
            lambda: kind(config, state, {}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        async with server, asyncio.timeout(5):
            await client(lambda: asyncio.open_connection("127.0.0.1", port))

    asyncio.run(run())


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """What comes before the end; a reset is an end as well."""
    said = b""
    try:
        while part := await reader.read(4096):
            said += part
    except ConnectionError:
        pass
    return said


@pytest.mark.parametrize("sent", [b"", b"\r\n", HEAD, POST + b"1\r\nx\r\n"])
def test_what_never_becomes_a_whole_request_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_WITHIN_S", 0.01)

    async def client(connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(sent)
        if sent.startswith(POST):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"1\r\nx\r\n")  # nobody wants it any more
        await until_closed(reader)
        writer.close()

    serving(client)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + TOO_LONG,
        HEAD + b"X: " + TOO_LONG,
        HEAD + b"X: 1\r\n" * (HEAD_BYTES_MAX // 6),
        b"\r\n" * (1 << 19),
        POST + b"0\r\nX: " + TOO_LONG,
        POST + b"1;" + TOO_LONG,
    ],
    ids=["path", "header", "headers", "empty lines", "trailer", "chunk extension"],
)
def test_a_head_that_does_not_end_is_not_kept(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_WITHIN_S", 1000)

    async def client(connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(sent)
        await until_closed(reader)
        writer.close()

    serving(client)


def test_past_the_last_connection_one_more_is_closed_and_the_others_are_served() -> None:
    async def client(connect: Connect) -> None:
        first = await connect()
        second = await connect()
        assert not await until_closed((await connect())[0])
        for reader, writer in (first, second):
            writer.write(HEAD + b"\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            writer.close()

    serving(client, connections_max=2)


def test_an_answer_that_nobody_reads_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_WITHIN_S", 0.01)

    async def client(connect: Connect) -> None:
        dropped = asyncio.Event()
        lost = connection.Connection.connection_lost

        def connection_lost(self: connection.Connection, exc: Exception | None) -> None:
            lost(self, exc)
            dropped.set()

        monkeypatch.setattr(connection.Connection, "connection_lost", connection_lost)
        _, writer = await connect()
        writer.write(HEAD.replace(b"/", b"/long", 1) + b"\r\n")
        await dropped.wait()
        writer.close()

    serving(client)


def test_a_process_may_open_some_descriptors() -> None:
    resource = pytest.importorskip("resource")
    assert descriptors() <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]
