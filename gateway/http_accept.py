"""Accepting connections: all that wait, at each turn of the event loop.

uvloop accepts one a turn (libuv 1.45 and later), and a turn answers every connection that has sent something.
So 300 new connections beside 64 busy ones waited for 8,800 answers to those. The system's queue ran over, and
whoever connected then waited for TCP to try again: 1 s, then 2, then 4.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import uvicorn

log = logging.getLogger("gateway")
AGAIN_S = 0.5  # when the system has no room for another connection


class Server(uvicorn.Server):
    """uvicorn's, with another way in."""

    _accepting: tuple[asyncio.Task[None], ...] = ()

    def __init__(self, config: uvicorn.Config, connections_max: int) -> None:
        super().__init__(config)
        # At each turn. A connection that has been dropped again keeps its place until the next turn: a burst
        # of them must leave places for others.
        self._at_once = max(1, connections_max // 4)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._accepting = tuple(asyncio.create_task(self._accept(one)) for one in sockets or ())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        beginning: set[asyncio.Task[None]] = set()

        def begin(connection: socket.socket) -> None:
            connection.setblocking(False)
            task = loop.create_task(self._begin(connection))
            beginning.add(task)
            task.add_done_callback(beginning.discard)

        listening.setblocking(False)
        try:
            while True:
                try:
                    begin((await loop.sock_accept(listening))[0])
                    for _ in range(self._at_once - 1):
                        begin(listening.accept()[0])
                except (BlockingIOError, ConnectionAbortedError):
                    pass  # no more wait, or one has gone
                except OSError as error:
                    log.warning("no connection can be accepted: %s", error.strerror)
                    await asyncio.sleep(AGAIN_S)
                await asyncio.sleep(0)  # asyncio's own sock_accept does not wait while there are some
        finally:
            for task in beginning:
                task.cancel()

    async def _begin(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has gone, or its TLS is none
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=self.config.ssl
            )

    def _protocol(self) -> Any:
        made: Any = self.config.http_protocol_class
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
