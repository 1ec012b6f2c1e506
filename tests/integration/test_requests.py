"""Requests through a real yard: whatever the way and the crowd, the answers are plain onnxruntime's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import (
    ArenaExhausted,
    AsyncClient,
    BatchyardError,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    Priority,
    UnknownModel,
    serve,
)
from batchyard.client import Yard

from .gateways import Gateway, behind_a_gateway, everywhere

MAX_BATCH = 8
WIDE = 40_000  # floats: 160 kB a row, enough to be run where it lies


@pytest.fixture(scope="module")
def paths(onnx_models: Any, slow_model: Path, neg_model: Path) -> dict[str, Path]:
    rng = np.random.default_rng(5)
    return {
        "net": onnx_models.affine("net", 16, 8),
        "neg": neg_model,
        "slow": slow_model,
        "wide": onnx_models.unary("wide", "Neg", ["n", WIDE]),
        "free": onnx_models.unary("free_axis", "Neg", ["n", "width"]),
        "alone": onnx_models.unary("alone", "Neg", [3, 4]),
        "half": onnx_models.unary("half", "Neg", ["n", 4], 10),
        "pair": onnx_models.save(
            "pair",
            [("Sub", ["a", "b"], ["d"], {}), ("Cast", ["a"], ["i"], {"to": 7})],
            [("a", 1, ["n", 4]), ("b", 1, ["n", 4])],
            [("d", 1, ["n", 4]), ("i", 7, ["n", 4])],
        ),
        "counter": onnx_models.save(
            "counter",
            [("Add", ["x", "state"], ["stateN"], {}), ("Identity", ["stateN"], ["y"], {})],
            [("x", 1, ["n", 4]), ("state", 1, ["n", 4])],
            [("y", 1, ["n", 4]), ("stateN", 1, ["n", 4])],
        ),
        "lookup": onnx_models.save(  # an index past 4 fails the whole run
            "lookup",
            [("Gather", ["table", "k"], ["y"], {"axis": 0})],
            [("k", 7, ["n"])],
            [("y", 1, ["n", 3])],
            {"table": rng.standard_normal((5, 3)).astype(np.float32)},
        ),
    }


@pytest.fixture(scope="module")
def yard(paths: dict[str, Path]) -> Iterator[Yard]:
    with serve(paths, workers=2, max_batch=MAX_BATCH, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as made:
        yield made


def rows(count: int, width: int = 16, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


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


# ---- time ---------------------------------------------------------------------------------------


def saturate(client: Client, count: int = 400) -> list[Any]:
    """Keep both workers busy until these are cancelled: each takes a run of its own."""
    client.wait_ready("slow")
    x = np.zeros((MAX_BATCH, 512), np.float32)
    busy = [client.submit("slow", x, timeout=600) for _ in range(count)]
    busy[0].result(20)  # the I/O thread has sent them: what comes now comes after them
    ended = [future for future in busy if future.done()]
    assert len(ended) < count // 2, [future.exception() for future in ended]
    return busy


@everywhere
@pytest.mark.parametrize("how", ["infer", "submit", "asyncio"])
def test_a_request_that_cannot_be_done_in_time_is_refused_at_once_or_ends_at_its_deadline(
    address: str, client: Client, how: str
) -> None:
    busy = saturate(client)
    x = np.zeros((1, 512), np.float32)

    async def ask() -> None:
        async with AsyncClient(address) as other:
            await other.models()
            began.append(time.monotonic())
            await other.infer("slow", x, deadline=0.05, priority=Priority.LOW)

    ways = {
        "infer": lambda: client.infer("slow", x, deadline=0.05, priority=Priority.LOW),
        "submit": lambda: client.submit("slow", x, deadline=0.05, priority=Priority.LOW).result(20),
        "asyncio": lambda: asyncio.run(ask()),
    }
    began = [time.monotonic()]
    with pytest.raises((DeadlineExceeded, Overloaded)) as caught:
        ways[how]()
    took_s = time.monotonic() - began[-1]
    assert not all(future.done() for future in busy), "it waited for what was before it"
    if isinstance(caught.value, Overloaded):
        assert caught.value.retry_after_s > 0
    else:
        assert took_s >= 0.045
    for future in busy:
        future.cancel()


@everywhere
def test_timeout_is_the_callers_patience_even_with_a_later_deadline(client: Client) -> None:
    busy = saturate(client)
    x = np.zeros((1, 512), np.float32)
    with pytest.raises(DeadlineExceeded):
        client.infer("slow", x, timeout=0.05, deadline=100_000, priority=Priority.LOW)
    with pytest.raises(DeadlineExceeded):
        client.submit("slow", x, timeout=0.05, deadline=100_000, priority=Priority.LOW).result(20)
    assert not all(future.done() for future in busy), "they waited for what was before them"
    for future in busy:
        future.cancel()


@everywhere
def test_a_deadline_that_is_years_away_is_a_deadline_like_any_other(yard: Yard, client: Client) -> None:
    x = np.ones((1, 512), np.float32)
    for forever in (1e7, 9e8):
        assert client.infer("slow", x, timeout=forever) is not None
        assert client.submit("slow", x, deadline=forever, timeout=forever).result(20) is not None
    assert yard.snapshot()["workers"] == 2
    assert [process.restarts for process in yard.processes] == [0, 0, 0]


def test_cancelling_a_future_ends_it_and_its_work_is_never_run(
    yard: Yard, client: Client, tools: Any
) -> None:
    def ended(outcome: str) -> int:
        return sum(
            n for model, _, how, n in yard.snapshot()["requests"] if model == "slow" and how == outcome
        )

    before = ended("cancelled")
    busy = saturate(client, 40)
    late = [client.submit("slow", np.zeros((1, 512), np.float32)) for _ in range(5)]
    # What is cancelled before it has left never comes to the broker, and is counted nowhere.
    tools.until(lambda: all(future._request is None or future._request.is_sent for future in late))
    assert all(future.cancel() for future in late)
    assert all(future.cancelled() for future in late)
    with pytest.raises(concurrent.futures.CancelledError):
        late[0].result(30)
    for future in busy:
        future.result(20)
    tools.until(lambda: ended("cancelled") >= before + 5, what="cancellations at the broker")
    assert late[0].cancel()  # again: it is still cancelled
    assert not busy[0].cancel()  # it is done
    tools.until(lambda: not client._io.busy, what="slots of what was cancelled")  # type: ignore[union-attr]


@contextlib.contextmanager
def standing_still(client: Client, tools: Any) -> Iterator[None]:
    """No worker of `slow` runs anything."""
    pids = tools.worker_pids(client, "slow")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@behind_a_gateway
def test_cancelling_a_future_cancels_its_request_behind_a_gateway(
    client: Client, served: Gateway, tools: Any
) -> None:
    x = np.zeros((1, 512), np.float32)
    with standing_still(client, tools):
        futures = [client.submit("slow", x, timeout=600) for _ in range(30)]
        tools.until(lambda: served.gauge("requests_in_yard") == 30, 60, "requests in the yard")
        assert all(future.cancel() for future in futures)
    tools.until(lambda: served.gauge("requests_in_yard") == 0, 60, "the end of what was cancelled")
    assert (client.infer("slow", x) == x).all()


@everywhere
def test_a_loops_callback_gets_the_reply_or_the_error_and_its_own_faults_disturb_nobody(address: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        complaints: list[Any] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))
        outcomes: dict[str, asyncio.Future[Any]] = {}

        def into(name: str) -> Any:
            future = outcomes[name] = loop.create_future()
            return future.set_result

        def fails(outcome: Any) -> None:
            raise ZeroDivisionError

        client = AsyncClient(address)
        x = client.empty_now((2, 4))
        x[:] = 3
        client.start("neg", x, fails)
        client.start("neg", x, into("reply"))
        client.start("nobody", x, into("unknown"))
        client.start("neg", x.astype(np.float64), into("wrong"))
        with pytest.raises(InvalidRequest):
            client.start("neg", x, fails, timeout=-1)
        found = dict(zip(outcomes, await asyncio.wait_for(asyncio.gather(*outcomes.values()), 30), strict=True))
        assert (found["reply"].value == -3).all()
        assert found["reply"].receipt.rows >= 2
        errors = {name: type(outcome) for name, outcome in found.items() if name != "reply"}
        assert errors == {"unknown": UnknownModel, "wrong": InvalidRequest}
        client.start("slow", np.zeros((1, 512), np.float32), into("closed"))
        await asyncio.sleep(0)
        await client.close()
        assert isinstance(await asyncio.wait_for(outcomes["closed"], 10), BatchyardError)
        assert [type(error) for error in complaints] == [ZeroDivisionError]

    asyncio.run(main())


def test_cancelling_an_asyncio_task_cancels_its_request(yard: Yard, tools: Any) -> None:
    async def main() -> None:
        async with yard.async_client() as client:
            x = np.zeros((MAX_BATCH, 512), np.float32)
            await client.wait_ready("slow")
            tasks = [client.submit("slow", x) for _ in range(12)]
            await asyncio.sleep(0.02)
            for task in tasks[6:]:
                assert task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(y, np.ndarray) for y in done[:6])
            assert all(isinstance(y, asyncio.CancelledError) for y in done[6:])
            channel = client._link.engine  # type: ignore[union-attr]
            for _ in range(2000):
                if not channel.pending:
                    break
                await asyncio.sleep(0.005)
            assert not channel.pending, "slots of what was cancelled"

    asyncio.run(main())


@behind_a_gateway
def test_cancelling_an_asyncio_task_cancels_its_request_behind_a_gateway(
    address: str, client: Client, served: Gateway, tools: Any
) -> None:
    async def main() -> None:
        async with AsyncClient(address) as asking:
            with standing_still(client, tools):
                tasks = [asking.submit("slow", np.zeros((1, 512), np.float32), timeout=600) for _ in range(30)]
                await asyncio.to_thread(tools.until, lambda: served.gauge("requests_in_yard") == 30, 60)
                for task in tasks:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(y, asyncio.CancelledError) for y in done), done
            await asyncio.to_thread(tools.until, lambda: served.gauge("requests_in_yard") == 0, 60)

    asyncio.run(main())


@everywhere
def test_wait_and_as_completed_take_our_futures_cancelled_ones_too(client: Client) -> None:
    futures = [client.submit("slow", np.zeros((MAX_BATCH, 512), np.float32)) for _ in range(8)]
    waiting = [False]

    def wait() -> Any:
        waiting[0] = True
        return concurrent.futures.wait(futures, timeout=20)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waited = pool.submit(wait)
        cancelled = [future for future in futures[4:] if future.cancel()]
        assert cancelled
        done, not_done = waited.result(20)
    assert done == set(futures)
    assert not_done == set()
    assert set(concurrent.futures.as_completed(futures, timeout=5)) == set(futures)
    assert all(future.exception() is None for future in futures if not future.cancelled())


@everywhere
def test_done_callbacks_may_submit_again(client: Client) -> None:
    finished = threading.Event()
    count = [0]

    def again(future: Any) -> None:
        count[0] += 1
        if count[0] == 20 or future.exception():
            finished.set()
        else:
            client.submit("neg", future.result()).add_done_callback(again)

    client.submit("neg", np.ones((1, 4), np.float32)).add_done_callback(again)
    assert finished.wait(20)
    assert count[0] == 20


@everywhere
def test_a_done_callback_that_does_not_return_holds_up_no_other_call(address: str) -> None:
    x, begun, go = np.ones((1, 4), np.float32), threading.Event(), threading.Event()

    def stuck(_: Any) -> None:
        begun.set()
        go.wait(60)

    with Client(address) as client:
        future = client.submit("neg", x)
        future.add_done_callback(lambda _: None)
        client.submit("slow", np.zeros((1, 512), np.float32)).add_done_callback(stuck)
        try:
            assert begun.wait(20)
            assert (client.infer("neg", x) == -1).all()
            with pytest.raises(UnknownModel):
                client.infer("nothing", x)
            if not address.startswith("ipc"):  # there, one thread settles futures and calls back
                assert (client.submit("neg", x).result(20) == -1).all()
        finally:
            go.set()


# ---- closing ------------------------------------------------------------------------------------


@everywhere
def test_closing_a_client_ends_what_other_threads_and_futures_wait_for_with_a_typed_error(address: str) -> None:
    client = Client(address)
    client.wait_ready("slow")
    x = np.zeros((MAX_BATCH, 512), np.float32)
    futures = [client.submit("slow", x) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.infer, "slow", x) for _ in range(3)]
        futures[0].result(20)  # so that the calls are on their way
        client.close()
        for call in calls:
            error = call.exception(20)
            assert error is None or isinstance(error, BatchyardError), repr(error)
    for future in futures:
        error = future.exception(20)
        assert error is None or isinstance(error, BatchyardError), repr(error)
    with pytest.raises(BatchyardError, match="closed"):
        client.infer("slow", x)
    client.close()


@everywhere
def test_closing_an_asyncio_client_with_requests_on_the_way_is_quiet(address: str) -> None:
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        client = AsyncClient(address)
        await client.wait_ready("slow")
        tasks = [client.submit("slow", np.zeros((1, 512), np.float32)) for _ in range(3)]
        await asyncio.sleep(0)
        await client.close()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(isinstance(error, BatchyardError) for error in done), done
        await asyncio.sleep(0.02)

    asyncio.run(main())
    assert complaints == []


@everywhere
def test_clients_that_come_and_go_do_not_disturb_one_that_stays(address: str, client: Client) -> None:
    """Their descriptors are reused at the broker: an end that is reported late must hit no one else."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def hammer() -> None:
        x = np.ones((1, 4), np.float32)
        while not stop.is_set():
            try:
                assert (client.infer("neg", x) == -1).all()
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(60):
            with Client(address) as other:
                x = np.full((1, 4), number, np.float32)
                assert (other.infer("neg", x) == -x).all()
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert errors == []


