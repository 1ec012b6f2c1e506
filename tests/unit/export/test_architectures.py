"""The example of a search: what the folder names, and three of its kind, untrained. Skipped without torch."""

from __future__ import annotations

from pathlib import Path

from batchyard.export.benchmark import Plan, benchmark
from batchyard.export.benchmark.order import ranked
from batchyard.export.lists import entries

from ...required import module

module("torch")

EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = """
[models.cnn]
source = "batchyard.examples.architectures._digits:cnn"
input = "image=1,1,8,8"
arguments = { epochs = 0, depth = 1 }
grid = { width = [2, 4] }

[models.none]
source = "batchyard.examples.architectures._digits:cnn"
input = "image=1,1,8,8"
arguments = { depth = 1 }     # and no width
"""


def test_the_folder_names_a_dozen_architectures_and_one() -> None:
    names = [entry.name for entry in entries(EXAMPLES / "architectures")]
    assert len(names) == 13
    assert {"mlp-depth2-width256", "cnn-depth1-width4", "softmax"} <= set(names)


def test_a_few_of_them_are_exported_evaluated_and_ranked(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    plan = Plan(
        tmp_path / "small.toml",
        tmp_path / "out",
        {"measure_s": 0.01},
        str(EXAMPLES / "digits_test.npz"),
        (1, 4),
    )
    found = benchmark(plan)
    errors = [candidate["export_error"] for candidate in found["candidates"]]
    assert errors[:2] == [None, None]
    assert "missing 1 required positional argument: 'width'" in errors[2]
    for name, part in ranked(found):
        assert 0 <= part["accuracy"] <= 1
        assert part["front"] in (0, 1), name
