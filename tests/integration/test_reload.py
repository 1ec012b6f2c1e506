"""Models that are loaded, swapped and unloaded while real processes serve them: no request pays for it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import (
    BrokerLost,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Operator,
    Overloaded,
    UnknownModel,
    serve,
)
from batchyard.client import Yard

X = np.arange(4, dtype=np.float32)[None]


@pytest.fixture(scope="module")
def files(onnx_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plus1.onnx ... plus3.onnx: `y = x + k` of float32[n, 4]; others that can't take their place."""
    folder: Path = tmp_path_factory.mktemp("root") / "models"
    folder.mkdir()
    for k in (1, 2, 3):
        made = onnx_models.save(
            f"plus{k}", [("Add", ["x", "k"], ["y"], {})], [("x", 1, ["n", 4])], [("y", 1, ["n", 4])],
            {"k": np.full(4, k, np.float32)},
        )  # fmt: skip
        shutil.copy(made, folder)
    shutil.copy(onnx_models.unary("wide", "Neg", ["n", 9]), folder)
    (folder / "corrupt.onnx").write_bytes((folder / "plus2.onnx").read_bytes()[:-40])
    return folder


@pytest.fixture(scope="module")
def shared(files: Path) -> Iterator[Yard]:
    with serve({"net": files / "plus1.onnx"}, workers=2, max_batch=8, threads=1) as made:
        yield made


@pytest.fixture
def yard(shared: Yard, files: Path) -> Yard:
    """The shared yard, serving plus1.onnx."""
    shared.operator.swap("net", "plus1.onnx")
    return shared


def added(y: Any) -> int:
    """Which of the files has answered to X."""
    (k,) = set((y - X[: len(y)]).ravel().tolist())
    return int(k)


def revision(client: Client, model: str = "net") -> int:
    (info,) = [info for info in client.models() if info.name == model]
    return info.revision


class Traffic:
    """Threads, futures, and an event loop that ask all the time. What answered is kept by revision."""

    def __init__(self, yard: Yard) -> None:
        self.by_revision: dict[int, set[int]] = defaultdict(set)
        self.answers = 0
        self.failures: list[BaseException] = []
        self._yard = yard
        self._stop = threading.Event()
        jobs: list[Callable[[], None]] = [lambda: self._ask("normal"), lambda: self._ask("low"), self._submit]
        jobs += [lambda: self._ask("urgent"), lambda: asyncio.run(self._ask_async())]
        self._threads = [threading.Thread(target=self._run, args=(job,)) for job in jobs]

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.failures.append(error)

    def _heard(self, reply: Any) -> None:
        self.by_revision[reply.receipt.revision].add(added(reply.value))
        self.answers += 1

    def _ask(self, priority: str) -> None:
        with self._yard.client() as client:
            while not self._stop.is_set():
                self._heard(client.request("net", X, priority=priority, timeout=20))

    def _submit(self) -> None:
        with self._yard.client() as client:
            while not self._stop.is_set():
                for future in [client.submit("net", X) for _ in range(20)]:
                    future.result(20)
                    self._heard(future.reply)

    async def _ask_async(self) -> None:
        async with self._yard.async_client() as client:
            while not self._stop.is_set():
                for reply in await asyncio.gather(*(client.request("net", X) for _ in range(8))):
                    self._heard(reply)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert self.failures == []
        assert all(len(files) == 1 for files in self.by_revision.values()), self.by_revision


# ---- swaps --------------------------------------------------------------------------------------


