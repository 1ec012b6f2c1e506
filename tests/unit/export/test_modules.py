"""Modules that are called, or answer, in an unusual way, and what is said of those that cannot be exported.
Skipped without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from batchyard.export import InputSpec, export_to_onnx
from batchyard.export.validation import compare, sized_case
from batchyard.transport.errors import InvalidRequest, ModelFailed

from ...required import module

torch: Any = module("torch")
torch.set_num_threads(1)
nn = torch.nn
QUICK_S = 0.001


class OnlyNamed(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any, *, scale: Any) -> Any:
        return x * scale


class AnyNamed(nn.Module):  # type: ignore[misc]
    def forward(self, **values: Any) -> Any:
        return values["x"] - values["scale"]


class AnyNumber(nn.Module):  # type: ignore[misc]
    def forward(self, *values: Any) -> Any:
        return values[0] - values[1]


class Mapping(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return {"top": x + 1, "nothing": None, "all of it": [x * 2, x * 3]}


class Writes(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        x += 1
        return x


class Roots(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x.sqrt()


class Float8(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x.to(torch.float8_e4m3fn)


class Random(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x + torch.randn_like(x)


class Branches(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


class NotANumber(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x * float("nan")


class SparseWeight(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(4).to_sparse())

    def forward(self, x: Any) -> Any:
        return torch.sparse.mm(self.weight, x.T).T


class GivesSparse(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x.to_sparse()


class SwitchesBySize(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x[:, :5] if x.shape[1] > 8 else x * 2


class State(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 6)

    def forward(self, x: Any, state: Any) -> Any:
        return self.cell(x, state)


class Endless(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return self.forward(x)


def exported(model: Any, folder: Path, shape: Any = (2, 4), **options: Any) -> Any:
    torch.manual_seed(0)
    return export_to_onnx(model, folder / "out.onnx", shape, measure_s=QUICK_S, **options)


def answers(report: Any, **feeds: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feeds)
    return found


X, SCALE = np.full((3, 4), 5, np.float32), np.full((3, 4), 2, np.float32)


@pytest.mark.parametrize(("model", "answer"), [(OnlyNamed, 10.0), (AnyNamed, 3.0), (AnyNumber, 3.0)])
def test_inputs_reach_forward_however_it_takes_them(model: Any, answer: float, tmp_path: Path) -> None:
    report = exported(model(), tmp_path, {"x": (2, 4), "scale": (2, 4)})
    assert answers(report, x=X, scale=SCALE)[0].tolist() == np.full((3, 4), answer).tolist()
    assert report.batch["inputs"] == {"x": 0, "scale": 0}


def test_outputs_are_called_by_the_keys_under_which_they_are_returned(tmp_path: Path) -> None:
    report = exported(Mapping(), tmp_path)
    assert [part["name"] for part in report.outputs] == ["top", "all_of_it_0", "all_of_it_1"]
    assert [one[0, 0] for one in answers(report, input=X)] == [6, 10, 15]
    named = exported(Mapping(), tmp_path, output_names=["a", "b", "c"])
    assert [part["name"] for part in named.outputs] == ["a", "b", "c"]


def test_a_model_that_writes_into_its_input_is_compared_with_what_it_was_given(tmp_path: Path) -> None:
    assert answers(exported(Writes(), tmp_path), input=X)[0][0, 0] == 6


def test_where_pytorch_gives_no_number_the_file_must_not_either(tmp_path: Path) -> None:
    report = exported(Roots(), tmp_path)
    assert any("NaN" in note for note in report.notes)
    specs = (InputSpec("x", (2, 4)),)
    with np.errstate(invalid="ignore"):
        case = sized_case(specs, lambda feeds: [np.sqrt(feeds["x"])], {})
    assert np.isnan(case.wanted[0]).any()
    assert np.isnan(compare([case], lambda feeds: [np.abs(feeds["x"])], ["values"]).scaled_max)


def test_floats_of_8_bits_come_out_as_they_are(tmp_path: Path) -> None:
    report = exported(Float8(), tmp_path)
    assert report.variants[0].difference.abs_max == 0


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Random, "differently each time"),
        (Branches, r"depends on the values of a tensor.*\(test_modules.py, line \d+\)"),
        (NotANumber, "all NaN"),
        (SparseWeight, "cannot be exported: .*_sparse_addmm"),
        (GivesSparse, r"cannot be written as numbers \(float32, sparse_coo, on cpu\)"),
        (Endless, "calls itself without end"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_sentence(model: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFailed, match=text) as caught:
        exported(model(), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_the_sizes_at_which_a_file_is_wrong_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFailed, match=r"with x \[2, 8\]: its answers are"):
        exported(SwitchesBySize(), tmp_path, {"x": (2, 16)}, dynamic=["x:1=n"])


def test_an_input_that_may_count_rows_as_well_is_named(tmp_path: Path) -> None:
    inputs = {"x": (5, 4, 3), "state": (1, 4, 6)}
    with pytest.raises(ModelFailed, match="--dynamic state:1=batch"):
        exported(State(), tmp_path, inputs, dynamic=["x:0=sequence", "x:1=batch"])


def test_a_compiled_module_is_exported_as_it_was_before(tmp_path: Path) -> None:
    report = exported(torch.compile(nn.Linear(4, 2)), tmp_path)
    assert report.batch["inputs"] == {"input": 0}
    assert report.variants[0].difference.scaled_max < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_what_no_exporter_reads_is_refused_before_it_is_traced(tmp_path: Path) -> None:
    packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    with pytest.raises(InvalidRequest, match="quantized already"):
        exported(packed, tmp_path)
    with pytest.raises(InvalidRequest, match="is TorchScript"):
        exported(torch.jit.trace(nn.Linear(4, 4), torch.zeros(2, 4)), tmp_path)
