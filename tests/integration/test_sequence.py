"""Models with state, step by step: the state stays in the client's memory and comes back as an input."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from batchyard import AsyncClient, Client, DeadlineExceeded, InvalidRequest, ModelFailed, Priority, serve
from batchyard.client import Yard
from onnx import TensorProto, helper, numpy_helper

from .gateways import everywhere

F, I64 = TensorProto.FLOAT, TensorProto.INT64
W = np.random.default_rng(5).standard_normal((4, 3)).astype(np.float32) / 2
U = np.random.default_rng(6).standard_normal((3, 3)).astype(np.float32) / 2


def save(
    file: Path, nodes: list[Any], takes: list[Any], gives: list[Any], weights: dict[str, Any] | None = None
) -> Path:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, **more) for kind, inputs, outputs, more in nodes],
        file.stem,
        [info(*value) for value in takes],
        [info(*value) for value in gives],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def recurrent(file: Path, batch: str | None, free: bool = False) -> Path:
    """Two layers of state [2, batch, 3], as silero-vad has it, with a scalar `sr` that scales the input.
    `free`: the file says nothing of the size of what comes out."""
    nodes = [
        ("Cast", ["sr"], ["rate"], {"to": F}),
        ("Div", ["x", "rate"], ["scaled"], {}),
        ("Split", ["state"], ["a", "b"], {"axis": 0}),
        ("Squeeze", ["a", "zero"], ["a2"], {}),
        ("Squeeze", ["b", "zero"], ["b2"], {}),
        ("MatMul", ["scaled", "w"], ["xw"], {}),
        ("MatMul", ["a2", "u"], ["au"], {}),
        ("Add", ["xw", "au"], ["sum"], {}),
        ("Tanh", ["sum"], ["an"], {}),
        ("Add", ["an", "b2"], ["bn"], {}),
        ("Unsqueeze", ["an", "zero"], ["an2"], {}),
        ("Unsqueeze", ["bn", "zero"], ["bn2"], {}),
        ("Concat", ["an2", "bn2"], ["stateN"], {"axis": 0}),
        ("ReduceSum", ["bn", "one"], ["y"], {}),
    ]
    out = [None, None, None] if free else [2, batch, 3]
    return save(
        file,
        nodes,
        [("x", F, [batch, 4]), ("state", F, [2, batch, 3]), ("sr", I64, [])],
        [("y", F, [batch, 1]), ("stateN", F, out)],
        {"w": W, "u": U, "zero": np.array([0]), "one": np.array([1])},
    )


def expected(xs: list[Any], state: Any, rate: float) -> tuple[list[Any], Any]:
    """What `recurrent` gives, step by step, and its last state."""
    ys = []
    a, b = state
    for x in xs:
        a = np.tanh(x / rate @ W + a @ U)
        b = a + b
        ys.append(b.sum(1, keepdims=True))
    return ys, np.stack([a, b])


def cached(file: Path) -> Path:
    """A cache that grows: y is the sum over all steps so far."""
    return save(
        file,
        [
            ("Concat", ["past_key_values.0.key", "x"], ["present.0.key"], {"axis": 1}),
            ("ReduceSum", ["present.0.key", "one"], ["y"], {"keepdims": 0}),
        ],
        [("x", F, ["batch", "sequence", 3]), ("past_key_values.0.key", F, ["batch", "past_length", 3])],
        [("y", F, ["batch", 3]), ("present.0.key", F, ["batch", "past_length + sequence", 3])],
        {"one": np.array([1])},
    )


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder: Path = tmp_path_factory.mktemp("sequences")
    models = {
        "vad": recurrent(folder / "vad.onnx", "batch"),
        "free": recurrent(folder / "free.onnx", None, free=True),
        "cache": cached(folder / "cache.onnx"),
        "none": save(
            folder / "none.onnx", [("Neg", ["x"], ["y"], {})], [("x", F, ["n", 4])], [("y", F, ["n", 4])]
        ),
        "counter": save(
            folder / "counter.onnx",
            [("Add", ["x", "total"], ["sum"], {}), ("Identity", ["sum"], ["y"], {})],
            [("x", F, ["n", 2]), ("total", F, ["n", 2])],
            [("y", F, ["n", 2]), ("sum", F, ["n", 2])],
        ),
    }
    with serve(models, threads=1) as made:
        yield made


def steps(count: int, rows: int = 1, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, 4)).astype(np.float32) for _ in range(count)]


@everywhere
@pytest.mark.parametrize("model", ["vad", "free"])
@pytest.mark.parametrize("rows", [1, 3])
def test_each_step_begins_where_the_last_one_ended(yard: Yard, address: str, model: str, rows: int) -> None:
    xs = steps(6, rows)
    want, last = expected(xs, np.zeros((2, rows, 3), np.float32), 2.0)
    with Client(address) as client, client.sequence(model, sr=np.array(2)) as vad:
        got = [vad.infer(x) for x in xs]
        np.testing.assert_allclose(got, want, atol=1e-5)
        np.testing.assert_allclose(vad.state["state"], last, atol=1e-5)


@pytest.mark.parametrize("model", ["vad", "free"])
def test_nothing_of_the_state_is_copied(yard: Yard, model: str) -> None:
    xs = steps(20)
    with yard.client() as client, client.sequence(model, sr=np.array(2)) as vad:
        for x in xs[:3]:
            vad.infer(x)
        before = client.bytes_copied
        for x in xs[3:]:
            vad.infer(x)
        assert client.bytes_copied - before == sum(x.nbytes for x in xs[3:])  # the input alone
        before = client.bytes_copied
        x = client.empty((1, 4), np.float32)
        x[:] = xs[0]
        vad.infer(x)
        assert client.bytes_copied == before


def test_a_cache_begins_empty_grows_and_is_not_copied(yard: Yard) -> None:
    rng = np.random.default_rng(1)
    xs = [rng.standard_normal((2, 1, 3)).astype(np.float32) for _ in range(8)]
    with yard.client() as client, client.sequence("cache") as decoder:
        copied = []
        for number, x in enumerate(xs, 1):
            before = client.bytes_copied
            got = decoder.infer(x)
            copied.append(client.bytes_copied - before)
            np.testing.assert_allclose(got, np.concatenate(xs[:number], 1).sum(1), atol=1e-5)
            assert decoder.state["past_key_values.0.key"].shape == (2, number, 3)
        # The first size that nobody could foresee comes as a frame, and is copied once.
        assert copied[2:] == [x.nbytes for x in xs[2:]]
        got = decoder.infer(np.concatenate(xs[:3], 1))  # another length
        assert decoder.state["past_key_values.0.key"].shape == (2, 11, 3)


@everywhere
def test_a_state_may_be_given_and_the_sequence_begun_anew(address: str) -> None:
    xs = steps(4)
    first = np.full((2, 1, 3), 0.5, np.float32)
    want, _ = expected(xs, first, 2.0)
    with Client(address) as client:
        vad = client.sequence("vad", state=first, sr=2)
        np.testing.assert_allclose([vad.infer(x) for x in xs], want, atol=1e-5)
        vad.reset()
        assert vad.state == {}
        np.testing.assert_allclose(vad.infer(xs[0]), want[0], atol=1e-5)
        on = client.sequence("vad", sr=2, **vad.state)
        np.testing.assert_allclose(on.infer(xs[1]), want[1], atol=1e-5)


@everywhere
def test_a_step_that_fails_leaves_the_state_as_it_was(yard: Yard, address: str) -> None:
    xs = steps(3)
    want, _ = expected(xs, np.zeros((2, 1, 3), np.float32), 2.0)
    with Client(address) as client, client.sequence("vad", sr=np.array(2)) as vad:
        vad.infer(xs[0])
        before = vad.state["state"].copy()
        with pytest.raises(InvalidRequest, match=r"expects|was given"):
            vad.infer(np.ones((1, 5), np.float32))
        with pytest.raises(InvalidRequest, match="has 1 rows, and the step 2"):
            vad.infer(np.ones((2, 4), np.float32))
        os.kill(yard.processes[0].pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded):
                vad.infer(xs[1], timeout=0.05)
        finally:
            os.kill(yard.processes[0].pid, signal.SIGCONT)
        with pytest.raises((ModelFailed, InvalidRequest)):
            vad.infer({"x": xs[1], "state": np.zeros((2, 7, 3), np.float32)})
        np.testing.assert_array_equal(vad.state["state"], before)
        for x, y in zip(xs[1:], want[1:], strict=True):
            np.testing.assert_allclose(vad.infer(x, priority=Priority.HIGH, deadline=5.0), y, atol=1e-5)


@everywhere
def test_pairs_may_be_given_and_are_named_where_there_are_none(address: str) -> None:
    with Client(address) as client:
        with (
            pytest.raises(InvalidRequest, match="it takes x, total and gives y, sum; say which, as states="),
            client.sequence("counter"),
        ):
            pass
        with pytest.raises(InvalidRequest, match="no output of 'none' is the next value"):
            client.sequence("none").infer(np.ones((1, 4), np.float32))
        with pytest.raises(InvalidRequest, match="has no output 'total'"):
            client.sequence("counter", states={"total": "total"}).infer(np.ones((1, 2), np.float32))
        with pytest.raises(InvalidRequest, match="'vad' has no input 'rate'"):
            client.sequence("vad", rate=3).infer(steps(1)[0])
        with client.sequence("counter", states={"total": "sum"}) as counter:
            for number in range(1, 5):
                assert counter.infer(np.ones((1, 2), np.float32)).tolist() == [[number, number]]
        with pytest.raises(InvalidRequest, match="has ended"):
            counter.infer(np.ones((1, 2), np.float32))


@everywhere
def test_steps_of_two_streams_share_a_batch(address: str) -> None:
    """The state has its rows on axis 1, and all rows of a batch share `sr`."""

    async def stream(client: Any, seed: int) -> list[Any]:
        async with client.sequence("vad", sr=np.array(2)) as vad:
            xs = steps(30, seed=seed)
            want, _ = expected(xs, np.zeros((2, 1, 3), np.float32), 2.0)
            rows = []
            for x, y in zip(xs, want, strict=True):
                reply = await vad.request(x)
                np.testing.assert_allclose(reply.outputs["y"], y, atol=1e-5)
                rows.append(reply.receipt.rows)
            return rows

    async def main() -> list[Any]:
        async with AsyncClient(address) as client:
            return await asyncio.gather(*(stream(client, seed) for seed in range(16)))

    assert max(max(rows) for rows in asyncio.run(main())) > 1


@everywhere
def test_a_stream_takes_one_step_at_a_time(address: str) -> None:
    async def main() -> None:
        async with AsyncClient(address) as client, client.sequence("vad", sr=np.array(2)) as vad:
            both = await asyncio.gather(*(vad.infer(steps(1)[0]) for _ in range(2)), return_exceptions=True)
            assert [type(one) for one in both] == [np.ndarray, InvalidRequest]
            assert "is under way" in str(both[1])

    asyncio.run(main())


@everywhere
def test_sequences_of_many_threads_are_their_own(address: str) -> None:
    failures: list[BaseException] = []

    def stream(client: Any, seed: int) -> None:
        try:
            xs = steps(15, seed=seed)
            want, _ = expected(xs, np.zeros((2, 1, 3), np.float32), 2.0)
            with client.sequence("vad", sr=np.array(2)) as vad:
                np.testing.assert_allclose([vad.infer(x) for x in xs], want, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    with Client(address) as client:
        threads = [threading.Thread(target=stream, args=(client, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize("model", ["vad", "free"])
def test_a_sequence_works_with_tensors_in_frames(yard: Yard, model: str) -> None:
    xs = steps(5)
    want, _ = expected(xs, np.zeros((2, 1, 3), np.float32), 2.0)
    with yard.client(segment="frames") as client, client.sequence(model, sr=np.array(2)) as vad:
        np.testing.assert_allclose([vad.infer(x) for x in xs], want, atol=1e-5)


@everywhere
def test_a_lost_worker_loses_no_state(address: str, tools: Any) -> None:
    xs = steps(6)
    want, _ = expected(xs, np.zeros((2, 1, 3), np.float32), 2.0)
    with Client(address) as client, client.sequence("vad", sr=np.array(2)) as vad:
        got = [vad.infer(x) for x in xs[:3]]
        for pid in tools.worker_pids(client, "vad"):
            tools.kill(pid)
        got += [vad.infer(x) for x in xs[3:]]
        np.testing.assert_allclose(got, want, atol=1e-5)


@everywhere
def test_a_lost_broker_loses_no_state(yard: Yard, address: str, tools: Any) -> None:
    xs = steps(6)
    want, _ = expected(xs, np.zeros((2, 1, 3), np.float32), 2.0)
    with Client(address) as client, client.sequence("vad", sr=np.array(2)) as vad:
        got = [vad.infer(x) for x in xs[:3]]
        tools.kill(yard.processes[0].pid)
        got += [vad.infer(x) for x in xs[3:]]
        np.testing.assert_allclose(got, want, atol=1e-5)
