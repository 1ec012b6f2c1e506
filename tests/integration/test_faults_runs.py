"""Runs that never end, crash, or fail: only the request at fault pays, and the yard goes on.

The broker here may call a worker hung after 0.75 seconds instead of 5; nothing else is different.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import Client, DeadlineExceeded, ModelFailed
from batchyard.broker.timing import STEADY_RUNS
from batchyard.tests.integration.alone import Alone, alone

HUNG_MIN_NS = 750_000_000
ROWS = 32
ENDLESS = 1 << 62  # trips: thousands of years
BUSY = 100_000  # trips: some 0.1 s


def save_counting(onnx_models: Any) -> Path:
    """`y = x` of int64[n, 1], by a loop of as many trips as the greatest number in the batch."""
    from onnx import TensorProto, helper, numpy_helper

    def scalar(name: str, dtype: int) -> Any:
        return helper.make_tensor_value_info(name, dtype, [])

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["count", "one"], ["counted"]),
        ],
        "body",
        [
            scalar("trip", TensorProto.INT64),
            scalar("go", TensorProto.BOOL),
            scalar("count", TensorProto.INT64),
        ],
        [scalar("go_on", TensorProto.BOOL), scalar("counted", TensorProto.INT64)],
        [numpy_helper.from_array(np.array(1, np.int64), "one")],
    )
    path: Path = onnx_models.save(
        "counting",
        [
            ("ReduceMax", ["x"], ["trips"], {"keepdims": 0}),
            ("Loop", ["trips", "true", "zero"], ["counted"], {"body": body}),
            ("Mul", ["counted", "zero"], ["nothing"], {}),  # whatever the others are: rows are independent
            ("Add", ["x", "nothing"], ["y"], {}),
        ],
        [("x", 7, ["n", 1])],
        [("y", 7, ["n", 1])],
        {"true": np.array(True), "zero": np.array(0, np.int64)},
    )
    return path


@pytest.fixture(scope="module")
def paths(neg_model: Path, onnx_models: Any) -> dict[str, Path]:
    counting = save_counting(onnx_models)
    table = onnx_models.save(
        "table",
        [("Gather", ["table", "x"], ["y"], {})],
        [("x", 7, ["n", 1])],
        [("y", 1, ["n", 1])],
        {"table": np.arange(100, dtype=np.float32) * 2},
    )
    # Two names of one file: what is known of one's time says nothing of the other's.
    return {"neg": neg_model, "busy": counting, "endless": counting, "table": table}


@pytest.fixture(scope="module")
def yard(paths: dict[str, Path], run_folder: Path) -> Iterator[Alone]:
    with alone(f"ipc://{run_folder}/runs", paths, max_batch=ROWS, hung_min_ns=HUNG_MIN_NS) as made:
        yield made


@pytest.fixture
def client(yard: Alone) -> Iterator[Client]:
    with yard.client() as made:
        made.wait_ready("busy", 30)
        yield made


def number(value: int) -> np.ndarray[Any, Any]:
    return np.array([[value]], np.int64)


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def occupy(client: Client, yard: Alone, tools: Any) -> Any:
    """Keep the worker busy for a while, so that what follows gathers into one batch."""
    future = client.submit("busy", number(BUSY), timeout=60)
    tools.until(lambda: yard.snapshot()["batches_lent"], what="the worker to be busy")
    return future


def test_a_run_that_crashes_natively_is_run_again_and_nobody_sees_it(
    client: Client, yard: Alone, tools: Any
) -> None:
    (pid,) = tools.worker_pids(client, "busy")
    lost = yard.snapshot()["workers_lost"]
    held = occupy(client, yard, tools)
    waiting = [client.submit("neg", np.full((1, 4), value, np.float32), timeout=60) for value in range(20)]
    os.kill(pid, signal.SIGSEGV)  # what a provider's bug looks like from outside: no handler, no farewell
    assert held.result(60) == BUSY
    assert [future.result(60)[0, 0] for future in waiting] == [-value for value in range(20)]
    assert yard.snapshot()["workers_lost"] == lost + 1


def test_an_error_of_the_runtime_ends_only_the_item_that_caused_it(
    client: Client, yard: Alone, tools: Any
) -> None:
    """Gather past the end of its table: raised inside `run`, for the whole batch, naming no item."""
    failed = yard.snapshot()["batches_failed"]
    held = occupy(client, yard, tools)
    values = [*range(19), 1_000_000, *range(20, ROWS)]
    futures = [client.submit("table", number(value), timeout=60) for value in values]
    held.result(60)
    with pytest.raises(ModelFailed, match="out of data bounds"):
        futures[19].result(60)
    right = [future for future in futures if future is not futures[19]]
    assert [future.result(60)[0, 0] for future in right] == [2 * value for value in values if value < 100]
    assert yard.snapshot()["batches_failed"] > failed + 1  # it was found by halving: they ran together
    assert (client.infer("neg", np.ones((1, 4), np.float32)) == -1).all()


def test_a_worker_that_is_stopped_under_load_is_killed_and_its_requests_run_elsewhere(
    client: Client, yard: Alone, tools: Any
) -> None:
    for _ in range(STEADY_RUNS):  # so that a long run is no run like the others
        client.infer("neg", np.ones((1, 4), np.float32))
    before = yard.snapshot()
    (pid,) = tools.worker_pids(client, "neg")
    os.kill(pid, signal.SIGSTOP)  # SIGKILL ends a stopped process all the same
    inputs = [np.full((1, 4), value, np.float32) for value in range(100)]
    futures = [client.submit("neg", x, timeout=60) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        np.testing.assert_array_equal(future.result(60), -x)
    after = yard.snapshot()
    assert after["workers_hung"] == before["workers_hung"] + 1
    assert after["requeued"] > before["requeued"]
    assert not tools.alive(pid)
    assert tools.worker_pids(client, "neg") != [pid]


def test_a_worker_is_ended_when_nobody_waits_for_its_run_any_more_and_no_content_is_blamed(
    client: Client, yard: Alone, tools: Any
) -> None:
    before = yard.snapshot()
    # Before the test below: once slow runs are expected of this model, it is given 20 times theirs.
    for _ in range(3):  # as often as it was quarantined before
        with pytest.raises(DeadlineExceeded):
            client.infer("endless", number(ENDLESS), timeout=1.5)
        assert client.infer("neg", np.ones((1, 4), np.float32), timeout=30)[0, 0] == -1
    assert yard.snapshot()["workers_hung"] == before["workers_hung"] + 3


def test_a_run_that_is_slow_now_and_then_gets_its_answer_and_its_worker_lives(
    client: Client, yard: Alone, tools: Any
) -> None:
    pids = tools.until(lambda: tools.worker_pids(client, "endless"), 30, "the worker is back")
    before = yard.snapshot()
    for _ in range(3):
        client.infer("endless", number(1))
    began_s = time.monotonic()
    slow = [number(BUSY * 12 + more) for more in (0, 1)]  # the two would be one content otherwise
    for x in slow:
        assert client.infer("endless", x, timeout=60) == x
    assert time.monotonic() - began_s > 2 * HUNG_MIN_NS / 1e9, "they were slow"
    assert yard.snapshot()["workers_hung"] == before["workers_hung"]
    assert tools.worker_pids(client, "endless") == pids


def test_a_run_that_takes_longer_than_its_model_may_is_given_up_and_its_neighbours_are_answered(
    paths: dict[str, Path], run_folder: Path, tools: Any
) -> None:
    """Once it takes its whole batch along; then it runs alone, and fails."""
    chosen = {name: paths[name] for name in ("busy", "endless")}
    with (
        alone(f"ipc://{run_folder}/bounded", chosen, max_batch=ROWS, run_seconds_max=2.5) as made,
        made.client() as client,
    ):
        held = occupy(client, made, tools)
        good = [client.submit("endless", number(value), timeout=60) for value in range(15)]
        bad = client.submit("endless", number(ENDLESS), timeout=60)
        good += [client.submit("endless", number(value), timeout=60) for value in range(15, 31)]
        assert held.result(60) == BUSY
        with pytest.raises(ModelFailed, match=r"longer than run_seconds_max = 2\.5 allows"):
            bad.result(60)
        assert [int(future.result(60)[0, 0]) for future in good] == list(range(31))
        after = made.snapshot()
        assert after["workers_hung"] == 2
        assert after["rows_under_way"] == 0


def test_a_run_that_never_ends_is_ended_by_its_own_process_when_no_broker_is_left(
    paths: dict[str, Path], run_folder: Path, tools: Any
) -> None:
    chosen = {"endless": paths["endless"]}
    with (
        alone(f"ipc://{run_folder}/orphan", chosen, hung_min_ns=HUNG_MIN_NS) as made,
        made.client() as client,
    ):
        (pid,) = tools.worker_pids(client, "endless")
        before_s = cpu_s(pid)
        future = client.submit("endless", number(ENDLESS), timeout=60)  # so long it might take, for a broker
        tools.until(lambda: cpu_s(pid) > before_s + 0.1, what="the run to have begun")
        made.broker.kill()
        tools.until(lambda: not tools.alive(pid), 15, what="the watchdog's end of the run")
        future.cancel()
