"""`batchyard export --all DIR --benchmark` with real processes: what fails alone, what is not done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.cli.main import main
from batchyard.export import runtime
from batchyard.export.benchmark import Plan, benchmark, exporters
from batchyard.export.benchmark.order import ranked
from batchyard.transport.errors import InvalidRequest

QUICK = {"measure_s": 0.01}
WIDTH = 8


@pytest.fixture(scope="module")
def folder(onnx_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three networks that run, of which one is the labels' own, and three that don't; none needs torch."""
    found = tmp_path_factory.mktemp("candidates")
    for name, out, seed in (("one", 4, 1), ("two", 4, 2), ("wide", 4, 3)):
        shutil.copy(onnx_models.affine(f"candidate_{name}", WIDTH, out, seed), found / f"{name}.onnx")
    (found / "broken.onnx").write_bytes(b"not a model")
    (found / "killer.py").write_text(
        'import os, signal\nprint(\'{"ended": "one"}\', flush=True)\n'
        "INPUT = '1,4'\ndef model(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (found / "raises.py").write_text("input()\n")
    return found


@pytest.fixture(scope="module")
def labelled(folder: Path) -> Path:
    """Rows that `two` has labelled."""
    rows = np.random.default_rng(0).standard_normal((300, WIDTH)).astype(np.float32)
    (scores,) = runtime.run(runtime.session(str(folder / "two.onnx")), {"x": rows})
    path = folder.parent / "labelled.npz"
    np.savez(path, x=rows, labels=scores.argmax(1))
    return path


@pytest.fixture(scope="module")
def first(
    folder: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder that a first benchmark wrote, and its record."""
    out = tmp_path_factory.mktemp("benchmarked")
    found = benchmark(Plan(folder, out, QUICK, str(labelled), (1, 4), jobs=2))
    return out, found


def test_candidates_that_fail_stop_nobody_else(first: tuple[Path, dict[str, Any]]) -> None:
    out, found = first
    errors = {candidate["name"]: candidate["export_error"] for candidate in found["candidates"]}
    assert [name for name, error in errors.items() if error is None] == ["one", "two", "wide"]
    assert f"signal {signal.SIGKILL:d}" in errors["killer"]
    assert "no readable ONNX file" in errors["broken"]
    assert "raises.py raised EOFError" in errors["raises"]  # there is no terminal to read from
    assert {path.name for path in out.glob("*.onnx")} == {"one.onnx", "two.onnx", "wide.onnx"}


def test_the_record_is_the_file_and_every_figure_is_in_it(first: tuple[Path, dict[str, Any]]) -> None:
    out, found = first
    assert json.loads((out / "benchmark.json").read_text())["candidates"] == found["candidates"]
    files = dict(ranked(found))
    assert next(name for name, part in ranked(found) if part["accuracy"] == 1.0) == "two"
    assert next(iter(files)) == "two", "the most accurate of the front comes first"
    for part in files.values():
        assert [one["batch"] for one in part["latencies"]] == [1, 4]
        assert all(one["ratio"] > 0 and one["ms"] > 0 and one["rounds"] > 8 for one in part["latencies"])
    assert found["baseline"]["file"] == "one.onnx"


def test_what_has_not_changed_is_neither_exported_nor_timed_again(
    folder: Path, labelled: Path, first: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    before, _ = first
    out, where = tmp_path / "out", tmp_path / "candidates"
    shutil.copytree(before, out)
    shutil.copytree(folder, where)
    for name in ("broken.onnx", "killer.py", "raises.py"):
        (where / name).unlink()
    plan = Plan(where, out, QUICK, str(labelled), (1, 4))
    # The files' places count as little as their times: only what is in them.
    said: list[str] = []
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.onnx")}
    again = benchmark(plan, said.append)
    assert said == ["3 of 3 have not changed, and are not exported again"], said
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.onnx")} == written
    assert [part["latencies"] for _, part in ranked(again)]

    shutil.copy(where / "wide.onnx", where / "one.onnx")  # another model now
    (out / "two.onnx").unlink()
    said.clear()
    benchmark(plan, said.append)
    assert said[0] == "1 of 3 have not changed, and are not exported again"
    assert sorted(line.split()[1] for line in said if "exported (" in line) == ["one:", "two:"]


def test_a_candidate_that_never_ends_is_ended(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\nINPUT = '1,4'\ndef model(): time.sleep(3600)\n")
    with (tmp_path / "log").open("wb") as log:
        made = exporters.Exporters(tmp_path, tmp_path, {}, 1, 0.5, log)
        (ended,) = made.run(["endless"])
    assert ended.error == "it was still not exported after 0.5 s"


def test_whoever_stops_listening_leaves_no_process_behind(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("import time\nINPUT = '1,4'\ndef model(): time.sleep(3600)\n")
    (tmp_path / "c.py").write_text("1 / 0\n")
    with (tmp_path / "log").open("wb") as log:
        made = exporters.Exporters(tmp_path, tmp_path, {}, 3, 3600, log).run(["a", "b", "c"])
        assert next(made).name == "c"
        made.close()  # as an interrupt does; the fixture looks for what is left


def test_a_baseline_that_is_not_there_and_a_name_that_is_taken_are_refused(
    first: tuple[Path, dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    out, where = tmp_path / "out", tmp_path / "candidates"
    shutil.copytree(first[0], out)
    where.mkdir()
    shutil.copy(folder / "one.onnx", where)
    with pytest.raises(InvalidRequest, match="'nobody' is none of the exported candidates"):
        benchmark(Plan(where, out, QUICK, baseline="nobody"))
    (tmp_path / "benchmark.py").write_text("")
    with pytest.raises(InvalidRequest, match="cannot be called benchmark"):
        benchmark(Plan(tmp_path, out))


def test_the_command_ranks_draws_and_fails_when_a_candidate_has(
    folder: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "candidates"
    where.mkdir()
    for name in ("one.onnx", "broken.onnx"):
        shutil.copy(folder / name, where)
    arguments = ["export", "--all", str(where), str(tmp_path / "out"), "--benchmark", "--measure", "0.01"]
    assert main([*arguments, "--evaluate", str(labelled), "--batches", "1,2"]) == 1
    said = capsys.readouterr()
    assert "1 ranked, 1 failed" in said.out
    assert "failed: broken: " in said.out
    assert "[2/2]" in said.err
    assert os.path.exists(tmp_path / "out" / "pareto.png") or "no plot: matplotlib" in said.err
