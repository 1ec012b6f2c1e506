"""A client, a worker, or the starter is killed or stopped: every request has one outcome, in time, and no
memory stays behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import BatchyardError, Client, DeadlineExceeded, serve
from batchyard.client import Yard
from batchyard.tests.integration.faulty import HUNG_S, MAX_BATCH, X, slow_input, works


@pytest.fixture(scope="module")
def yard(slow_model: Path, neg_model: Path) -> Iterator[Yard]:
    with serve({"slow": slow_model, "neg": neg_model}, workers=1, max_batch=MAX_BATCH, threads=1) as made:
        yield made


# ---- clients ------------------------------------------------------------------------------------

DOOMED_CLIENT = """
import sys, numpy as np, batchyard
client = batchyard.Client(sys.argv[1])
client.wait_ready("slow")
held = [client.infer("neg", np.ones((1, 4), np.float32)) for _ in range(10)]
futures = [client.submit("slow", np.ones((8, 512), np.float32)) for _ in range(300)]
futures[0].result(20)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_client_killed_with_requests_under_way_leaves_no_memory_anywhere(yard: Yard, tools: Any) -> None:
    with yard.client() as client:
        client.infer("neg", X)
        (worker,) = tools.worker_pids(client, "neg")
        tools.until(lambda: yard.snapshot()["rows_under_way"] == 0)
        baseline = {key: yard.snapshot()[key] for key in ("arenas", "arena_bytes", "clients")}
        mappings = tools.mappings(worker)
        process = subprocess.Popen(
            [sys.executable, "-c", DOOMED_CLIENT, yard.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        during = yard.snapshot()
        assert during["rows_under_way"] > 0
        assert during["arenas"] == baseline["arenas"] + 1
        assert tools.mappings(worker) == mappings + 1
        process.kill()
        process.communicate()
        tools.until(lambda: {key: yard.snapshot()[key] for key in baseline} == baseline, what="the baseline")
        tools.until(lambda: tools.mappings(worker) == mappings, what="the worker's mapping to go")
        assert yard.snapshot()["rows_under_way"] == 0
        assert works(client)


def test_clients_that_end_in_order_leave_nothing_either(yard: Yard, tools: Any) -> None:
    with yard.client() as client:
        client.infer("neg", X)
        (worker,) = tools.worker_pids(client, "neg")
        baseline = {key: yard.snapshot()[key] for key in ("arenas", "arena_bytes", "clients")}
        mappings = tools.mappings(worker)
        for _ in range(20):
            with yard.client() as other:
                other.infer("neg", X)
                other.submit("neg", X)
        tools.until(lambda: {key: yard.snapshot()[key] for key in baseline} == baseline, what="the baseline")
        tools.until(lambda: tools.mappings(worker) == mappings, what="the worker's mappings to go")


# ---- workers ------------------------------------------------------------------------------------


def test_a_worker_killed_under_load_loses_no_request(yard: Yard, tools: Any) -> None:
    with yard.client() as client:
        (before,) = tools.worker_pids(client, "slow")
        inputs = [slow_input(number) for number in range(40)]
        futures = [client.submit("slow", x, timeout=60) for x in inputs]
        futures[2].result(20)
        tools.kill(before)
        for x, future in zip(inputs, futures, strict=True):
            np.testing.assert_array_equal(future.result(60), x)
        (after,) = tools.until(lambda: tools.worker_pids(client, "slow"))
        assert after != before
        counters = yard.snapshot()
        assert counters["workers_lost"] >= 1
        assert counters["requeued"] >= 1
        assert counters["rows_under_way"] == 0


def test_an_idle_worker_takes_over_at_once_what_a_dead_one_held(neg_model: Path, tools: Any) -> None:
    """Nothing else happens in the yard: the death itself must make the broker look what it can lend."""
    with serve(neg_model, workers=2, threads=1) as yard, yard.client() as client:
        pids = tools.until(lambda: len(found := tools.worker_pids(client, "neg")) == 2 and found, 30)
        for _ in range(5):
            client.submit("neg", X).result(20)
        os.kill(pids[0], signal.SIGSTOP)
        try:
            futures: list[Any] = []
            while not yard.snapshot()["batches_lent"]:  # until the one that is stopped holds some
                futures += [client.submit("neg", X) for _ in range(8)]
                concurrent.futures.wait(futures, 0.05)
        finally:
            tools.kill(pids[0])
        began = time.monotonic()
        assert all((future.result(20) == -1).all() for future in futures)
        assert time.monotonic() - began < HUNG_S, "only the watch over hung runs saw it"


def test_a_request_whose_workers_keep_dying_is_given_up_with_a_typed_error(yard: Yard, tools: Any) -> None:
    with yard.client() as client:
        future = client.submit("slow", slow_input(rows=8000), timeout=60)
        killed: set[int] = set()
        while not future.done():
            for pid in set(tools.worker_pids(client, "slow")) - killed:
                tools.until(lambda: future.done() or yard.snapshot()["batches_lent"], 30)
                tools.kill(pid)
                killed.add(pid)
        assert len(killed) >= 2  # one death is bad luck
        error = future.exception(60)
        assert isinstance(error, BatchyardError)
        assert "workers died" in str(error)
        tools.until(lambda: works(client), 30)


@pytest.mark.parametrize("how", ["infer", "submit", "asyncio"])
def test_while_its_worker_is_stopped_a_request_ends_at_its_deadline(yard: Yard, tools: Any, how: str) -> None:
    async def ask() -> None:
        async with yard.async_client() as other:
            await other.infer("neg", X, timeout=0.2)

    ways = {
        "infer": lambda client: client.infer("neg", X, timeout=0.2),
        "submit": lambda client: client.submit("neg", X, timeout=0.2).result(20),
        "asyncio": lambda client: asyncio.run(ask()),
    }
    with yard.client() as client:
        tools.until(lambda: works(client), 30)
        (pid,) = tools.until(lambda: tools.worker_pids(client, "neg"), 30)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(TimeoutError) as caught:
                    ways[how](client)
                assert isinstance(caught.value, DeadlineExceeded)
                assert 0.2 <= time.monotonic() - began < HUNG_S, "the broker ended it, by killing the worker"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert works(client)
        tools.until(lambda: yard.snapshot()["batches_lent"] == 0)


# ---- the starter --------------------------------------------------------------------------------

DOOMED_STARTER = """
import sys, batchyard
yard = batchyard.serve({"neg": sys.argv[1]}, workers=2)
print(yard.url, flush=True)
sys.stdin.read()
"""


def test_a_yard_whose_starter_is_killed_ends_with_it(neg_model: Path, tools: Any, run_folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DOOMED_STARTER, str(neg_model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    url = process.stdout.readline().decode().strip()
    with Client(url) as client:
        assert works(client)
        worker = tools.worker_pids(client, "neg")[0]
        process.kill()
        process.communicate()
        tools.until(lambda: not tools.alive(worker), what="the worker's end")
    # Nobody is left who could remove the private folder: that is this test's to do.
    folder = Path(url.removeprefix("ipc://"))
    tools.until(lambda: not (folder / "clients").exists(), what="the broker's end")
    shutil.rmtree(folder, ignore_errors=True)
