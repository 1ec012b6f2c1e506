"""Lists of models: how they are read, and that one failure is one failure. The export itself is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batchyard.export import lists, many
from batchyard.export.specs import InputSpec
from batchyard.transport.errors import InvalidRequest, ModelFailed

LIST = """
[models.good]
source = "zoo:good"
inputs = ["tokens=int64:1,8:100", "mask=1,8"]
quantize = ["dynamic", "static"]
calibration = "rows.npz"

[models.saved]
source = "saved.pt2"
input = "1,4"

[models.odd]
source = "zoo:odd"
optimise = true
batch_max = "many"

[models.bare]
input = "1,4"
"""


def test_a_list_gives_each_model_its_arguments_and_each_mistake_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "list.toml").write_text(LIST)
    good, saved, odd, bare = lists.entries(tmp_path / "list.toml")
    model, given = good.load()
    assert model == "zoo:good"
    assert given["input_shape"] == (InputSpec("tokens", (1, 8), "int64", 100), InputSpec("mask", (1, 8)))
    assert given["quantize"] == ["dynamic", "static"]
    assert given["calibration"] == tmp_path / "rows.npz"
    assert saved.load()[0] == str(tmp_path / "saved.pt2")
    with pytest.raises(InvalidRequest, match=r"no key 'optimise'.*; batch_max is int, and not 'many'"):
        odd.load()
    with pytest.raises(InvalidRequest, match="has no source"):
        bare.load()


@pytest.mark.parametrize("text", ["", "models = 3", "not toml at all ["])
def test_a_list_without_models_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.toml").write_text(text)
    with pytest.raises(InvalidRequest):
        lists.entries(tmp_path / "list.toml")


def test_a_folder_has_a_model_per_file(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("INPUT = '1,4'\nOPSET = 18\nimport json\ndef model(): return 'made'\n")
    (tmp_path / "a.py").write_text("1 / 0\n")
    (tmp_path / "c.py").write_text("x = 1\n")
    (tmp_path / "_shared.py").write_text("")
    first, second, third = lists.entries(tmp_path)
    assert [first.name, second.name, third.name] == ["a", "b", "c"]
    with pytest.raises(ModelFailed, match=r"a\.py raised ZeroDivisionError: division by zero"):
        first.load()
    with pytest.raises(InvalidRequest, match="no function model"):
        third.load()


class Played:
    missing: tuple[str, ...] = ()

    class best:
        name = "fp32"


def test_twenty_models_of_which_three_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(model: Any, path: Path, **given: Any) -> Any:
        if model == "broken":
            raise ModelFailed("it cannot be exported\nand here is a page about it")
        assert given == {"opset": 18, "batch_max": 4}
        return Played()

    def refuses() -> Any:
        raise ValueError("no such weights")

    monkeypatch.setattr(many, "export_to_onnx", export)
    models = [lists.Entry(f"m{index}", lambda: ("fine", {"batch_max": 4})) for index in range(17)]
    models.insert(0, lists.Entry("x", lambda: ("broken", {})))
    models.insert(9, lists.Entry("y", refuses))
    models.append(lists.Entry("z", lambda: ("broken", {})))
    said: list[str] = []
    outcomes = many.export_many(models, tmp_path, said.append, opset=18, batch_max=8)
    assert [outcome.name for outcome in outcomes if outcome.failed] == ["x", "y", "z"]
    assert outcomes[0].error == "it cannot be exported"
    assert outcomes[9].error == "no such weights"
    assert len(said) == 40
    assert said[1].startswith("[1/20] x: failed: it cannot be exported (")
