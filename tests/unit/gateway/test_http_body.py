"""Bodies within bounds; a plain list of ASGI messages stands for the connection."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from batchyard.gateway import http_body as bodies
from batchyard.gateway.errors import ClientGone, Refusal
from batchyard.gateway.http_body import Body, Budget
from starlette.requests import Request


def request(*chunks: bytes, headers: dict[str, str] | None = None, gone: bool = False) -> Request:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append(
        {"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False}
    )

    async def receive() -> Any:
        return messages.pop(0)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "headers": raw}, receive)


def read(
    how: Callable[[Body], Awaitable[Any]], asked: Request, bytes_max: int = 1000, budget: Budget | None = None
) -> Any:
    async def run() -> Any:
        with Body(asked, bytes_max, budget or Budget(1 << 20)) as body:
            return await how(body)

    return asyncio.run(run())


def test_parts_come_in_whatever_chunks_were_sent() -> None:
    async def parts(body: Body) -> tuple[bytes, bytes, bytes]:
        view = bytearray(4)
        head = await body.take(3)
        await body.fill(memoryview(view))
        return head, bytes(view), await body.rest()

    assert read(parts, request(b"ab", b"cdefg", b"h", b"ij")) == (b"abc", b"defg", b"hij")


def test_a_body_that_is_too_long_is_refused_before_and_while_it_comes() -> None:
    for asked in (request(headers={"content-length": "1001"}), request(b"x" * 600, b"x" * 600)):
        with pytest.raises(Refusal) as caught:
            read(lambda body: body.rest(), asked)
        assert caught.value.status == 413


def test_a_body_that_ends_too_early_or_has_more_is_refused() -> None:
    with pytest.raises(Refusal, match="2 bytes too early"):
        read(lambda body: body.take(4), request(b"ab"))

    async def one_and_end(body: Body) -> None:
        await body.take(1)
        await body.end()

    with pytest.raises(Refusal, match="more bytes"):
        read(one_and_end, request(b"ab"))
    read(one_and_end, request(b"a"))


def test_a_sender_that_goes_away_is_seen() -> None:
    with pytest.raises(ClientGone):
        read(lambda body: body.rest(), request(b"ab", gone=True))


def test_a_sender_that_is_too_slow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PATIENCE_S", 0.0)

    async def never() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(Refusal) as caught:
        read(lambda body: body.rest(), Request({"type": "http", "headers": []}, never))
    assert caught.value.status == 408
    assert caught.value.headers["Connection"] == "close"


def test_all_bodies_together_have_a_budget_and_give_it_back() -> None:
    budget = Budget(1000)
    seen = []

    async def two(body: Body) -> None:
        seen.append(budget.used_bytes)
        with pytest.raises(Refusal) as caught, Body(request(headers={"content-length": "500"}), 1000, budget):
            pass
        assert caught.value.status == 503
        assert caught.value.headers["Retry-After"] == "1"
        await body.rest()

    read(two, request(b"x" * 600, headers={"content-length": "600"}), budget=budget)
    assert (seen, budget.used_bytes) == ([600], 0)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_compressed_bodies_are_unpacked(name: str) -> None:
    pack = zlib.compressobj(wbits=31 if name == "gzip" else 15)
    packed = pack.compress(b"x" * 900) + pack.flush()
    asked = request(packed, headers={"content-encoding": name})
    assert read(lambda body: body.rest(), asked) == b"x" * 900


def test_a_few_bytes_that_stand_for_many_are_refused() -> None:
    with pytest.raises(Refusal) as caught:
        read(
            lambda body: body.rest(),
            request(zlib.compress(bytes(10_000_000))[:900], headers={"content-encoding": "deflate"}),
        )
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("name", "raw"), [("gzip", b"not gzip"), ("deflate", zlib.compress(b"xyz")[:-2]), ("br", b"x")]
)
def test_what_cannot_be_unpacked_is_refused(name: str, raw: bytes) -> None:
    with pytest.raises(Refusal):
        read(lambda body: body.rest(), request(raw, headers={"content-encoding": name}))


@pytest.mark.parametrize(("count", "is_allowed"), [(bodies.MEMBERS_MAX, True), (bodies.MEMBERS_MAX + 1, False)])
def test_a_gzip_body_may_have_several_members_and_not_without_end(count: int, is_allowed: bool) -> None:
    """Each costs a copy of what follows it: empty ones, of 20 bytes, would hold the gateway for hours."""
    raw = gzip.compress(b"") * (count - 2) + gzip.compress(b"ab") + gzip.compress(b"c")
    asked = request(raw, headers={"content-encoding": "gzip"})
    if is_allowed:
        assert read(lambda body: body.rest(), asked, 1 << 20) == b"abc"
        return
    with pytest.raises(Refusal, match=f"more than {bodies.MEMBERS_MAX} gzip members"):
        read(lambda body: body.rest(), asked, 1 << 20)


def test_a_member_may_reach_over_what_is_decompressed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PIECE_BYTES", 7)
    raw = gzip.compress(bytes(range(200))) + gzip.compress(b"end")
    asked = request(raw, headers={"content-encoding": "gzip"})
    assert read(lambda body: body.rest(), asked) == bytes(range(200)) + b"end"
