"""Who may ask, and what becomes of errors; an ASGI scope stands for the connection."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from batchyard import InvalidRequest, Overloaded
from batchyard.gateway.errors import ClientGone, Refusal, refusal_of
from batchyard.gateway.http_guard import Guard, while_connected
from batchyard.gateway.metrics import Metrics
from starlette.requests import Request

TOKEN = "0123456789abcdef"


def ask(
    path: str = "/predict",
    headers: dict[str, str] | None = None,
    token: str | None = None,
    in_flight: int = 0,
    error: Exception | None = None,
    hosts: int = 1,
) -> tuple[int, Any, dict[str, str]]:
    """(status, body, headers) of the answer to a request that the application answers with 200."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if error is not None:
            raise error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"null"})

    async def send(message: Any) -> None:
        sent.append(message)

    metrics = Metrics("1.2.3")
    metrics.in_flight = in_flight
    raw = [(k.encode(), v.encode()) for k, v in {"host": "localhost:8000", **(headers or {})}.items()]
    raw = raw[:1] * hosts + raw[1:]
    scope = {"type": "http", "method": "GET", "path": path, "headers": raw}
    asyncio.run(Guard(app, metrics, token, 10)(scope, None, send))  # type: ignore[arg-type]
    assert metrics.in_flight == in_flight
    start, body = sent
    return start["status"], json.loads(body["body"]), {k.decode(): v.decode() for k, v in start["headers"]}


def test_the_token_is_asked_for_everywhere_but_where_nothing_is_said() -> None:
    for header in (
        {},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer \xff"},
    ):
        status, body, _ = ask(headers=header, token=TOKEN)
        assert (status, body["code"]) == (401, "UNAUTHENTICATED")
    assert ask(headers={"authorization": f"bearer {TOKEN}"}, token=TOKEN)[0] == 200
    assert ask("/v2/health/live", token=TOKEN)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "["},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:9999"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://evil@localhost:8000"},
        {"host": "", "origin": "null"},
    ],
)
def test_without_a_token_no_page_of_another_origin_may_ask(headers: dict[str, str]) -> None:
    status, body, _ = ask(headers=headers)
    assert (status, body["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:1"},
        {"host": "[::1]:8000"},
        {"origin": "http://localhost:8000"},
        {"host": f"{socket.gethostname()}:8000"},
    ],
)
def test_this_machines_own_names_and_the_pages_own_origin_may_ask(headers: dict[str, str]) -> None:
    assert ask(headers=headers)[0] == 200


@pytest.mark.parametrize("hosts", [0, 2])
def test_a_request_has_exactly_one_host(hosts: int) -> None:
    for token in (None, TOKEN):
        status, body, _ = ask(hosts=hosts, token=token, headers={"authorization": f"Bearer {TOKEN}"})
        assert (status, body["error"]) == (
            400, f"a request has exactly one Host header, this one has {hosts}",
        )  # fmt: skip


def test_too_many_at_once_are_told_when_to_come_back_and_health_is_still_answered() -> None:
    status, body, headers = ask(in_flight=10)
    assert (status, body["code"], headers["retry-after"]) == (429, "TOO_MANY_REQUESTS", "1")
    assert ask("/v2/health/live", in_flight=10)[0] == 200


def test_every_error_has_a_code_and_a_sentence_and_none_of_our_insides() -> None:
    status, body, headers = ask(error=Overloaded("the queue is full", 2.2))
    assert (status, body, headers["retry-after"]) == (
        503,
        {"error": "the queue is full", "code": "OVERLOADED"},
        "3",
    )
    status, body, _ = ask(error=RuntimeError("/secret/path"))
    assert (status, body["code"]) == (500, "INTERNAL")
    assert "secret" not in body["error"]
    assert refusal_of(InvalidRequest("x")).status == 400
    assert refusal_of(Refusal(418, "TEAPOT", "x")).status == 418


def test_a_path_cannot_write_lines_of_its_own_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert ask("/v2\ngateway: all is well", error=RuntimeError())[0] == 500
    assert "\n" not in caplog.records[0].getMessage()


def connected(gone: asyncio.Event) -> Request:
    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


def test_a_dropped_connection_cancels_the_work() -> None:
    async def run() -> list[str]:
        gone, seen = asyncio.Event(), []

        async def work() -> None:
            try:
                gone.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        with pytest.raises(ClientGone):
            await while_connected(connected(gone), work())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert asyncio.all_tasks() == {task}
        return seen

    assert asyncio.run(run()) == ["cancelled"]


def test_a_connection_that_stays_changes_nothing_and_a_cancel_from_outside_is_one() -> None:
    async def run() -> None:
        gone = asyncio.Event()

        async def work() -> int:
            await asyncio.sleep(0)
            return 7

        assert await while_connected(connected(gone), work()) == 7
        outer = asyncio.ensure_future(while_connected(connected(gone), asyncio.Event().wait()))
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer

    asyncio.run(run())