def test_swaps_under_load_fail_nobody_and_every_answer_is_its_revisions(yard: Yard) -> None:
    expected = {}
    with yard.client() as client, Traffic(yard) as traffic:
        began = revision(client)
        expected[began] = 1
        until_s = time.monotonic() + 3
        while time.monotonic() < until_s:
            k = 1 + len(expected) % 3
            changed = yard.operator.swap("net", f"plus{k}.onnx", tolerance=2.5)
            expected[changed.revision] = k
            assert changed.difference == pytest.approx(abs(k - expected[changed.revision - 1]))
            assert added(client.infer("net", X)) == k, "from now on, for everybody"
            time.sleep(0.1)
        assert revision(client) == max(expected) == began + len(expected) - 1
    assert len(expected) >= 5
    assert traffic.answers > 100
    assert len(traffic.by_revision) >= 5
    assert {
        number: {k} for number, k in expected.items() if number in traffic.by_revision
    } == traffic.by_revision
    assert yard.snapshot()["workers_lost"] == 0


def test_both_workers_serve_the_new_revision(yard: Yard, files: Path) -> None:
    with yard.client() as client:
        yard.operator.swap("net", "plus2.onnx")
        replies = [
            future.reply
            for future in [client.submit("net", X) for _ in range(200)]
            if future.result() is not None
        ]
        assert {added(reply.value) for reply in replies} == {2}
        (info,) = client.models()
        assert len(info.workers) == 2


def test_a_file_read_anew_is_what_lies_there_now(yard: Yard, files: Path) -> None:
    shutil.copy(files / "plus2.onnx", files / "current.onnx")
    yard.operator.swap("net", "current.onnx")
    shutil.copy(files / "plus3.onnx", files / "next")
    os.replace(files / "next", files / "current.onnx")
    with yard.client() as client:
        assert added(client.infer("net", X)) == 2
        yard.operator.swap("net")
        assert added(client.infer("net", X)) == 3


def external(files: Path, name: str, location: str) -> None:
    """`y = x + k`, with k in another file."""
    import onnx
    from onnx import TensorProto, helper

    k = TensorProto(name="k", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        k.external_data.add(key=key, value=value)
    tensors = [helper.make_tensor_value_info(name, 1, ["n", 4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "k"], ["y"])], name, tensors[:1], tensors[1:], [k]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (files / f"{name}.onnx").write_bytes(model.SerializeToString())
    assert onnx.load(str(files / f"{name}.onnx"), load_external_data=False) is not None


def test_weights_beside_the_model_are_read_anew_too(yard: Yard, files: Path) -> None:
    external(files, "weights", "weights.bin")
    (files / "weights.bin").write_bytes(np.full(4, 5, np.float32).tobytes())
    with yard.client() as client:
        yard.operator.swap("net", "weights.onnx")
        assert added(client.infer("net", X)) == 5
        (files / "weights.next").write_bytes(np.full(4, 6, np.float32).tobytes())
        os.replace(files / "weights.next", files / "weights.bin")
        assert yard.operator.swap("net").difference == pytest.approx(1.0)
        assert added(client.infer("net", X)) == 6


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "tolerance", "error", "said"),
    [
        ("corrupt.onnx", None, ModelFailed, "it is no ONNX file"),
        (
            "wide.onnx",
            None,
            ModelFailed,
            r"its input is x: float32\[n, 9\], and that of the one that serves is x",
        ),
        ("plus3.onnx", 1.5, ModelFailed, "its answers to a canary differ by up to 2, and 1.5 is allowed"),
        ("nowhere.onnx", None, InvalidRequest, "no such file"),
        ("../outside.onnx", None, InvalidRequest, "expected a file inside models_root"),
        ("/etc/passwd", None, InvalidRequest, "expected a file inside models_root"),
        ("link.onnx", None, InvalidRequest, "expected a file inside models_root"),
    ],
)
def test_a_file_that_cannot_take_its_place_is_refused_and_the_old_one_serves_on(
    yard: Yard, files: Path, file: str, tolerance: float | None, error: type[Exception], said: str
) -> None:
    shutil.copy(files / "plus2.onnx", files.parent / "outside.onnx")
    if not (files / "link.onnx").is_symlink():
        (files / "link.onnx").symlink_to("../outside.onnx")
    with yard.client() as client:
        before = revision(client)
        with pytest.raises(error, match=said) as caught:
            yard.operator.swap("net", file, tolerance=tolerance)
        if error is ModelFailed:
            assert str(caught.value).endswith(f"; revision {before} serves on")
        reply = client.request("net", X)
        assert (added(reply.value), reply.receipt.revision) == (1, before)


