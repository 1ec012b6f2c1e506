"""The broker is killed or stopped: every request has one outcome, in time, and no memory stays behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import (
    AsyncClient,
    BrokerLost,
    Cancelled,
    Client,
    DeadlineExceeded,
    Overloaded,
    serve,
)
from batchyard.client import Yard
from batchyard.tests.integration.faulty import (
    CONNECT_TIMEOUT_S,
    MAX_BATCH,
    PATIENCE_S,
    X,
    slow_input,
    works,
)
from batchyard.transport.processes import Backoff


@pytest.fixture(scope="module")
def yard(slow_model: Path, neg_model: Path) -> Iterator[Yard]:
    with serve({"slow": slow_model, "neg": neg_model}, workers=1, max_batch=MAX_BATCH, threads=1) as made:
        yield made


def test_what_a_killed_broker_owed_is_sent_to_the_next_one_by_every_kind_of_call(
    yard: Yard, tools: Any
) -> None:
    async def ask(started: threading.Event) -> None:
        async with yard.async_client() as client:
            await client.wait_ready("slow")
            tasks = [client.submit("slow", slow_input(number), timeout=300) for number in range(24)]
            await asyncio.sleep(0.01)  # so that they are on their way
            started.set()
            for number, task in enumerate(tasks):
                np.testing.assert_array_equal(await task, slow_input(number))

    def infer(client: Client, value: float) -> None:
        np.testing.assert_array_equal(client.infer("slow", slow_input(value), timeout=300), slow_input(value))

    def mapped(client: Client, started: threading.Event) -> None:
        inputs = [slow_input(number) for number in range(24)]
        for x, y in zip(inputs, client.map("slow", inputs, window=16, timeout=300), strict=True):
            started.set()
            np.testing.assert_array_equal(y, x)

    with yard.client() as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        client.wait_ready("slow")
        kept = client.infer("neg", X)
        started = [threading.Event(), threading.Event()]
        calls = [
            pool.submit(lambda: asyncio.run(ask(started[0]))),
            pool.submit(mapped, client, started[1]),
        ]
        calls += [pool.submit(infer, client, value) for value in range(3)]
        assert all(event.wait(30) for event in started)
        futures = []
        for number in range(24):
            x = slow_input(number)
            futures.append(client.submit("slow", x, timeout=300))
            x[:] = -1  # it is the caller's own again: what was copied counts
        placed = client.empty((MAX_BATCH, 512))
        placed[:] = 77
        futures.append(client.submit("slow", placed, timeout=300))
        del placed
        futures[0].result(300)  # the I/O thread has sent them, and each is a run of its own
        assert not futures[-1].done()
        broker = yard.processes[0].pid
        tools.kill(broker)
        for number, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(300), slow_input(number if number < 24 else 77))
        for call in calls:
            call.result(300)
        assert yard.processes[0].pid != broker
        assert (kept == -1).all()
        assert works(client)


def test_a_model_that_is_not_idempotent_is_not_run_again(
    neg_model: Path, slow_model: Path, tools: Any
) -> None:
    async def ask(url: str, started: threading.Event) -> None:
        async with AsyncClient(url) as client:
            await client.wait_ready("once")
            task = client.submit("once", slow_input(rows=400), timeout=60)
            await asyncio.sleep(0.05)
            started.set()
            with pytest.raises(BrokerLost, match="not idempotent"):
                await task

    folder = Path(tempfile.mkdtemp(prefix="once-"))
    config = folder / "batchyard.toml"
    config.write_text(
        f'models_root = "{slow_model.parent}"\n'
        f'[models.once]\nfile = "{slow_model.name}"\nidempotent = false\nmax_batch = {MAX_BATCH}\n'
        f'[models.neg]\nfile = "{neg_model.name}"\n'
    )
    yard = Yard(["--config", str(config)], 1, 1)
    try:
        with yard.client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert client.wait_ready("once", 60).idempotent is False
            started = threading.Event()
            future = client.submit("once", slow_input(rows=400), timeout=60)
            calls = [
                pool.submit(client.infer, "once", slow_input(rows=400), timeout=60),
                pool.submit(lambda: list(client.map("once", [slow_input(rows=400)], timeout=60))),
            ]
            in_asyncio = pool.submit(lambda: asyncio.run(ask(yard.url, started)))
            assert started.wait(30)
            tools.until(lambda: yard.snapshot()["rows_under_way"] == 1600)
            tools.kill(yard.processes[0].pid)
            killed_s = time.monotonic()
            for call in [future, *calls]:
                error = call.exception(PATIENCE_S)
                assert isinstance(error, BrokerLost)
                assert "not idempotent" in str(error)
            in_asyncio.result(30)
            assert time.monotonic() - killed_s < PATIENCE_S / 2, "their own timeouts ended them"
            tools.until(lambda: works(client), 30)
    finally:
        yard.close()
        shutil.rmtree(folder)


def test_when_no_broker_comes_back_a_request_ends_at_its_deadline_and_says_how_long_it_waited(
    slow_model: Path, tools: Any
) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.wait_ready("slow")
            await client.infer("slow", slow_input(), deadline=1.0)

    ways = {
        "infer": lambda client: client.infer("slow", slow_input(), deadline=1.0),
        "submit": lambda client: client.submit("slow", slow_input(), deadline=1.0).result(30),
        "map": lambda client: list(client.map("slow", [slow_input()] * 2, deadline=1.0)),
        "asyncio": lambda client: asyncio.run(ask(client._url)),
    }
    with serve({"slow": slow_model}, threads=1, max_batch=MAX_BATCH) as yard, yard.client() as client:
        client.wait_ready("slow")
        (worker,) = tools.worker_pids(client, "slow")
        os.kill(worker, signal.SIGSTOP)  # nothing is answered before the broker's end
        try:
            with concurrent.futures.ThreadPoolExecutor(len(ways)) as pool:
                began = time.monotonic()
                calls = {how: pool.submit(way, client) for how, way in ways.items()}
                tools.until(lambda: yard.snapshot()["rows_under_way"] == 5 * MAX_BATCH)
                yard._stop.set()  # nobody starts it again
                yard._keeper.thread.join()
                tools.kill(yard.processes[0].pid)
                errors = {how: call.exception(30) for how, call in calls.items()}
                assert 0.9 <= time.monotonic() - began < PATIENCE_S / 2, "they waited for the default timeout"
        finally:
            os.kill(worker, signal.SIGCONT)
        assert {how: type(error) for how, error in errors.items()} == dict.fromkeys(ways, BrokerLost)
        assert all("no other came within" in str(error) for error in errors.values())


def test_what_waits_for_a_broker_can_be_cancelled_and_closing_ends_it(slow_model: Path, tools: Any) -> None:
    with serve({"slow": slow_model}, threads=1, max_batch=MAX_BATCH) as yard:
        client = yard.client()
        client.wait_ready("slow")
        futures = [client.submit("slow", slow_input(rows=400), timeout=60) for _ in range(3)]
        tools.until(lambda: yard.snapshot()["rows_under_way"])
        yard._stop.set()
        yard._keeper.thread.join()
        tools.kill(yard.processes[0].pid)
        tools.until(lambda: client._io._session is None)  # type: ignore[union-attr]
        assert futures[0].cancel()
        began = time.monotonic()
        with pytest.raises(BrokerLost, match="no broker answers"):
            client.submit("slow", slow_input(), timeout=0.3)
        assert time.monotonic() - began < CONNECT_TIMEOUT_S, "it waited for a broker beyond its timeout"
        client.close()
        assert [type(future.exception(30)) for future in futures[1:]] == [Cancelled, Cancelled]


def test_five_brokers_are_killed_under_load_and_no_request_and_no_memory_is_lost(
    yard: Yard, tools: Any
) -> None:
    """The broker is started again at once here, instead of after its supervisor's growing patience."""
    gc.collect()
    before = tools.mappings(os.getpid())
    descriptors = len(os.listdir("/proc/self/fd"))
    with yard.client() as client:
        client.wait_ready("neg")
        for kill in range(5):
            inputs = [np.full((1, 4), 100 * kill + number, np.float32) for number in range(50)]
            yard.processes[0].backoff = Backoff(0.01)
            futures = [client.submit("neg", x, timeout=60) for x in inputs]
            tools.kill(yard.processes[0].pid)
            futures += [client.submit("neg", x, timeout=60) for x in inputs]
            for x, future in zip(inputs * 2, futures, strict=True):
                assert (future.result(60) == -x).all()
            assert (client.infer("neg", inputs[0], timeout=60) == -inputs[0]).all()
        del futures, future
        gc.collect()
        assert tools.mappings(os.getpid()) <= before + 1, "the memory of lost sessions"
        assert len(os.listdir("/proc/self/fd")) < descriptors + 20  # 17 are this connection's
        assert len([t for t in threading.enumerate() if t.name == "batchyard-io"]) == 1


