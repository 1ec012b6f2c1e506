"""Every verb waits for room in its turn; an AsyncClient is one event loop's at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard import ArenaExhausted, Cancelled, InvalidRequest
from batchyard.client import Yard

WIDTH = 1 << 16  # float32: 256 KiB in, and as much out
X = np.ones((1, WIDTH), np.float32)
ARENA_BYTES = 1 << 20  # for one request under way, and one result
ROUNDS = 40


@pytest.fixture(scope="module")
def yard(onnx_models: Any) -> Iterator[Yard]:
    with batchyard.serve({"wide": onnx_models.unary("wide", "Neg", ["n", WIDTH])}, threads=1) as made:
        with made.client() as client:
            client.wait_ready("wide", 30)
        yield made


def test_threads_that_wait_for_room_have_their_turns(yard: Yard) -> None:
    done = [0] * 4
    with yard.client(arena_bytes=ARENA_BYTES) as client:
        client.infer("wide", X)

        def work(index: int) -> None:
            for _ in range(ROUNDS):
                client.infer("wide", X, timeout=30)
                done[index] += 1

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(done))]
        for thread in threads:
            thread.start()
        while sum(done) < ROUNDS * len(done) // 2:
            time.sleep(0.001)
        least, most = min(done), max(done)
        for thread in threads:
            thread.join(60)
    assert done == [ROUNDS] * len(done)
    assert least > 0, f"somebody starved: {least} rounds beside {most}"


@pytest.mark.parametrize("verb", ["infer", "submit", "map"])
def test_every_verb_waits_for_room_that_other_threads_give_back(yard: Yard, verb: str) -> None:
    verbs = {
        "infer": lambda client: client.infer("wide", X, timeout=30),
        "submit": lambda client: client.submit("wide", X, timeout=30).result(30),
        "map": lambda client: list(client.map("wide", [X], timeout=30)),
    }
    with yard.client(arena_bytes=ARENA_BYTES) as client:
        client.infer("wide", X)
        ending = threading.Event()

        def work() -> None:
            while not ending.is_set():
                client.infer("wide", X, timeout=30)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                assert verbs[verb](client) is not None
        finally:
            ending.set()
            for thread in threads:
                thread.join(60)


def test_coroutines_wait_for_room_and_results_that_are_kept_end_the_wait(yard: Yard) -> None:
    async def one(client: Any) -> float:
        return float((await client.infer("wide", X, timeout=30))[0, 0])

    async def main() -> None:
        async with yard.async_client(arena_bytes=ARENA_BYTES) as client:
            assert await asyncio.gather(*(one(client) for _ in range(12))) == [-1.0] * 12
            held = [await client.infer("wide", X, timeout=30) for _ in range(3)]
            with pytest.raises(ArenaExhausted):
                await client.infer("wide", X, timeout=30)
            held.clear()
            assert await one(client) == -1

    asyncio.run(main())


def test_a_done_callback_waits_for_room_in_the_client_and_not_for_itself(yard: Yard) -> None:
    chained: list[Any] = []
    with yard.client(arena_bytes=ARENA_BYTES) as client:

        def more(future: Any) -> None:
            chained.append(client.submit("wide", future.result(), timeout=30))

        futures = [client.submit("wide", X, timeout=30)]
        futures[0].add_done_callback(more)
        futures[0].result(30)
        while not chained:
            time.sleep(0.001)
        futures.clear()
        assert (chained[0].result(30) == 1).all()


def test_an_async_client_begins_anew_on_another_loop_when_the_first_has_closed(yard: Yard) -> None:
    client = yard.async_client()

    async def one() -> float:
        return float((await client.infer("wide", X, timeout=30))[0, 0])

    async def leave_something() -> None:
        client.submit("wide", X)
        await asyncio.sleep(0)

    assert asyncio.run(one()) == -1
    asyncio.run(leave_something())
    assert asyncio.run(one()) == -1
    asyncio.run(client.close())


def test_on_two_loops_at_once_an_async_client_says_what_to_do(yard: Yard) -> None:
    client = yard.async_client()

    async def one() -> float:
        return float((await client.infer("wide", X, timeout=30))[0, 0])

    async def main() -> None:
        assert await one() == -1
        with pytest.raises(InvalidRequest, match="one AsyncClient per loop"):
            await asyncio.to_thread(asyncio.run, one())
        assert await one() == -1
        task = client.submit("wide", X)
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(Cancelled):
            await task

    asyncio.run(main())
