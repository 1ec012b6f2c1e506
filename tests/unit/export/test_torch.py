"""The whole way from torch modules to files. Skipped without torch: pip install -e '.[cpu,export]'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from batchyard.cli.main import main
from batchyard.export import InputSpec, export_to_onnx
from batchyard.transport.errors import InvalidRequest, ModelFailed

from ...required import module

torch: Any = module("torch")
torch.set_num_threads(1)

QUICK_S = 0.02  # of measuring: figures that nothing here depends on


@pytest.fixture(scope="module")
def cnn() -> Any:
    nn = torch.nn
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()]
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def test_the_owners_call(cnn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cnn.train()
    report = export_to_onnx(
        cnn, "model.onnx", input_shape=(1, 3, 32, 32), optimize=True, quantize=True, measure_s=0.2
    )
    assert cnn.training, "the caller's module goes on training"
    assert report.nodes < report.nodes_raw
    assert any(step.name == "rewrite patterns" and step.changed for step in report.passes)
    fp32, *variants = report.variants
    assert fp32.difference is not None
    assert fp32.difference.scaled_max < 1e-4
    assert fp32.difference.batch_sizes == (1, 2, 7, 32, 64)
    (dynamic,) = [variant for variant in variants if variant.name == "dynamic"]
    assert any(reason.startswith("slower: ") for reason in dynamic.refused), dynamic
    session = onnxruntime.InferenceSession(str(report.best.path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        wanted = cnn.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(None, {"input": images})[0], wanted, atol=0.02)
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["versions"]["torch"].startswith("2.")
    assert record["source"] == "torch.nn.modules.container.Sequential"


class Pair(torch.nn.Module):  # type: ignore[misc]
    """Two inputs of different dtypes, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)

    def forward(self, tokens: Any, mask: Any) -> Any:
        kept = self.embed(tokens) * mask.unsqueeze(-1)
        return kept.mean(1), kept.amax((1, 2))


def test_several_named_inputs_and_outputs(tmp_path: Path) -> None:
    specs = (InputSpec("tokens", (1, 12), "int64", 50), InputSpec("mask", (1, 12)))
    report = export_to_onnx(
        Pair(), tmp_path / "pair.onnx", specs, output_names=["mean", "top"], measure_s=QUICK_S
    )
    assert [part["name"] for part in report.inputs] == ["tokens", "mask"]
    assert report.outputs == [
        {"name": "mean", "dtype": "float32", "shape": ["batch", 16]},
        {"name": "top", "dtype": "float32", "shape": ["batch"]},
    ]


def test_a_saved_program_and_its_fixed_batch(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),))
    torch.export.save(program, tmp_path / "saved.pt2")
    report = export_to_onnx(tmp_path / "saved.pt2", tmp_path / "saved.onnx", (2, 4), measure_s=QUICK_S)
    assert (report.source, report.dynamic_batch) == ("saved.pt2", False)
    assert report.inputs[0]["shape"] == [2, 4]
    with pytest.raises(InvalidRequest, match=r"takes float32\[2, 4\], and float32\[1, 4\] was given"):
        export_to_onnx(tmp_path / "saved.pt2", tmp_path / "saved.onnx", (1, 4))


def test_a_state_dict_is_read_as_tensors_only(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    torch.save(model.state_dict(), tmp_path / "good.pt")
    torch.save(model, tmp_path / "whole.pt")
    given = {"input_shape": (1, 4), "measure_s": QUICK_S}
    export_to_onnx(torch.nn.Linear(4, 3), tmp_path / "m.onnx", weights=tmp_path / "good.pt", **given)
    with pytest.raises(InvalidRequest, match="no state dict"):
        export_to_onnx(torch.nn.Linear(4, 3), tmp_path / "n.onnx", weights=tmp_path / "whole.pt", **given)
    with pytest.raises(InvalidRequest, match="is a pickle"):
        export_to_onnx(tmp_path / "whole.pt", tmp_path / "n.onnx", **given)
    assert not (tmp_path / "n.onnx").exists()


def test_a_model_that_depends_on_its_values_is_refused_in_one_line(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ModelFailed, match="cannot be exported") as caught:
        export_to_onnx(Branching(), tmp_path / "b.onnx", (1, 4))
    assert "\n" not in str(caught.value)


def test_twenty_models_of_which_three_are_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], onnx_models: Any
) -> None:
    """Factories, and files that are ONNX already: torch takes most of a second for each of its own."""
    factories = tmp_path / "factories"
    factories.mkdir()
    good = "import torch\nINPUT = '1,4'\ndef model(): return torch.nn.Linear(4, {width})\n"
    for index in range(5):
        (factories / f"good{index:02}.py").write_text(good.format(width=index + 1))
    for index in range(5, 17):
        shutil.copy(onnx_models.affine(f"good{index:02}", 4, index), factories)
    (factories / "bad_import.py").write_text("import no_such_module\n")
    (factories / "bad_factory.py").write_text(
        "INPUT = '1,4'\ndef model(): raise OSError('no weights here')\n"
    )
    (factories / "bad_shape.py").write_text(good.format(width=3).replace("1,4", "1,5"))
    out = tmp_path / "out"
    assert main(["export", "--all", str(factories), str(out), "--measure", "0.001"]) == 1
    said = capsys.readouterr()
    assert "17 published, 3 failed" in said.out
    assert said.out.count("failed: ") == 3
    assert "[20/20]" in said.err
    assert len(list(out.glob("*.onnx"))) == len(list(out.glob("*.json"))) == 17