def test_a_worker_that_was_busy_when_the_broker_died_serves_the_next_one_for_good(
    yard: Yard, tools: Any
) -> None:
    """It notices twice: by the next broker's refusal of its answer, and by the end of its connection."""
    with yard.client() as client:
        client.wait_ready("slow")
        future = client.submit("slow", slow_input(rows=400), timeout=60)
        tools.until(lambda: yard.snapshot()["batches_lent"])
        tools.kill(yard.processes[0].pid)
        np.testing.assert_array_equal(future.result(60), slow_input(rows=400))
        quiet_until_s = time.monotonic() + 1.2  # the worker looks around when nothing has come for 0.5 s
        tools.until(lambda: time.monotonic() > quiet_until_s)
        for _ in range(3):
            assert (client.infer("neg", X, timeout=5) == -1).all()
        assert yard.snapshot()["workers"] == 1


def test_a_client_that_was_idle_while_the_broker_was_exchanged_works_again(yard: Yard, tools: Any) -> None:
    with yard.client() as client, yard.client() as other:
        assert works(client)
        kept = client.infer("neg", X)
        array = client.empty((1, 4))
        array[:] = 5
        tools.kill(yard.processes[0].pid)
        tools.until(lambda: works(other), 30)
        tools.until(lambda: works(client), 30)
        assert (kept == -1).all()
        assert (client.infer("neg", array) == -5).all()  # it lies in the lost session's memory


