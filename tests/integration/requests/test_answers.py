"""Requests through a real yard: whatever the way and the crowd, the answers are plain onnxruntime's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import (
    ArenaExhausted,
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Priority,
    UnknownModel,
)
from batchyard.client import Yard

from ..gateways import Gateway, behind_a_gateway, everywhere
from .rows import MAX_BATCH, WIDE, rows

# ---- every way of asking ------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("priority", list(Priority))
def test_infer_answers_like_plain_onnxruntime_at_every_priority(
    client: Client, paths: dict[str, Path], reference: Any, priority: Priority
) -> None:
    for count in (1, 3, MAX_BATCH):
        x = rows(count, seed=count)
        y = client.infer("net", x, priority=priority)
        np.testing.assert_allclose(y, reference(paths["net"], x=x)[0], rtol=1e-4, atol=1e-5)


@everywhere
def test_many_threads_share_a_client_and_each_gets_its_own_answers(
    client: Client, paths: dict[str, Path], reference: Any
) -> None:
    def work(seed: int) -> None:
        for number in range(40):
            x = rows(1 + number % 4, seed=seed * 1000 + number)
            y = client.infer("net", x, priority=number % 4)
            np.testing.assert_allclose(y, reference(paths["net"], x=x)[0], rtol=1e-4, atol=1e-5)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, seed) for seed in range(6)]:
            done.result()


CLIENT_PROCESS = """
import sys, numpy as np, batchyard
seed = int(sys.argv[2])
rng = np.random.default_rng(seed)
with batchyard.Client(sys.argv[1]) as client:
    for number in range(60):
        x = rng.standard_normal((1 + number % 5, 4)).astype(np.float32)
        assert (client.infer("neg", x) == -x).all()
    futures = [(x, client.submit("neg", x)) for x in rng.standard_normal((100, 1, 4)).astype(np.float32)]
    assert all((future.result() == -x).all() for x, future in futures)
