"""The suite and the command line, against a stand-in yard: what is compared, printed and returned."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from batchyard.bench import main as command
from batchyard.bench import models, suite, target
from batchyard.bench.bare import Bare
from batchyard.bench.target import Target
from batchyard.transport.errors import BatchyardError, BrokerLost, Overloaded


class StandIn:
    """A client that computes in this process, and copies `copies` bytes for every request."""

    def __init__(self, path: Path, copies: int = 0, fails_every: int = 0) -> None:
        self._path, self._copies = path, copies
        self._fails_every, self._count = fails_every, itertools.count(1)
        self._runs: dict[int, Bare] = {}
        self.bytes_copied = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def infer(self, model: str, x: Any, /, **options: Any) -> Any:
        self.bytes_copied += self._copies
        if self._fails_every and next(self._count) % self._fails_every == 0:
            raise Overloaded("the yard is full")
        if id(x) not in self._runs:
            self._runs[id(x)] = Bare(self._path, x)
        return self._runs[id(x)].run()

    def submit(self, model: str, x: Any, /, **options: Any) -> Future[Any]:
        # It has no thread to answer from.
        raise Overloaded("a stand-in takes one at a time")


class StandInTargets:
    url = None
    threads = 1

    def __init__(self, **client: Any) -> None:
        self._client = client
        self.opened: list[tuple[str, int]] = []

    @contextmanager
    def open(self, model: str, max_batch: int = 8) -> Iterator[Target]:
        self.opened.append((model, max_batch))
        with models.written(model) as path:
            yard = SimpleNamespace(snapshot=lambda: {"copied_bytes": 0}, processes=[])
            yield Target(StandIn(path, **self._client), yard, path)


def _quiet(line: str) -> None:
    pass


def test_frame_reports_who_copied() -> None:
    targets: Any = StandInTargets(copies=10)
    finding = suite.frame(targets, rounds=2, seconds=0.04, say=_quiet)
    copied = finding.figures["copied_bytes"]
    assert copied["client"] >= 10 * copied["requests"] > 0
    assert copied["worker"] == 0
    assert targets.opened == [("frame", 8)] * 2  # a fresh yard each round
    assert "by client, 0 by workers" in finding.lines[1].ours
    assert not finding.errors


def test_a_wrong_answer_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "infer", lambda self, model, x: np.zeros((1, 3, 135, 240), np.float32))
    targets: Any = StandInTargets()
    with pytest.raises(BatchyardError, match="not that of the bare runtime"):
        suite.frame(targets, rounds=1, seconds=0.01, say=_quiet)


def test_cnn_opens_one_yard_for_each_maximum_batch() -> None:
    targets: Any = StandInTargets()
    finding = suite.cnn(targets, 1, 0.04, _quiet, (8, 16))
    assert targets.opened == [("cnn", 8), ("cnn", 16)]
    assert [line.benchmark for line in finding.lines] == [
        "cnn, 16 in flight, max batch 8",
        "cnn, 16 in flight, max batch 16",
    ]
    assert "Overloaded" in finding.errors  # all of the stand-in's submits, and not one is hidden


def test_a_failed_request_is_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    targets = StandInTargets(fails_every=3)
    monkeypatch.setattr(target, "Targets", lambda *values: targets)
    arguments = ["--only", "frame", "--rounds", "1", "--seconds", "0.1", "--json", str(tmp_path / "f.json")]
    assert command.main(arguments) == 1
    assert "FAILED in frame: Overloaded" in capsys.readouterr().out
    written = json.loads((tmp_path / "f.json").read_text())
    assert "Overloaded" in written["benchmarks"]["frame"]["errors"]
    assert {"cpu", "cores", "python", "onnxruntime", "pyzmq", "date"} <= written["machine"].keys()


def test_a_yard_that_is_not_there_fails_its_benchmark_and_not_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Nowhere(StandInTargets):
        def open(self, model: str, max_batch: int = 8) -> Any:
            self.opened.append((model, max_batch))
            raise BrokerLost("nobody answers")

    targets = Nowhere()
    monkeypatch.setattr(target, "Targets", lambda *values: targets)
    assert command.main(["--only", "frame,cnn", "--rounds", "1"]) == 1
    assert [model for model, _ in targets.opened] == ["frame", "cnn"]
    assert "FAILED in cnn: BrokerLost: nobody answers" in capsys.readouterr().out


def test_models_can_be_written_to_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["models", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cnn.onnx", "frame.onnx", "tiny.onnx"]
    assert capsys.readouterr().out.count(".onnx") == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "tiny"], "is not one of tiny-latency"),
        (["--rounds", "0"], "expected a whole number of 1 or more, found '0'"),
        (["--rounds", "x"], "expected a whole number of 1 or more, found 'x'"),
        (["--seconds", "inf"], "expected a number above 0"),
        (["--max-batch", "1,a"], "expected a whole number of 1 or more, found 'a'"),
        (["open", "--seconds", "nan"], "expected a number above 0, found 'nan'"),
        (["open", "--rate", "-1"], "a rate must be above 0"),
        (["open", "--priorities", "SOON"], "is not one of URGENT"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["open", "--help"], ["models", "--help"]])
def test_help_shows_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 0
    assert "bench" in capsys.readouterr().out
