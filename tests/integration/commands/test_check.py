"""`batchyard check`, as somebody new would run it: real files, good and bad, and a process that dies."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from batchyard import serve
from batchyard.cli import check, main
from batchyard.cli.main import VERBS
from onnx import TensorProto, helper, numpy_helper

BATCHYARD = [sys.executable, "-m", "batchyard.cli.main"]
F = TensorProto.FLOAT


def save(
    folder: Path,
    name: str,
    nodes: list[Any],
    takes: list[Any],
    gives: list[Any],
    opset: int = 17,
    **weights: Any,
) -> Path:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, **more) for kind, inputs, outputs, more in nodes],
        "m",
        [info(*value) for value in takes],
        [value if isinstance(value, onnx.ValueInfoProto) else info(*value) for value in gives],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()],
    )
    file = folder / name
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), file)
    return file


def run_alone(*words: Any, cwd: Path) -> Any:
    command = [*BATCHYARD, "check", *map(str, words), "--seconds", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def run(*words: Any) -> Any:
    """The same in this process, which has imported what it needs."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main.main(["check", *map(str, words), "--seconds", "1"])
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def checked(*words: Any) -> Any:
    done = run(*words, "--json", "--provider", "cpu")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def linear(folder: Path, name: str = "linear.onnx") -> Path:
    return save(
        folder, name, [("MatMul", ["x", "w"], ["y"], {})], [("x", F, ["batch", 4])], [("y", F, ["batch", 3])],
        w=np.ones((4, 3), np.float32),
    )  # fmt: skip