"""


@everywhere
def test_many_processes_share_a_yard_and_each_gets_its_own_answers(address: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CLIENT_PROCESS, address, str(seed)]) for seed in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]


@everywhere
def test_submit_gives_futures_with_answers_and_receipts(
    client: Client, paths: dict[str, Path], reference: Any
) -> None:
    inputs = [rows(1 + number % 3, seed=number) for number in range(100)]
    futures = [client.submit("net", x, priority=number % 4) for number, x in enumerate(inputs)]
    for x, future in zip(inputs, futures, strict=True):
        np.testing.assert_allclose(future.result(20), reference(paths["net"], x=x)[0], rtol=1e-4, atol=1e-5)
        assert future.reply is not None
        assert future.reply.receipt.provider == "cpu"
        assert 1 <= future.reply.receipt.rows <= MAX_BATCH


@everywhere
def test_map_answers_in_order(client: Client) -> None:
    inputs = [np.full((1, 4), number, np.float32) for number in range(200)]
    answers = list(client.map("neg", iter(inputs), window=16))
    assert [float(y[0, 0]) for y in answers] == [-float(number) for number in range(200)]


@everywhere
def test_map_of_a_client_that_nobody_else_holds_answers_to_its_end(address: str) -> None:
    answers = Client(address).map("neg", (np.full((1, 4), n, np.float32) for n in range(20)), window=4)
    assert [float(y[0, 0]) for y in answers] == [-float(n) for n in range(20)]


def test_map_in_an_arena_for_a_few_waits_for_room_and_answers_all(yard: Yard) -> None:
    with yard.client(arena_bytes=4096) as small:
        inputs = [np.full((1, 4), number, np.float32) for number in range(300)]
        answers = [answer.copy() for answer in small.map("neg", inputs, window=64)]
    assert all((answer == -number).all() for number, answer in enumerate(answers))


@everywhere
def test_the_first_error_ends_map_and_leaves_the_client_usable(client: Client) -> None:
    good = np.ones((1, 4), np.float32)
    answers = client.map("neg", [good, good, good.astype(np.float64), good], window=1)
    assert (next(answers) == -1).all()
    assert (next(answers) == -1).all()
    with pytest.raises(InvalidRequest, match="astype"):
        next(answers)
    assert (client.infer("neg", good) == -1).all()


@behind_a_gateway
def test_leaving_map_early_cancels_the_rest_behind_a_gateway(client: Client, served: Gateway, tools: Any) -> None:
    answers = client.map("slow", [np.zeros((1, 512), np.float32)] * 20, window=20)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    tools.until(lambda: served.gauge("requests_in_yard") == 0, what="the end of what was cancelled")


def test_leaving_map_early_cancels_the_rest(client: Client, tools: Any) -> None:
    answers = client.map("slow", [np.zeros((1, 512), np.float32)] * 20, window=20)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    session = client._sessions.current
    assert session is not None
    assert session.memory is not None
    memory = session.memory

    def is_free() -> bool:
        session.recover_slots()
        return memory.used_bytes == 0

    tools.until(is_free, what="slots of what was cancelled")


@everywhere
def test_asyncio_answers_like_the_others(address: str, paths: dict[str, Path], reference: Any) -> None:
    async def main() -> None:
        async with AsyncClient(address) as client:
            inputs = [rows(1 + number % 3, seed=number) for number in range(100)]
            answers = await asyncio.gather(*(client.infer("net", x) for x in inputs))
            for x, y in zip(inputs, answers, strict=True):
                np.testing.assert_allclose(y, reference(paths["net"], x=x)[0], rtol=1e-4, atol=1e-5)
            collected = [
                float(y[0, 0])
                async for y in client.map("neg", (np.full((1, 4), n, np.float32) for n in range(50)))
            ]
            assert collected == [-float(number) for number in range(50)]
            array = await client.empty((2, 4))
            array[:] = 3
            assert ((await client.infer("neg", array)) == -3).all()
            assert {info.name for info in await client.models()} == set(paths)

    asyncio.run(main())


@everywhere
def test_several_inputs_and_outputs_go_by_name(client: Client) -> None:
    a, b = rows(3, 4, 1), rows(3, 4, 2)
    answer = client.infer("pair", {"b": b, "a": a})
    assert isinstance(answer, dict)
    np.testing.assert_array_equal(answer["d"], a - b)
    np.testing.assert_array_equal(answer["i"], a.astype(np.int64))


@everywhere
def test_outputs_of_unknown_size_come_back_inline_for_any_width_and_any_rows(client: Client) -> None:
    for shape in ((1, 3), (2, 70), (20, 5), (1, 0), (1, 3)):
        x = rows(*shape)
        y = client.infer("free", x)
        np.testing.assert_array_equal(y, -x)


@everywhere
def test_a_model_that_cannot_batch_answers_one_request_after_another(client: Client) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    futures = [client.submit("alone", x + number) for number in range(20)]
    for number, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(20), -(x + number))
    (info,) = [info for info in client.models() if info.name == "alone"]
    assert "every axis of output 'y' is fixed" in info.alone_reason


@everywhere
def test_float16_travels_as_it_is(client: Client) -> None:
    x = np.arange(8, dtype=np.float16).reshape(2, 4)
    y = client.infer("half", x)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, -x)


@everywhere
@pytest.mark.parametrize("count", [MAX_BATCH + 1, 100])
def test_more_rows_than_a_batch_takes_are_split_and_joined_in_order(
    client: Client, paths: dict[str, Path], reference: Any, count: int
) -> None:
    x = rows(count)
    (expected,) = reference(paths["net"], x=x)
    np.testing.assert_allclose(client.infer("net", x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(client.submit("net", x).result(20), expected, rtol=1e-4, atol=1e-5)


# ---- memory -------------------------------------------------------------------------------------


def test_an_array_made_by_empty_is_copied_by_nobody(client: Client) -> None:
    x = client.empty((2, WIDE))
    x[:] = rows(2, WIDE)
    before = client.bytes_copied
    client.infer("wide", x)  # a worker's first run shows which outputs are written where it is told
    for part in (x, x[1:], x[:1]):
        reply = client.request("wide", part)
        np.testing.assert_array_equal(reply.value, -part)
        assert reply.receipt.copied_bytes == 0
    future = client.submit("wide", x)
    np.testing.assert_array_equal(future.result(20), -x)
    assert future.reply is not None
    assert future.reply.receipt.copied_bytes == 0
    assert client.bytes_copied == before


def test_an_ordinary_array_is_copied_once_into_shared_memory(client: Client) -> None:
    x = rows(2, WIDE)
    before = client.bytes_copied
    assert client.request("wide", x).receipt.copied_bytes == 0
    assert client.bytes_copied == before + x.nbytes


@behind_a_gateway
def test_without_shared_memory_every_input_is_copied_and_results_are_the_callers(client: Client) -> None:
    before = client.bytes_copied
    x = client.empty((2, WIDE))
    x[:] = rows(2, WIDE)
    reply = client.request("wide", x)
    assert client.bytes_copied == before + x.nbytes
    assert (reply.receipt.provider, reply.receipt.rows) == ("cpu", 2)
    assert reply.receipt.compute_ns > 0
    y = reply.value
    assert isinstance(y, np.ndarray)
    y += x
    assert not y.any()


@behind_a_gateway
def test_steps_of_a_state_go_by_value(client: Client) -> None:
    with client.sequence("counter") as counter:
        assert [float(np.sum(counter.infer(np.ones((1, 4), np.float32)))) for _ in range(3)] == [4.0, 8.0, 12.0]


def test_results_stay_what_they_are_while_they_are_held_and_their_slots_come_back(yard: Yard) -> None:
    with yard.client() as client:
        client.infer("neg", np.zeros((1, 4), np.float32))
        memory = client._sessions.current.memory  # type: ignore[union-attr]
        assert memory is not None
        baseline = memory.used_bytes
        held = [client.infer("neg", np.full((1, 4), number, np.float32)) for number in range(50)]
        held += [
            client.submit("neg", np.full((1, 4), number, np.float32)).result(20) for number in range(50, 100)
        ]
        assert memory.used_bytes > baseline
        for number, y in enumerate(held):
            assert (y == -number).all()
        views = [y[:, 1:] for y in held]
        del held, y
        assert memory.used_bytes > baseline
        del views
        assert memory.used_bytes == baseline


@everywhere
def test_results_outlive_their_client(address: str) -> None:
    client = Client(address)
    y = client.infer("neg", np.full((1, 4), 7, np.float32))
    client.close()
    assert (y == -7).all()


def test_a_full_arena_is_an_error_that_ends_when_results_are_dropped(yard: Yard) -> None:
    with Client(yard.url, arena_bytes=1 << 20) as client:
        held = [client.infer("wide", rows(1, WIDE)) for _ in range(5)]
        with pytest.raises(ArenaExhausted, match="arena_bytes"):
            client.infer("wide", rows(1, WIDE), timeout=0.2)
        with pytest.raises(ArenaExhausted):
            client.empty((1 << 20,), np.uint8)
        with pytest.raises(ArenaExhausted):
            client.submit("wide", rows(1, WIDE), timeout=0.2)
        held.clear()
        assert client.infer("wide", rows(1, WIDE)) is not None
        assert client.submit("wide", rows(1, WIDE)).result(20) is not None


def test_submit_waits_for_room_instead_of_failing_while_requests_are_under_way(yard: Yard) -> None:
    with Client(yard.url, arena_bytes=1 << 20) as client:
        done = 0
        for future in [client.submit("wide", rows(1, WIDE), timeout=20) for _ in range(3)]:
            done += future.result(20) is not None
            del future
        assert done == 3
        total = sum(1 for _ in client.map("wide", [rows(1, WIDE)] * 20, window=1))
        assert total == 20


def test_slots_of_abandoned_requests_come_back_to_a_client_with_one_connection(
    yard: Yard, tools: Any
) -> None:
    """Nobody but the next call on it reads what an idle connection is told."""
    nbytes = 512 * 4 * 64
    with Client(yard.url, arena_bytes=4 * nbytes) as client:
        client.wait_ready("slow")
        for _ in range(6):
            with pytest.raises((DeadlineExceeded, ArenaExhausted)):
                client.infer("slow", np.zeros((64, 512), np.float32), timeout=0.01)
        x = np.ones((64, 512), np.float32)
        np.testing.assert_array_equal(client.infer("slow", x, timeout=20), x)


# ---- mistakes -----------------------------------------------------------------------------------


@everywhere
def test_mistakes_in_the_call_are_errors_at_once_that_say_what_to_write(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"x.astype\(np.float32\)"):
        client.infer("net", np.zeros((1, 16)))
    with pytest.raises(InvalidRequest, match=r"x\[None\]"):
        client.submit("net", np.zeros(16, np.float32))
    with pytest.raises(UnknownModel, match="this yard has: alone"):
        client.infer("nte", np.zeros((1, 16), np.float32))
    with pytest.raises(UnknownModel):
        client.infer("n" * 65, np.zeros((1, 16), np.float32))
    with pytest.raises(UnknownModel):
        client.wait_ready("n" * 5000)
    with pytest.raises(InvalidRequest, match="seconds above"):
        client.infer("net", rows(1), timeout=0)
    with pytest.raises(InvalidRequest, match="window"):
        list(client.map("net", [], window=0))


@everywhere
def test_a_mistake_of_one_call_does_not_touch_what_else_is_under_way(client: Client) -> None:
    x = np.ones((1, 512), np.float32)
    futures = [client.submit("slow", x) for _ in range(4)]
    for priority in (-1, 4, 99):
        with pytest.raises(InvalidRequest, match="priority"):
            client.submit("slow", x, priority=priority)
        with pytest.raises(InvalidRequest, match="priority"):
            client.infer("neg", np.zeros((1, 4), np.float32), priority=priority)
    with pytest.raises(UnknownModel):
        client.submit("n" * 65, x)
    assert all((future.result(20) == x).all() for future in futures)


@everywhere
def test_a_request_that_makes_its_batch_fail_fails_alone(client: Client) -> None:
    good = [np.array([number % 5], np.int64) for number in range(12)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(client.infer, "slow", np.zeros((1, 512), np.float32))
        futures = [client.submit("lookup", k) for k in good]
        bad = [client.submit("lookup", np.array([99], np.int64)) for _ in range(3)]
        futures += [client.submit("lookup", k) for k in good]
        for future in bad:
            with pytest.raises(ModelFailed, match="lookup"):
                future.result(20)
        for k, future in zip(good * 2, futures, strict=True):
            assert future.result(20).shape == (1, 3), k
        blocked.result(20)
    assert client.infer("lookup", np.array([4, 0], np.int64)) is not None