def test_map_after_the_broker_was_exchanged_answers_at_the_first_call(yard: Yard, tools: Any) -> None:
    with yard.client() as client, yard.client() as other:
        assert works(client)
        tools.kill(yard.processes[0].pid)
        tools.until(lambda: works(other), 30)
        assert [int(answer[0, 0]) for answer in client.map("neg", [X] * 5)] == [-1] * 5


def test_threads_that_meet_the_end_of_the_broker_get_only_typed_errors(yard: Yard, tools: Any) -> None:
    stop = threading.Event()
    surprises: list[BaseException] = []

    def hammer(client: Client, seed: int) -> None:
        x = np.full((1, 4), seed, np.float32)
        while not stop.is_set():
            try:
                y = (
                    client.infer("neg", x, timeout=20)
                    if seed % 2
                    else client.submit("neg", x, timeout=20).result(30)
                )
                assert (y == -x).all()
            except (BrokerLost, Overloaded):
                continue
            except BaseException as error:
                surprises.append(error)
                return

    with yard.client() as client:
        assert works(client)
        threads = [threading.Thread(target=hammer, args=(client, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                tools.kill(yard.processes[0].pid)
                tools.until(lambda: works(client), 30)
        finally:
            stop.set()
            for thread in threads:
                thread.join(40)
    assert surprises == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("how", ["infer", "infer by deadline", "submit", "asyncio"])
def test_a_broker_that_is_stopped_lets_nobody_wait_past_the_timeout(yard: Yard, tools: Any, how: str) -> None:
    async def ask() -> None:
        async with yard.async_client() as client:
            await client.infer("neg", X)
            stop()
            await client.infer("neg", X, timeout=0.3)

    broker = yard.processes[0].pid
    began: list[float] = []

    def stop() -> None:
        os.kill(broker, signal.SIGSTOP)
        began.append(time.monotonic())

    ways = {
        "infer": lambda client: client.infer("neg", X, timeout=0.3),
        "infer by deadline": lambda client: client.infer("neg", X, deadline=0.3, timeout=30),
        "submit": lambda client: client.submit("neg", X, timeout=0.3).result(30),
        "asyncio": lambda client: asyncio.run(ask()),
    }
    with yard.client() as client:
        tools.until(lambda: works(client), 30)
        client.submit("neg", X).result(20)
        try:
            if how != "asyncio":
                stop()
            with pytest.raises(DeadlineExceeded):
                ways[how](client)
            assert 0.3 <= time.monotonic() - began[0] < PATIENCE_S / 2, "it waited for the broker"
        finally:
            os.kill(broker, signal.SIGCONT)
        tools.until(lambda: works(client), 30)


def test_without_a_broker_a_call_says_so_and_what_to_start(run_folder: Path) -> None:
    with Client(f"ipc://{run_folder}/nobody", connect_timeout=0.2) as client:
        began = time.monotonic()
        with pytest.raises(BrokerLost, match="batchyard up"):
            client.infer("neg", X)
        assert time.monotonic() - began < CONNECT_TIMEOUT_S, "it waited longer than it was told to"