def test_a_model_is_described_measured_and_has_a_table_to_paste(tmp_path: Path) -> None:
    file = linear(tmp_path)
    done = run_alone(file, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # no progress off a terminal, no lines of the runtime's
    for said in (
        "linear.onnx: can be served",
        "input    x: float32[batch, 4]",
        "output   y: float32[batch, 3]",
        "batches  every output has the axis 'batch'",
        "rows     axis 0 of x, axis 0 of y",
        "PROVIDER  ROWS",
        '[models.linear]\nfile = "linear.onnx"\nmax_batch = ',
    ):
        assert said in done.stdout
    found = checked(file)
    runs = found["runs"]["cpu"]
    assert [one["rows"] for one in runs] == [1, 2, 4, 8, 16, 32]
    assert all(one["run_ns"] > 0 and one["memory_bytes"] > 1 << 20 for one in runs)
    assert found["model"]["batch_axes"] == [0, 0]


def test_what_is_written_can_be_served(tmp_path: Path) -> None:
    linear(tmp_path)
    done = run_alone("linear.onnx", "--write", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"added to {tmp_path / 'batchyard.toml'}" in done.stdout
    again = run_alone("linear.onnx", "--write", cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "has a [models.linear] already" in again.stderr
    assert run_alone("linear.onnx", "--write", "--name", "other", cwd=tmp_path).returncode == 0
    listed = subprocess.run(
        [sys.executable, "-c", "import sys, pathlib; from batchyard.broker import config; "
         "print(*config.read(pathlib.Path('batchyard.toml')).models)"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert listed.stdout.split() == ["linear", "other"]


def test_rows_that_depend_on_each_other_are_told_of_with_the_figure(tmp_path: Path) -> None:
    file = save(
        tmp_path, "mixes.onnx", [("Softmax", ["x"], ["y"], {"axis": 0})], [("x", F, ["n", 4])], [("y", F, ["n", 4])]
    )  # fmt: skip
    found = checked(file)
    assert found["model"]["batchable"] is False
    assert "differ by" in found["model"]["why"]
    assert [one["rows"] for one in found["runs"]["cpu"]] == [1]
    assert "max_batch" not in found["toml"]
    assert "alone    every output has the axis 'n', but rows run alone" in run(file).stdout


def test_a_state_is_seen(tmp_path: Path) -> None:
    file = save(
        tmp_path, "s.onnx", [("Add", ["x", "h"], ["hn"], {}), ("Neg", ["hn"], ["y"], {})],
        [("x", F, ["n", 4]), ("h", F, ["n", 4])], [("y", F, ["n", 4]), ("hn", F, ["n", 4])],
    )  # fmt: skip
    assert checked(file)["states"] == {"h": "hn"}
    assert "hn is the next h: client.sequence('s') keeps it" in run(file).stdout


def test_it_says_what_a_yard_says(tmp_path: Path) -> None:
    file = linear(tmp_path)
    found = checked(file)["model"]
    with serve(file, threads=1) as yard, yard.client(segment="frames") as client:
        (info,) = client.models()
    assert (found["batchable"], found["batch_axes"]) == (info.batchable, info.batch_axes)
    # How many rows were tried depends on how long they took.
    assert found["why"].partition(";")[0] == info.evidence.partition(";")[0]


SEQUENCE = helper.make_tensor_sequence_value_info("y", F, None)


def broken(folder: Path, kind: str) -> Path:
    relu = [("Relu", ["x"], ["y"], {})]
    x, y = [("x", F, ["n", 4])], [("y", F, ["n", 4])]
    if kind == "opset":
        return save(folder, "m.onnx", relu, x, y, opset=99)
    if kind == "operator":
        return save(folder, "m.onnx", [("Frobnicate", ["x"], ["y"], {})], x, y)
    if kind == "type":
        return save(folder, "m.onnx", [("SequenceConstruct", ["x"], ["y"], {})], x, [SEQUENCE])
    file = folder / "m.onnx"
    if kind == "data":
        model = onnx.load(linear(folder))
        onnx.save_model(model, file, save_as_external_data=True, location="m.data", size_threshold=0)
        (folder / "m.data").unlink()
    elif kind == "text":
        file.write_text("I am no model")
    elif kind == "folder":
        file.mkdir()
    return file


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("opset", "it uses opset 99 of ai.onnx"),
        ("operator", "it uses the operator Frobnicate"),
        ("type", "is of type seq(tensor(float)); batchyard carries tensors of"),
        ("data", "'m.data', and that is missing"),
        ("text", "it is no ONNX file"),
        ("folder", "is a folder"),
        ("gone", "there is no file"),
    ],
)
def test_a_bad_model_is_told_of_by_its_own_fault_in_one_line(tmp_path: Path, kind: str, said: str) -> None:
    file = broken(tmp_path, kind)
    done = run(file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    as_json = run(file, "--json")
    assert as_json.returncode == 1
    assert said in json.loads(as_json.stdout)["error"]


def test_a_model_that_ends_its_process_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dies = "import os, sys; print('boom', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"
    monkeypatch.setattr(check, "CHILD", [sys.executable, "-c", dies])
    assert main.main(["check", str(linear(tmp_path))]) == 1
    said = capsys.readouterr().err
    assert "signal SIGSEGV while it was loaded: so would a worker; its last words: boom" in said


def test_a_model_that_never_loads_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "CHILD", [sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(check, "PATIENCE_S", 0.2)
    assert main.main(["check", str(linear(tmp_path)), "--seconds", "0.1"]) == 1
    assert "it was not done within 0.3 s, and was ended" in capsys.readouterr().err


def test_a_model_that_no_invented_input_suits_can_be_served_unmeasured(tmp_path: Path) -> None:
    """Reshape to sizes that are an input: nothing that is drawn fits."""
    file = save(
        tmp_path, "r.onnx", [("Reshape", ["x", "to"], ["y"], {})],
        [("x", F, [7, 5]), ("to", TensorProto.INT64, [3])], [("y", F, [None, None, None])],
    )  # fmt: skip
    found = checked(file)
    assert (found["model"]["measured_with"], found["runs"]) == (None, {})
    assert "not measured: it runs on none of the inputs" in run(file).stdout


def test_a_model_of_fixed_shape_is_measured_alone(tmp_path: Path) -> None:
    found = checked(
        save(tmp_path, "f.onnx", [("Neg", ["x"], ["y"], {})], [("x", F, [1, 4])], [("y", F, [1, 4])])
    )
    assert "fixed" in found["model"]["why"]
    assert [one["rows"] for one in found["runs"]["cpu"]] == [1]


def test_the_sizes_that_free_axes_were_given_are_said(tmp_path: Path) -> None:
    file = save(
        tmp_path, "i.onnx", [("Neg", ["x"], ["y"], {})],
        [("x", F, ["n", 3, "height", "width"])], [("y", F, ["n", 3, "height", "width"])],
    )  # fmt: skip
    assert "sizes    measured with x[1, 3, 64, 64]" in run(file).stdout


def test_axes_that_could_be_padded_are_named(tmp_path: Path) -> None:
    """A sum does not mind zeros behind it; a mean does."""
    takes, gives = [("x", F, ["n", "length"])], [("y", F, ["n"])]
    harmless = save(
        tmp_path, "sum.onnx", [("ReduceSum", ["x", "one"], ["y"], {"keepdims": 0})], takes, gives, one=[1]
    )
    harmful = save(
        tmp_path, "mean.onnx", [("ReduceMean", ["x"], ["y"], {"axes": [1], "keepdims": 0})], takes, gives
    )
    for file, is_harmless in ((harmless, True), (harmful, False)):
        (pad,) = checked(file)["pads"]
        assert (pad["axis"], pad["harmless"]) == ("length", is_harmless)
        assert "differ" in pad["why"]


def test_another_provider_that_is_not_here_is_named(tmp_path: Path) -> None:
    done = run(linear(tmp_path), "--provider", "cuda")
    assert done.returncode == 1
    assert "cuda comes with onnxruntime-gpu" in done.stderr


def test_check_is_a_verb() -> None:
    assert "check" in VERBS
