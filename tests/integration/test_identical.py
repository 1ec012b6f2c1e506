"""Identical work over real processes: what is asked often is run seldom, and everybody's answer is right."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import Client, WorkerLost
from batchyard.client import Yard

KEPT_S = 0.4
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def paths(onnx_models: Any, slow_model: Path, neg_model: Path) -> dict[str, Path]:
    return {
        "net": onnx_models.affine("shared_net", 16, 8),
        "free": onnx_models.unary("shared_free", "Neg", ["n", "width"]),
        "slow": slow_model,
        "brief": neg_model,
        "kept": neg_model,
        "sized": onnx_models.affine("sized", 16, 8, seed=1),
        "first": onnx_models.unary("first", "Neg", ["n", 4]),
        "second": onnx_models.unary("second", "Identity", ["n", 4]),
    }


@pytest.fixture(scope="module")
def yard(paths: dict[str, Path], tmp_path_factory: Any) -> Iterator[Yard]:
    """One worker; models that join, that keep, and that run only some sizes."""
    config = tmp_path_factory.mktemp("shared") / "batchyard.toml"
    keys = {
        "net": "join = true",
        "free": "join = true\ncache_ms = 60000",
        "slow": "join = true\nmax_batch = 512\nwarmup = false",
        "brief": f"cache_ms = {KEPT_S * 1e3}",
        "kept": "join = true\ncache_ms = 60000",
        "sized": "buckets = [1, 4, 16]\nmax_batch = 16",
        "first": "cache_ms = 60000",
    }
    tables = [f'[models.{name}]\nfile = "{paths[name].name}"\n{text}' for name, text in keys.items()]
    config.write_text("\n".join([f'models_root = "{paths["net"].parent}"', *tables]))
    made = Yard(["--config", str(config)], 1, 1)
    try:
        with made.client() as client:
            for name in keys:
                client.wait_ready(name, 60)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def client(yard: Yard) -> Iterator[Client]:
    with yard.client() as made:
        yield made


def draw(count: int, width: int = 16, seed: int = 0) -> Array:
    return np.random.default_rng(seed * 1000 + count).standard_normal((count, width)).astype(np.float32)


def spared(yard: Yard, how: str) -> int:
    """Requests that have cost no run so far."""
    return sum(count for _, kind, count in yard.snapshot()["identical"] if kind == how)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_two_hundred_identical_requests_of_four_clients_are_one_run(
    yard: Yard, client: Client, paths: dict[str, Path], reference: Any, tools: Any
) -> None:
    x = draw(2)
    (expected,) = reference(paths["net"], x=x)
    clients = [yard.client() for _ in range(4)]
    try:
        for one in clients:
            one.wait_ready("net")
        before, joined = yard.snapshot(), spared(yard, "joined")
        with stopped(*tools.worker_pids(client, "net")):
            futures = [one.submit("net", x, priority=number % 4) for number in range(50) for one in clients]
            tools.until(lambda: spared(yard, "joined") - joined == 199)
        for future in futures:
            np.testing.assert_allclose(future.result(30), expected, rtol=1e-4, atol=1e-5)
        assert yard.snapshot()["batches"] - before["batches"] == 1
        assert yard.snapshot()["rows"] - before["rows"] == 2
        assert yard.snapshot()["rows_under_way"] == 0
    finally:
        for one in clients:
            one.close()


def test_threads_that_ask_for_a_few_things_over_and_over_cost_far_fewer_runs(
    yard: Yard, client: Client, paths: dict[str, Path], reference: Any
) -> None:
    inputs = [draw(1, 512, seed) for seed in range(2)]
    before = yard.snapshot()
    begin = threading.Barrier(10)

    def work(number: int) -> None:
        begin.wait()
        for turn in range(20):
            x = inputs[(number + turn // 10) % 2]
            np.testing.assert_array_equal(client.infer("slow", x, timeout=60), x)

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(work, number) for number in range(10)]:
            done.result(60)
    assert yard.snapshot()["rows"] - before["rows"] < 100  # of 200


def test_a_kept_result_is_right_names_the_cache_and_costs_no_run(yard: Yard, client: Client) -> None:
    x = draw(3, 4)
    first = client.request("kept", x)
    assert first.receipt.provider == "cpu"
    batches = yard.snapshot()["batches"]
    with yard.client() as other, yard.client(segment="frames") as framed:
        for one in (client, other, framed):
            reply = one.request("kept", x)
            np.testing.assert_array_equal(reply.arrays[0], -x)
            assert reply.receipt.provider == "cache"
            assert (reply.receipt.worker, reply.receipt.compute_ns) == (0, 0)
        np.testing.assert_array_equal(other.infer("kept", -x), x)  # another content
    assert yard.snapshot()["batches"] - batches == 1


def test_a_result_is_kept_as_long_as_the_configuration_says(client: Client) -> None:
    x = draw(1, 4)
    began_s = time.monotonic()
    client.request("brief", x)
    reply = client.request("brief", x)
    if time.monotonic() - began_s < KEPT_S:  # else the machine was busy, and it may be over
        assert reply.receipt.provider == "cache"
    time.sleep(KEPT_S)
    assert client.request("brief", x).receipt.provider == "cpu"


def test_outputs_of_unknown_size_are_shared_like_the_others(yard: Yard, client: Client, tools: Any) -> None:
    batches = yard.snapshot()["batches"]
    x = draw(2, 7)
    with stopped(*tools.worker_pids(client, "free")):
        futures = [client.submit("free", x) for _ in range(5)]
        other = client.submit("free", x.reshape(7, 2))  # the same bytes in another shape
        tools.until(lambda: yard.snapshot()["rows_under_way"] == 5 * 2 + 7)
    for future in futures:
        np.testing.assert_array_equal(future.result(30), -x)
    np.testing.assert_array_equal(other.result(30), -x.reshape(7, 2))
    np.testing.assert_array_equal(client.infer("free", x), -x)
    assert yard.snapshot()["batches"] - batches == 2


@pytest.mark.parametrize("leads", ["frames", "shared memory"])
def test_a_client_that_sends_frames_shares_with_one_in_shared_memory(
    yard: Yard, client: Client, tools: Any, leads: str
) -> None:
    x = draw(4, seed=hash(leads) % 1000)
    with yard.client(segment="frames") as framed:
        framed.wait_ready("net")
        order = [framed, client] if leads == "frames" else [client, framed]
        before, joined = yard.snapshot(), spared(yard, "joined")
        with stopped(*tools.worker_pids(client, "net")):
            first = order[0].submit("net", x)
            tools.until(lambda: yard.snapshot()["rows_under_way"] == 4)
            second = order[1].submit("net", x)
            tools.until(lambda: spared(yard, "joined") - joined == 1)
        np.testing.assert_array_equal(first.result(30), second.result(30))
        assert yard.snapshot()["batches"] - before["batches"] == 1
        tools.until(lambda: yard.snapshot()["inline_used_bytes"] == 0)


def test_a_client_that_overwrites_its_input_harms_nobody_else(yard: Yard, tools: Any) -> None:
    """The broker has seen 1, the worker sees 5: its client has the answer to that, and nobody else."""
    ones = np.ones((1, 4), np.float32)
    with yard.client() as careless, yard.client() as careful:
        careful.wait_ready("kept")
        placed = careless.empty((1, 4))
        placed[:] = 1
        joined = spared(yard, "joined")
        with stopped(*tools.worker_pids(careful, "kept")):
            own = careless.submit("kept", placed)
            tools.until(lambda: yard.snapshot()["batches_lent"] == 1)
            other = careful.submit("kept", ones)
            tools.until(lambda: spared(yard, "joined") - joined == 1)
            placed[:] = 5
        np.testing.assert_array_equal(own.result(30), np.full((1, 4), -5, np.float32))
        np.testing.assert_array_equal(other.result(30), -ones)
        np.testing.assert_array_equal(careful.infer("kept", ones), -ones)
        del placed, own


def test_a_swapped_model_answers_nothing_from_what_its_predecessor_said(
    yard: Yard, client: Client, paths: dict[str, Path]
) -> None:
    x = draw(2, 4)
    for _ in range(2):
        reply = client.request("first", x)
        np.testing.assert_array_equal(reply.arrays[0], -x)
    assert reply.receipt.provider == "cache"
    yard.operator.swap("first", paths["second"].name)
    for provider in ("cpu", "cache"):
        reply = client.request("first", x)
        np.testing.assert_array_equal(reply.arrays[0], x)
        assert (reply.receipt.provider, reply.receipt.revision) == (provider, 2)


def test_sizes_that_are_padded_answer_like_plain_onnxruntime(
    client: Client, paths: dict[str, Path], reference: Any
) -> None:
    assert list(client.wait_ready("sized").workers[0].warmup_ns) == [1, 4, 16]
    for count in range(1, 21):
        x = draw(count)
        reply = client.request("sized", x)
        np.testing.assert_allclose(reply.arrays[0], reference(paths["sized"], x=x)[0], rtol=1e-4, atol=1e-5)
        assert 1 <= reply.receipt.rows <= max(16, count)  # of a request in parts, the sum
    together = [draw(1 + number % 5, seed=number) for number in range(60)]
    futures = [client.submit("sized", x) for x in together]
    for x, future in zip(together, futures, strict=True):
        np.testing.assert_allclose(future.result(30), reference(paths["sized"], x=x)[0], rtol=1e-4, atol=1e-5)


def test_a_content_that_killed_two_workers_is_refused_at_once_and_others_are_not(
    yard: Yard, client: Client, tools: Any
) -> None:
    marked = draw(500, 512, 7)  # a second or so, and all that is running
    future = client.submit("slow", marked, timeout=60)
    killed: set[int] = set()
    while len(killed) < 2:
        tools.until(lambda: yard.snapshot()["batches_lent"] == 1, 30)
        (pid,) = tools.until(lambda: set(tools.worker_pids(client, "slow")) - killed, 30)
        tools.kill(pid)
        killed.add(pid)
        tools.until(lambda: yard.snapshot()["workers_lost"] >= len(killed), 10)
    assert isinstance(future.exception(30), WorkerLost)
    before = yard.snapshot()
    with yard.client(segment="frames") as other:
        for one in (client, other):
            with pytest.raises(WorkerLost, match="it is refused for another"):
                one.infer("slow", marked, timeout=30)
    after = yard.snapshot()
    assert [after[name] - before[name] for name in ("batches", "workers_lost")] == [0, 0], "it was lent"
    x = draw(1, 512)
    np.testing.assert_array_equal(client.infer("slow", x, timeout=30), x)
    assert yard.snapshot()["rows_under_way"] == 0