# ---- bounds -------------------------------------------------------------------------------------


def test_past_the_bound_of_what_is_under_way_a_request_is_refused_with_when_to_come_back(
    slow_model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "batchyard.toml"
    config.write_text(
        f'models_root = "{slow_model.parent}"\n[models.slow]\nfile = "slow.onnx"\nmax_batch = 1\nwarmup = false\n'
        "[limits]\nqueue_rows_max = 6\n"
    )
    made = Yard(["--config", str(config)], 1, 1)
    try:
        with made.client() as client:
            client.wait_ready("slow")
            x = np.ones((1, 512), np.float32)
            futures = [client.submit("slow", x) for _ in range(20)]
            concurrent.futures.wait(futures, 20)
            failed = [future.exception() for future in futures if future.exception()]
            assert 0 < len(failed) <= 14
            for error in failed:
                assert isinstance(error, Overloaded)
                assert 0 < error.retry_after_s < 10
                assert "queue_rows_max" in str(error)
            assert (client.infer("slow", x) == x).all()
    finally:
        made.close()


def test_a_model_that_cannot_be_loaded_fails_the_start_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"garbage")
    with pytest.raises(ModelFailed, match="broken"):
        serve(broken)


DROPPED = """
import asyncio, gc, sys, threading
import numpy as np, batchyard
x = np.ones((1, 4), np.float32)

async def main():
    client = batchyard.AsyncClient(sys.argv[1])
    client.itself = client
    await client.infer("neg", x)

if sys.argv[2] == "asyncio":
    asyncio.run(main())
else:
    client = batchyard.Client(sys.argv[1])
    client.itself = client
    client.infer("neg", x)
    if sys.argv[2] == "submit":
        client.submit("neg", x).result(20)
    del client
gc.collect()
print("collected")
"""


@everywhere
@pytest.mark.parametrize("how", ["infer", "submit", "asyncio"])
def test_a_client_that_was_dropped_without_closing_does_not_stop_the_garbage_collector(
    address: str, how: str
) -> None:
    """A ZeroMQ context that is collected before its sockets waits for them for ever."""
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, address, how], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "collected\n"
    assert done.stderr == ""