@pytest.mark.parametrize("how", ["dots", "absolute", "symlink"])
def test_weights_outside_the_models_folder_are_not_read(yard: Yard, files: Path, how: str) -> None:
    (files.parent / "secret.bin").write_bytes(np.full(4, 9, np.float32).tobytes())
    if how == "symlink" and not (files / "inside.bin").is_symlink():
        (files / "inside.bin").symlink_to("../secret.bin")
    location = {
        "dots": "../secret.bin",
        "absolute": str(files.parent / "secret.bin"),
        "symlink": "inside.bin",
    }[how]
    external(files, f"ext-{how}", location)
    with yard.client() as client:
        with pytest.raises(ModelFailed, match=r"(?i)(external data|path)") as caught:
            yard.operator.swap("net", f"ext-{how}.onnx")
        assert "serves on" in str(caught.value)
        with pytest.raises(ModelFailed):
            yard.operator.load("other", f"ext-{how}.onnx")
        assert added(client.infer("net", X)) == 1


def test_orders_that_make_no_sense_are_told_so(yard: Yard) -> None:
    operator = yard.operator
    with pytest.raises(UnknownModel, match="no model is called 'nte'; this yard has: net"):
        operator.swap("nte", "plus2.onnx")
    with pytest.raises(UnknownModel):
        operator.unload("nte")
    with pytest.raises(InvalidRequest, match="'net' is served already: swap it, or unload it first"):
        operator.load("net", "plus2.onnx")
    with pytest.raises(InvalidRequest, match="expected a name of 1 to 255 letters"):
        operator.load("../plus2", "plus2.onnx")
    with pytest.raises(InvalidRequest, match="expected a file inside models_root"):
        operator.load("other", "")
    with pytest.raises(InvalidRequest):
        operator.load("other", "plus2.onnx", max_batch=0)


def test_where_no_broker_is_an_operator_hears_so_soon(run_folder: Path) -> None:
    with pytest.raises(DeadlineExceeded, match=r"no broker answers at ipc:///tmp/.*nobody within 0\.3 s"):
        Operator(f"ipc://{run_folder}/nobody").swap("net", timeout=0.3)


# ---- models that come and go --------------------------------------------------------------------


def test_a_second_model_comes_and_goes_and_comes_back_as_another(yard: Yard) -> None:
    with yard.client() as client:
        assert yard.operator.load("second", "plus2.onnx", max_batch=4).revision == 1
        assert added(client.infer("second", X)) == 2
        (info,) = [info for info in client.models() if info.name == "second"]
        assert (info.max_batch, len(info.workers)) == (4, 2)
        assert yard.operator.unload("second").revision == 1
        with pytest.raises(UnknownModel, match="this yard has: net"):
            client.infer("second", X)
        assert [info.name for info in client.models()] == ["net"]
        assert yard.operator.load("second", "wide.onnx").revision == 2
        wide = np.ones((2, 9), np.float32)
        assert (client.infer("second", wide) == -wide).all()
        yard.operator.unload("second")
        assert added(client.infer("net", X)) == 1


def test_a_client_learns_that_a_name_has_become_another_model(yard: Yard) -> None:
    wide = np.ones((1, 9), np.float32)
    yard.operator.load("third", "plus2.onnx")
    with yard.client() as client:
        client.infer("third", X)
        yard.operator.unload("third")
        yard.operator.load("third", "wide.onnx")
        with pytest.raises(InvalidRequest):  # as it was known to this client
            client.infer("third", wide)
        assert (client.infer("third", wide) == -1).all()
        yard.operator.unload("third")


