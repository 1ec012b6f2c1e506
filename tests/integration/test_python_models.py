"""Python functions in a real yard: batched, bisected, killed when they hang, and swapped."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard import (
    Client,
    InvalidRequest,
    ModelFailed,
    serve,
)
from batchyard.client import Yard
from batchyard.tests.integration.alone import alone

ROWS = 32
HANG, POISON, HOLD = -1.0, -2.0, -3.0  # what a row may ask for
HOLD_S = 0.3

MODELS = f"""
import os, time
import numpy as np
import batchyard

AXES = "float32[batch, 4]"

@batchyard.model(inputs={{"x": AXES}}, outputs={{"y": AXES}})
def act(batch):
    x = batch["x"]
    while (x == {HANG}).any():
        pass
    if (x == {POISON}).any():
        raise ValueError("a row that nobody likes")
    if (x == {HOLD}).any():
        time.sleep({HOLD_S})
    return {{"y": x * 2}}

@batchyard.model(inputs=AXES, outputs={{"pid": "int64[batch]", "calls": "int64[batch]"}})
class Counts:
    def __init__(self):
        print("weights are loaded", flush=True)
        self.calls = 0
    def __call__(self, x):
        self.calls += 1
        return {{"pid": np.full(len(x), os.getpid()), "calls": np.full(len(x), self.calls)}}

@batchyard.model(inputs=AXES, outputs="float32[batch, some]")
def cut(x):
    return x[:, : int(x[0, 0])]

@batchyard.model(inputs=AXES, outputs=AXES)
def wrong(x):
    return x[:, 0] if x.any() else x
"""

Array = np.ndarray[Any, Any]


def row(value: float) -> Array:
    return np.full((1, 4), value, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("python")
    (made / "models.py").write_text(MODELS)
    return made


@pytest.fixture(scope="module")
def log(folder: Path) -> Path:
    return folder / "log"


@pytest.fixture(scope="module")
def yard(folder: Path, log: Path) -> Iterator[Yard]:
    models = {name: f"{folder}/models.py:{name}" for name in ("act", "Counts", "cut", "wrong")}
    with log.open("wb") as file, serve(models, workers=1, max_batch=ROWS, log=file) as made:
        yield made


@pytest.fixture
def client(yard: Yard) -> Iterator[Client]:
    with yard.client() as made:
        yield made


def held(client: Client, yard: Yard, tools: Any) -> Any:
    """Keep the worker busy for a while, so that what follows gathers into one batch."""
    before = yard.snapshot()["batches_lent"]
    future = client.submit("act", row(HOLD), timeout=60)
    tools.until(lambda: yard.snapshot()["batches_lent"] > before, what="the worker to be busy")
    return future


# ---- a function in a yard -----------------------------------------------------------------------


def test_requests_that_wait_together_are_one_call(client: Client, yard: Yard, tools: Any) -> None:
    busy = held(client, yard, tools)
    futures = [client.submit("act", row(value), timeout=60) for value in range(ROWS)]
    busy.result(60)
    assert [future.result(60)[0, 0] for future in futures] == [2 * value for value in range(ROWS)]
    receipts = [future.reply.receipt for future in futures if future.reply is not None]
    assert len(receipts) == ROWS
    assert max(receipt.rows for receipt in receipts) >= ROWS // 2
    assert {receipt.provider for receipt in receipts} == {"python"}


def test_a_row_that_raises_takes_no_neighbour_along_and_the_log_has_its_line(
    client: Client, yard: Yard, tools: Any, folder: Path, log: Path
) -> None:
    failed = yard.snapshot()["batches_failed"]
    busy = held(client, yard, tools)
    values = [POISON if place == 7 else place for place in range(ROWS)]
    futures = [client.submit("act", row(value), timeout=60) for value in values]
    busy.result(60)
    with pytest.raises(
        ModelFailed, match=r"models\.py:act raised ValueError: a row that nobody likes"
    ) as caught:
        futures[7].result(60)
    assert str(folder) not in str(caught.value)
    good = [future.result(60)[0, 0] for future in futures if future is not futures[7]]
    assert good == [2 * value for value in values if value != POISON]
    assert yard.snapshot()["batches_failed"] > failed + 1  # found by halving
    line = next(number for number, text in enumerate(MODELS.splitlines(), 1) if "raise ValueError" in text)
    assert f'File "{folder / "models.py"}", line {line}, in act' in log.read_text()


def test_the_object_of_a_class_lives_as_long_as_its_worker(client: Client, tools: Any, log: Path) -> None:
    first, second = (client.infer("Counts", row(1)) for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert [first["pid"][0]] == tools.worker_pids(client, "Counts")
    assert second["calls"][0] == first["calls"][0] + 1
    assert log.read_text().count("weights are loaded") == 1


def test_outputs_of_a_size_that_nobody_knew_come_back_all_the_same(client: Client) -> None:
    assert [client.infer("cut", row(value)).shape for value in (1, 3)] == [(1, 1), (1, 3)]  # type: ignore[union-attr]


def test_a_wrong_answer_is_told_by_function_and_output(client: Client) -> None:
    with pytest.raises(
        ModelFailed, match=r"models\.py:wrong: output output: float32\[batch, 4\] .* shape \[1\]"
    ):
        client.infer("wrong", row(1))


def test_a_function_that_never_ends_is_killed_and_its_neighbours_are_answered(
    folder: Path, run_folder: Path, tools: Any
) -> None:
    models: dict[str, Any] = {"act": f"{folder}/models.py:act"}
    with (
        alone(f"ipc://{run_folder}/python", models, max_batch=ROWS, run_seconds_max=2.0) as made,
        made.client() as client,
    ):
        busy = client.submit("act", row(HOLD), timeout=60)
        tools.until(lambda: made.snapshot()["batches_lent"], what="the worker to be busy")
        good = [client.submit("act", row(value), timeout=60) for value in range(ROWS - 1)]
        bad = client.submit("act", row(HANG), timeout=60)
        busy.result(60)
        with pytest.raises(ModelFailed, match="longer than run_seconds_max = 2 allows"):
            bad.result(60)
        assert [future.result(60)[0, 0] for future in good] == [2 * value for value in range(ROWS - 1)]
        assert made.snapshot()["workers_hung"] == 2


# ---- loading and changing -----------------------------------------------------------------------

VERSION = """
import batchyard
@batchyard.model(inputs="float32[batch, 4]", outputs="float32[batch, 4]")
def f(x):
    return x + {}
