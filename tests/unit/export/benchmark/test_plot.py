"""The plot, where matplotlib is, and what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from batchyard.cli import export_benchmark
from batchyard.export.benchmark.plot import Point, draw
from batchyard.transport.extras import install

FOUND = {
    "provider": "CPUExecutionProvider",
    "evaluate": "labelled.npz",
    "batches": [1],
    "baseline": {"file": "a.onnx"},
    "candidates": [
        {
            "name": "a",
            "export_error": None,
            "files": [
                {
                    "variant": "fp32",
                    "file": "a.onnx",
                    "bytes": 2048,
                    "accuracy": 0.9,
                    "front": 0,
                    "latencies": [{"batch": 1, "ratio": 1.0, "ms": 0.5}],
                }
            ],
        },
        {"name": "b", "export_error": "it cannot be exported", "files": []},
    ],
}


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_a_picture_of_the_kind_that_its_name_says(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    path = tmp_path / f"pareto{suffix}"
    draw(path, [Point("a", 1.0, 0.9, True), Point("b", 20.0, 0.8, False)], "ms", "accuracy", "two")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in content


def test_without_matplotlib_the_plot_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import of it raises ModuleNotFoundError
    said: list[str] = []
    export_benchmark.plot(FOUND, tmp_path / "pareto.png", said.append)
    assert said == [f"no plot: matplotlib is not installed: {install('plot')}"]
    assert list(tmp_path.iterdir()) == []


def test_the_table_marks_the_front_names_the_failures_and_says_what_is_missing() -> None:
    table = export_benchmark.lines(FOUND)
    assert table[1].split() == ["*", "a", "fp32", "0.9", "0.500", "ms", "1.00x", "2", "KB"]
    assert "failed: b: it cannot be exported" in table
    assert "Pareto front by accuracy and latency" in table[-1]
    missing = export_benchmark.lines({**FOUND, "evaluate": None})
    assert "accuracy is missing (--evaluate)" in missing[-1]
    nothing = export_benchmark.lines({**FOUND, "candidates": FOUND["candidates"][1:]})  # type: ignore[index]
    assert nothing == ["failed: b: it cannot be exported"]