def test_what_waits_for_a_model_is_run_before_it_goes(yard: Yard, files: Path, slow_model: Path) -> None:
    shutil.copy(slow_model, files / "slow.onnx")
    yard.operator.load("slow", "slow.onnx")
    with yard.client() as client:
        x = np.ones((8, 512), np.float32)
        futures = [client.submit("slow", x, timeout=60) for _ in range(12)]
        futures[0].result(30)
        assert sum(future.done() for future in futures) < len(futures)
        yard.operator.unload("slow")
        # It is gone when they have ended; this thread may hear of that a moment before the one that reads.
        assert all((future.result(30) == x).all() for future in futures)
        with pytest.raises(UnknownModel):
            client.infer("slow", x)


# ---- deaths -------------------------------------------------------------------------------------


def test_a_worker_killed_amid_swaps_fails_no_request_and_mixes_no_revisions(yard: Yard, tools: Any) -> None:
    with yard.client() as client, Traffic(yard) as traffic:
        done = refused = 0
        for round_ in range(12):
            if round_ % 4 == 1:
                victim = tools.until(
                    lambda: len(pids := tools.worker_pids(client, "net")) == 2 and pids[0], 30
                )
                threading.Timer(0.01 * round_, tools.kill, (victim,)).start()
            try:
                yard.operator.swap("net", f"plus{1 + round_ % 3}.onnx")
                done += 1
            except (ModelFailed, Overloaded):
                refused += 1
            time.sleep(0.05)
        tools.until(lambda: len(tools.worker_pids(client, "net")) == 2, 30, "both workers")
        yard.operator.swap("net", "plus2.onnx")
        assert added(client.infer("net", X)) == 2
    assert done >= 5, f"{done} done, {refused} refused"
    assert traffic.answers > 50


def test_a_broker_killed_after_a_swap_serves_its_configurations_files_again(files: Path, tools: Any) -> None:
    with (
        serve({"net": files / "plus1.onnx"}, workers=1, max_batch=8, threads=1) as yard,
        yard.client() as client,
    ):
        yard.operator.swap("net", "plus2.onnx")
        yard.operator.load("second", "plus3.onnx")
        assert (added(client.infer("net", X)), added(client.infer("second", X))) == (2, 3)
        tools.kill(yard.processes[0].pid)

        def answer() -> Any:
            try:
                return client.request("net", X, timeout=5)
            except (BrokerLost, Overloaded, DeadlineExceeded):
                return None

        reply = tools.until(answer, 20, "the next broker")
        assert (added(reply.value), reply.receipt.revision) == (1, 1)
        with pytest.raises(UnknownModel):
            client.infer("second", X)
        assert yard.operator.swap("net", "plus2.onnx", tolerance=5).difference == pytest.approx(1.0)
        assert yard.operator.load("second", "plus3.onnx").revision == 1
        assert (added(client.infer("net", X)), added(client.infer("second", X))) == (2, 3)


def test_an_operator_whose_broker_dies_hears_so_at_once(files: Path, slow_model: Path, tools: Any) -> None:
    with serve({"net": files / "plus1.onnx"}, threads=1) as yard:
        yard.wait_for_broker(10)
        worker = yard.processes[1]
        with yard.client() as client:
            (child,) = tools.worker_pids(client, "net")
        os.kill(child, signal.SIGSTOP)  # so that the order is not answered
        try:
            threading.Timer(0.3, tools.kill, (yard.processes[0].pid,)).start()
            with pytest.raises(BrokerLost, match="went away"):
                yard.operator.swap("net")
        finally:
            os.kill(child, signal.SIGCONT)
        assert worker.restarts == 0


# ---- a yard without models ------------------------------------------------------------------------


def test_a_yard_may_start_empty_and_load_its_first_model(files: Path) -> None:
    with pytest.raises(InvalidRequest, match="none at all only with models_root"):
        serve({})
    with serve({}, models_root=files, threads=1) as yard, yard.client() as client:
        assert client.models() == []
        yard.operator.load("net", "plus2.onnx")
        assert added(client.infer("net", X)) == 2