"""


def test_a_function_is_swapped_under_load_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "version.py"
    path.write_text(VERSION.format(1))
    with serve(f"{path}:f") as yard, yard.client() as client:
        futures = [client.submit("f", row(0), timeout=60) for _ in range(50)]
        path.write_text(VERSION.format(2))  # as long, and perhaps in the same second
        changed = yard.operator.swap("f")
        assert (changed.revision, changed.difference) == (2, 1.0)
        assert {future.result(60)[0, 0] for future in futures} <= {1, 2}
        assert client.infer("f", row(0))[0, 0] == 2  # type: ignore[call-overload]

        path.write_text(VERSION.format("missing"))
        with pytest.raises(
            ModelFailed, match=r"NameError: name 'missing' is not defined.*revision 2 serves on"
        ):
            yard.operator.swap("f")
        assert client.request("f", row(0)).receipt.revision == 2

        for file in (f"{path}:f", "version.py:f", "os:system", "os.path:join"):
            with pytest.raises(InvalidRequest, match="this yard loads none by order"):
                yard.operator.load("other", file)


def test_orders_may_name_python_inside_models_root_where_the_yard_says_so(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "one.py").write_text(VERSION.format(1))
    (root / "two.py").write_text(VERSION.format(2))
    (tmp_path / "outside.py").write_text(VERSION.format(3))
    with serve({"f": f"{root}/one.py:f"}, load_python=True) as yard, yard.client() as client:
        assert yard.operator.swap("f", "two.py:f").revision == 2
        assert yard.operator.load("g", "one.py:f").revision == 1
        assert client.infer("f", row(0))[0, 0] == client.infer("g", row(0))[0, 0] + 1  # type: ignore[call-overload]
        for file in ("../outside.py:f", f"{tmp_path}/outside.py:f"):
            with pytest.raises(InvalidRequest, match="expected a file inside models_root"):
                yard.operator.load("h", file)
        with pytest.raises(InvalidRequest, match="os is an importable module"):
            yard.operator.load("h", "os:system")


def test_a_module_that_cannot_be_imported_ends_serve_with_its_reason(tmp_path: Path, log: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import no_such_library\n")
    with log.open("wb") as file, pytest.raises(ModelFailed, match="No module named 'no_such_library'"):
        serve(f"{path}:f", log=file)
    assert f'File "{path}", line 1, in <module>' in log.read_text()


def test_a_function_of_an_importable_module_is_found_where_this_program_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pack_91c").mkdir()
    (tmp_path / "pack_91c" / "__init__.py").write_text("")
    (tmp_path / "pack_91c" / "one.py").write_text("from .two import f\n")
    (tmp_path / "pack_91c" / "two.py").write_text(VERSION.format(5))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("pack_91c.two")
    with serve({"object": module.f, "text": "pack_91c.one:f"}) as yard, yard.client() as client:
        assert {client.infer(name, row(0))[0, 0] for name in ("object", "text")} == {5}  # type: ignore[call-overload]
        with pytest.raises(InvalidRequest, match="only a process that starts anew reads again"):
            yard.operator.swap("object")


def test_a_yard_of_a_configuration_serves_functions_with_what_it_says_of_them(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def f(batch):\n    return batch['a'] - batch['b']\n")
    (tmp_path / "batchyard.toml").write_text(
        '[models.minus]\npython = "plain.py:f"\nmax_batch = 4\n'
        'inputs = { a = "float32[n, 4]", b = "float32[n, 4]" }\noutputs = "float32[n, 4]"\n'
    )
    with Yard(["--config", str(tmp_path / "batchyard.toml")], 1, quiet=True) as yard, yard.client() as client:
        info = client.wait_ready("minus", 30)
        assert [str(spec) for spec in (*info.inputs, *info.outputs)] == [
            "a: float32[n, 4]", "b: float32[n, 4]", "output: float32[n, 4]",
        ]  # fmt: skip
        assert client.infer("minus", {"a": row(3), "b": row(1)})[0, 0] == 2  # type: ignore[call-overload]


def test_the_example_runs() -> None:
    example = Path(batchyard.__file__).parent / "examples" / "programs" / "python_model.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "143 of 150 digits are right" in done.stdout
