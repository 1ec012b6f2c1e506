"""A gateway's codes become the errors that a local client raises for the same."""

from __future__ import annotations

import asyncio

import pytest
from batchyard.client.remote.failures import NO_NODE, Unreachable, error_of
from batchyard.client.remote.turns import Turns
from batchyard.gateway.errors import _STATUS, refusal_of
from batchyard.transport import errors


@pytest.mark.parametrize("kind", [kind for kind, *_ in _STATUS])
def test_every_error_of_a_yard_comes_back_as_itself(kind: type[errors.BatchyardError]) -> None:
    refusal = refusal_of(kind("a sentence"))
    error = error_of(refusal.code, refusal.status, refusal.text, refusal.headers.get("Retry-After"))
    same = {errors.ArenaExhausted: errors.Overloaded, errors.MalformedMessage: errors.BrokerLost}
    assert type(error) is same.get(kind, kind)
    assert str(error) == "a sentence"


def test_overloaded_says_when_to_come_back() -> None:
    error = error_of("OVERLOADED", 503, "full", "3")
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after_s == 3.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, errors.Unauthorized), (503, errors.Overloaded), (504, errors.DeadlineExceeded), (418, errors.BatchyardError)],
)
def test_without_a_code_the_status_decides(status: int, kind: type[Exception]) -> None:
    assert type(error_of(None, status, "from a proxy", None)) is kind


def test_no_node_means_that_nothing_was_sent() -> None:
    assert isinstance(error_of(NO_NODE, 503, "no healthy upstream", None), Unreachable)


def test_the_most_urgent_goes_next_and_who_is_cancelled_takes_no_turn() -> None:
    order: list[str] = []

    async def main() -> None:
        turns, go = Turns(1), asyncio.Event()

        async def one(name: str, priority: int) -> None:
            async with turns.turn(priority):
                await go.wait()
                order.append(name)

        tasks = [asyncio.create_task(one(*what)) for what in (("first", 3), ("low", 3), ("gone", 0), ("urgent", 0))]
        await asyncio.sleep(0)
        tasks[2].cancel()
        go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5), turns.turn(0):
            pass

    asyncio.run(main())
    assert order == ["first", "urgent", "low"]
