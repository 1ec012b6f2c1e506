"""Who gets no place over gRPC, by a real server: their messages may be long, and must not be received."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("grpc", reason="pip install 'batchyard[gateway]'")
import grpc
from batchyard.gateway.grpc_door import Door
from batchyard.gateway.metrics import Metrics

LONG = b"a" * (1 << 20)  # more than HTTP/2 lets anybody send unread


def test_one_call_too_many_is_refused_before_its_message_is_received() -> None:
    async def run() -> None:
        received: list[bytes] = []
        begun, end = asyncio.Event(), asyncio.Event()

        def received_as(message: bytes) -> bytes:
            received.append(message[:1])
            return message

        async def answer(message: bytes, context: Any) -> bytes:
            begun.set()
            await end.wait()
            return message

        method = grpc.unary_unary_rpc_method_handler(answer, received_as)
        metrics = Metrics("0")
        door = Door([grpc.method_handlers_generic_handler("s", {"Ask": method})], None, metrics, 1)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((door,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()

        async def never() -> AsyncIterator[bytes]:
            await end.wait()
            yield b"late"

        async with asyncio.timeout(5), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary("/s/Ask")
            first = ask(b"first")
            await begun.wait()
            for call in (ask(LONG), channel.stream_unary("/s/Ask")(never())):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert caught.value.details() == "1 requests are under way here; try again"
                assert dict(caught.value.trailing_metadata())["retry-after"] == "1"
            assert received == [b"f"]
            end.set()
            assert await first == b"first"
            assert await ask(LONG) == LONG  # there is a place again
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/s/Other")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await server.stop(None)
        assert b'requests_total{route="grpc/Ask",status="429"} 2.0' in metrics.page()

    asyncio.run(run())
