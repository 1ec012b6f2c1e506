"""Free axes, the batch on its axis, and types besides float32, of torch modules. Skipped without torch."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from batchyard.export import InputSpec, export_to_onnx, runtime
from batchyard.export.specs import numpy_dtype
from batchyard.transport.errors import InvalidRequest, ModelFailed

from ...required import module

torch: Any = module("torch")
torch.set_num_threads(1)
nn = torch.nn
QUICK_S = 0.001


def exported(model: Any, folder: Path, shape: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return export_to_onnx(model, folder / "out.onnx", shape, measure_s=QUICK_S, **options)


def shapes(report: Any) -> list[Any]:
    return [part["shape"] for part in (*report.inputs, *report.outputs)]


def session(report: Any) -> Any:
    return onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])


# ---- the batch ----------------------------------------------------------------------------------


def test_an_encoder_that_is_sequence_first_has_no_batch_on_axis_0(tmp_path: Path) -> None:
    """torch's own default. Published as a batch, it answers strangers' sentences as one."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1, enable_nested_tensor=False)
    report = exported(encoder, tmp_path, {"x": (12, 4, 16)})
    assert (report.dynamic_batch, report.batch["inputs"]) == (False, {})
    assert "rows run alone and together differ by" in report.batch["reason"]
    assert shapes(report) == [["x_0", 4, 16], ["x_0", 4, 16]]
    report = exported(encoder, tmp_path, {"x": (12, 4, 16)}, dynamic=["x:0=sequence", "x:1=batch"])
    assert report.batch["inputs"] == {"x": 1}
    assert shapes(report) == [["sequence", "batch", 16]] * 2
    assert report.variants[0].difference.batch_sizes == (1, 2, 7, 32, 64)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_recurrent_model_has_its_batch_on_axis_1_and_any_length(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = exported(kind(8, 16), tmp_path, {"x": (20, 4, 8)})
    assert (report.batch["inputs"], report.inputs[0]["shape"]) == ({}, [20, 4, 8])
    # torch's tracer fixes the length; the graph does not depend on it, as other lengths show.
    report = exported(kind(8, 16), tmp_path, {"x": (20, 4, 8)}, dynamic=["x:1=batch", "x:0=sequence"])
    assert report.batch["inputs"] == {"x": 1}
    assert shapes(report)[:2] == [["sequence", "batch", 8], ["sequence", "batch", 16]]
    assert report.checked["sequence"][0] == 1
    assert len(report.checked["sequence"]) > 4


class Continued(nn.Module):  # type: ignore[misc]
    """Goes on from a state that is given."""

    def __init__(self, recurrent: Any) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Any, h: Any, c: Any = None) -> Any:
        return self.recurrent(x, h if c is None else (h, c))


@pytest.mark.parametrize("is_batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_layers_both_ways_go_on_from_a_given_state_for_any_length(
    kind: Any, is_batch_first: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Continued(kind(4, 6, num_layers=2, bidirectional=True, batch_first=is_batch_first))
    rows, length = (0, 1) if is_batch_first else (1, 0)
    given = {"x": (3, 7, 4) if is_batch_first else (7, 3, 4), "h": (4, 3, 6)}
    dynamic = [f"x:{length}=sequence", f"x:{rows}=batch", "h:1=batch"]
    if kind is nn.LSTM:
        given, dynamic = {**given, "c": (4, 3, 6)}, [*dynamic, "c:1=batch"]
    report = exported(model, tmp_path, given, dynamic=dynamic)
    assert (report.batch["inputs"]["x"], report.batch["inputs"]["h"]) == (rows, 1)
    assert report.batch["outputs"] == {"output_0": rows, "output_1": 1} | ({"output_2": 1} if kind is nn.LSTM else {})
    assert {1, 3, 10} <= set(report.checked["sequence"])


def test_a_recurrent_model_without_biases_and_with_relu_is_no_other_model(tmp_path: Path) -> None:
    recurrent = nn.RNN(4, 6, num_layers=3, nonlinearity="relu", bias=False, batch_first=True)
    report = exported(recurrent, tmp_path, {"x": (1, 7, 4)}, dynamic=["x:1=sequence"])
    assert {1, 3, 10} <= set(report.checked["sequence"])
    assert report.variants[0].difference.scaled_max < 1e-5


def test_a_recurrent_model_in_doubles_keeps_its_steps(tmp_path: Path) -> None:
    """onnxruntime has no kernel of the operator for them."""
    report = exported(nn.RNN(4, 6).double(), tmp_path, [InputSpec("x", (5, 3, 4), "float64")], dynamic=["x:1=batch"])
    assert (report.batch["inputs"], report.inputs[0]["shape"]) == ({"x": 1}, [5, "batch", 4])
    with pytest.raises(InvalidRequest, match=r"A Python loop over an axis is written for one size: use nn.RNN"):
        exported(
            nn.RNN(4, 6).double(),
            tmp_path,
            [InputSpec("x", (5, 3, 4), "float64")],
            dynamic=["x:1=batch", "x:0=sequence"],
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_recurrent_model_in_half_precision_has_any_length(dtype: str, tmp_path: Path) -> None:
    model = nn.RNN(4, 6).to(getattr(torch, dtype))
    report = exported(model, tmp_path, [InputSpec("x", (7, 3, 4), dtype)], dynamic=["x:0=sequence", "x:1=batch"])
    assert (report.batch["inputs"], {1, 3, 10} <= set(report.checked["sequence"])) == ({"x": 1}, True)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.LSTM(4, 6).double(), r"has an nn.LSTM in float64, .*: export it in float32 \(model.float\(\)\)"),
        (nn.GRU(4, 6).double(), r"has an nn.GRU in float64"),
        (nn.LSTM(4, 6, proj_size=3, bidirectional=True), r"has an nn.LSTM with proj_size, which ONNX does not have"),
    ],
)
def test_recurrent_layers_that_no_runtime_has_are_named_with_the_way_out(
    model: Any, sentence: str, tmp_path: Path
) -> None:
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    with pytest.raises(InvalidRequest, match=sentence):
        exported(model, tmp_path, [InputSpec("x", (5, 3, 4), dtype)], dynamic=["x:1=batch"])


def test_two_things_that_are_counted_are_no_batch_and_keep_their_own_sizes(tmp_path: Path) -> None:
    class Clip(nn.Module):  # type: ignore[misc]
        def forward(self, image: Any, text: Any) -> Any:
            return image @ text.T

    report = exported(Clip(), tmp_path, {"image": (1, 4), "text": (1, 4)})
    assert report.batch["inputs"] == {}
    assert shapes(report) == [["image_0", 4], ["text_0", 4], ["image_0", "text_0"]]
    assert session(report).run(None, {"image": np.ones((2, 4), "f4"), "text": np.ones((5, 4), "f4")})[0].shape == (2, 5)


def test_statistics_over_the_rows_are_seen(tmp_path: Path) -> None:
    class Normed(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return (x - x.mean(0)) / x.std(0)

    report = exported(Normed(), tmp_path, {"x": (4, 8)})
    assert report.batch["inputs"] == {}
    assert 1 not in report.checked["x_0"], "one row has no deviation: PyTorch itself answers NaN"


def test_a_model_for_one_row_is_published_as_such(tmp_path: Path) -> None:
    class One(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.reshape(1, 12).cumsum(-1)

    report = exported(One(), tmp_path, {"x": (1, 3, 4)})
    assert shapes(report) == [[1, 3, 4], [1, 12]]
    assert "with 2 rows on axis 0" in report.batch["reason"]


def test_an_input_that_all_rows_share_is_said_to_be_fixed(tmp_path: Path) -> None:
    class Shared(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any, table: Any) -> Any:
            return x @ table

    report = exported(Shared(), tmp_path, {"x": (1, 8), "table": (8, 3)}, dynamic=["table:0=fixed"])
    assert (report.batch["inputs"], shapes(report)[1]) == ({"x": 0}, [8, 3])


# ---- other free axes ----------------------------------------------------------------------------


class Attends(nn.Module):  # type: ignore[misc]
    """Tokens and a cache of earlier ones: two lengths, and a mask of both together."""

    def forward(self, x: Any, past: Any, mask: Any) -> Any:
        keys = torch.cat([past, x], 1)
        return (x @ keys.transpose(1, 2) + mask[:, None, :]).softmax(-1) @ keys, keys


def test_a_cache_and_a_sequence_have_two_names_and_their_sum_is_found(tmp_path: Path) -> None:
    given = {"x": (1, 5, 8), "past": (1, 7, 8), "mask": (1, 12)}
    dynamic = {"x": {1: "sequence"}, "past": {1: "cache"}, "mask": {1: "total"}}
    report = exported(Attends(), tmp_path, given, dynamic=dynamic)
    assert shapes(report) == [
        ["batch", "sequence", 8],
        ["batch", "cache", 8],
        ["batch", "sequence + cache"],
        ["batch", "sequence", 8],
        ["batch", "sequence + cache", 8],
    ]
    assert set(report.checked) == {"sequence", "cache"}
    feeds = {"x": np.ones((3, 2, 8), "f4"), "past": np.ones((3, 0, 8), "f4"), "mask": np.zeros((3, 2), "f4")}
    assert session(report).run(None, feeds)[1].shape == (3, 2, 8), "an empty cache, too"


def test_names_that_the_model_makes_one_size_are_refused(tmp_path: Path) -> None:
    class Sum(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any, y: Any) -> Any:
            return x + y

    given, dynamic = {"x": (1, 5), "y": (1, 5)}, ["x:1=left", "y:1=right"]
    with pytest.raises(InvalidRequest, match="left and right are one size in this model"):
        exported(Sum(), tmp_path, given, dynamic=dynamic)


def test_pictures_may_have_any_size_that_the_network_takes(tmp_path: Path) -> None:
    class Halved(nn.Module):  # type: ignore[misc]
        """Down by eight, up again, and joined with what was there: as detectors do it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 4, 1)

        def forward(self, image: Any) -> Any:
            small = nn.functional.avg_pool2d(image, 8)
            return self.conv(torch.cat([nn.functional.interpolate(small, scale_factor=8), image], 1)).flatten(2)

    report = exported(Halved(), tmp_path, {"image": (1, 3, 64, 96)}, dynamic=["image:2=height", "image:3=width"])
    assert report.checked == {"height": [32, 48, 64, 96], "width": [48, 64, 96, 144]}
    assert report.variants[0].difference.agreement is None, "no classifier: nothing is counted"
    assert session(report).run(None, {"image": np.ones((1, 3, 40, 56), "f4")})[0].shape == (1, 4, 40 * 56)


def test_texts_are_tried_up_to_the_length_that_the_model_has_places_for(tmp_path: Path) -> None:
    class Placed(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(50, 32), nn.Parameter(torch.randn(16, 32))

        def forward(self, ids: Any) -> Any:
            return nn.functional.normalize((self.embed(ids) + self.place[: ids.shape[1]]).mean(1), dim=-1)

    ids = [InputSpec("ids", (1, 16), "int64", 50)]
    report = exported(Placed(), tmp_path, ids, dynamic=["ids:1=sequence"])
    assert report.checked["sequence"] == [1, 8, 12, 15, 16]
    assert report.variants[0].difference.agreement is None
    assert report.variants[0].difference.cosine == pytest.approx(1)
    with pytest.raises(InvalidRequest, match="PyTorch took no other size of it than 16"):
        exported(Placed(), tmp_path, ids, dynamic=["ids:1=sequence:16-99"])


def test_a_length_that_is_written_into_the_graph_is_not_free(tmp_path: Path) -> None:
    class Baked(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            total = torch.zeros_like(x[:, 0])
            for step in range(x.shape[1]):  # unrolled by the tracer
                total = total + x[:, step] * (step + 1)
            return total

    with pytest.raises(InvalidRequest, match="axis 1 of x is fixed at one size in its graph, so it cannot be free"):
        exported(Baked(), tmp_path, {"x": (1, 6, 4)}, dynamic=["x:1=sequence"])
    assert list(tmp_path.iterdir()) == []


def test_a_saved_program_keeps_its_free_axes_and_may_name_them(tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO
    free = ({0: auto, 1: auto},)
    program = torch.export.export(nn.Linear(4, 3).eval(), (torch.zeros(2, 5, 4),), dynamic_shapes=free)
    torch.export.save(program, tmp_path / "saved.pt2")
    saved = tmp_path / "saved.pt2"
    report = exported(saved, tmp_path, {"x": (2, 5, 4)}, dynamic=["x:1=sequence"])
    assert shapes(report) == [["batch", "sequence", 4], ["batch", "sequence", 3]]
    with pytest.raises(InvalidRequest, match="axis 2 of x is fixed at one size in its graph; save the program"):
        exported(saved, tmp_path, {"x": (2, 5, 4)}, dynamic=["x:2=width"])


# ---- names --------------------------------------------------------------------------------------


class Inner(nn.Module):  # type: ignore[misc]
    """Its graph has values that are called relu, add and sigmoid."""

    def forward(self, x: Any) -> Any:
        return (x.relu() + 1).sigmoid()


@pytest.mark.parametrize(("given", "output"), [("x", "relu"), ("relu", "add"), ("sigmoid", "x")])
def test_outputs_and_inputs_may_have_the_names_of_inner_values(given: str, output: str, tmp_path: Path) -> None:
    report = exported(Inner(), tmp_path, {given: (1, 4)}, output_names=[output])
    found = session(report).run([output], {given: np.zeros((1, 4), "f4")})[0]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-1)), rtol=1e-6)


def test_inputs_that_are_called_as_forwards_parameters_are_given_by_name(tmp_path: Path) -> None:
    class Optional(nn.Module):  # type: ignore[misc]
        def forward(self, ids: Any, mask: Any = None, start: Any = None) -> Any:
            return ids - (0 if mask is None else mask) + 10 * start

    report = exported(Optional(), tmp_path, {"start": (1, 3), "ids": (1, 3)}, dynamic=["ids:1=n", "start:1=n"])
    assert [part["name"] for part in report.inputs] == ["start", "ids"]
    feeds = {"start": np.full((2, 5), 3, "f4"), "ids": np.full((2, 5), 4, "f4")}
    assert session(report).run(None, feeds)[0].tolist() == [[34] * 5] * 2


def test_a_cache_of_keys_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    class Caching(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.config = types.SimpleNamespace(use_cache=True)

        def forward(self, x: Any) -> Any:
            return (x * 2, object()) if self.config.use_cache else x * 2

    model = Caching()
    report = exported(model, tmp_path, {"x": (1, 4)})
    assert report.notes == ("its cache of keys (use_cache) was left out",)
    assert model.config.use_cache, "the caller's model is as it was"


def test_what_cannot_be_an_output_ends_in_a_sentence(tmp_path: Path) -> None:
    class Mixed(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x + 1, 3

    class Twice(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            once = x.relu()
            return x, once, once, None

    with pytest.raises(ModelFailed, match="returns a value of type int: let it return tensors alone"):
        exported(Mixed(), tmp_path, {"x": (1, 4)})
    with pytest.raises(InvalidRequest, match="would be called 'x'"):
        exported(Inner(), tmp_path, {"x": (1, 4)}, output_names=["x"])
    report = exported(Twice(), tmp_path, {"x": (1, 4)})
    x = -np.ones((2, 4), "f4")
    assert [one[0, 0] for one in session(report).run(None, {"x": x})] == [-1, 0, 0]


# ---- other types --------------------------------------------------------------------------------


def small() -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 4)).eval()


@pytest.mark.parametrize(("dtype", "name"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_half_precision_is_published_in_its_own_types(dtype: str, name: str, tmp_path: Path) -> None:
    model = small().to(getattr(torch, dtype))
    report = exported(model, tmp_path, [InputSpec("x", (1, 3, 16, 16), dtype)])
    assert [part["dtype"] for part in (*report.inputs, *report.outputs)] == [dtype, dtype]
    assert report.variants[0].name == name
    assert bool(report.notes) is (dtype == "bfloat16"), "that its arithmetic is float32 is said"
    x = np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(numpy_dtype(dtype))
    (got,) = runtime.run(runtime.session(str(report.path)), {"x": x})
    wanted = small()(torch.from_numpy(x.astype(np.float32))).detach().numpy()
    np.testing.assert_allclose(got.astype(np.float32), wanted, atol=0.02)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers_are_pairs_in_the_file(dtype: str, tmp_path: Path) -> None:
    class Product(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.w = nn.Parameter(torch.randn(8, 4, dtype=getattr(torch, dtype)))

        def forward(self, x: Any) -> Any:
            return x @ self.w

    model = Product()
    report = exported(model, tmp_path, [InputSpec("x", (1, 8), dtype)])
    assert shapes(report) == [["batch", 8, 2], ["batch", 4, 2]]
    x = (np.arange(16).reshape(2, 8) + 1j).astype(dtype)
    (got,) = runtime.run(runtime.session(str(report.path)), {"x": x})
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], wanted, rtol=1e-4)


def test_a_spectrum_and_a_rotation_inside_are_exported(tmp_path: Path) -> None:
    class Spectrum(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * pairs.conj()).flatten(2), torch.fft.fft(x)

    report = exported(Spectrum(), tmp_path, {"x": (1, 6, 8)}, dynamic=["x:1=sequence"])
    assert shapes(report)[1:] == [["batch", "sequence", 8], ["batch", "sequence", 8, 2]]


# ---- what fails ---------------------------------------------------------------------------------


def test_the_cause_of_a_failed_trace_is_told(tmp_path: Path) -> None:
    class Unknown(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.linalg.svd(x)[1]

    class Wrong(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x @ torch.ones(5, 5)

    with pytest.raises(ModelFailed, match=r"No ONNX function found for .*svd") as caught:
        exported(Unknown(), tmp_path, {"x": (1, 4, 4)})
    assert "Next steps" not in str(caught.value)
    with pytest.raises(ModelFailed, match=r"cannot run x \[1, 4\] in PyTorch: mat1 and mat2 shapes"):
        exported(Wrong(), tmp_path, {"x": (1, 4)})
    with pytest.raises(ModelFailed, match=r"onnxruntime cannot load the exported model: Could not find an implementation for Conv"):
        exported(small().double(), tmp_path, [InputSpec("x", (1, 3, 16, 16), "float64")])


class Heads(nn.Module):  # type: ignore[misc]
    """As transformers' models: two ways to attend, of which one cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(_attn_implementation="sdpa")
        self.asked: list[str] = []

    def set_attn_implementation(self, name: str) -> None:
        self.asked.append(name)
        self.config._attn_implementation = name

    def forward(self, x: Any) -> Any:
        if self.config._attn_implementation == "sdpa" and torch.compiler.is_exporting():
            raise ValueError("Cannot view a tensor")
        heads = x.view(x.shape[0], x.shape[1], 2, -1).transpose(1, 2)
        return (heads.softmax(-1) * heads).transpose(1, 2).flatten(2)


def test_attention_that_cannot_be_exported_is_written_as_eager(tmp_path: Path) -> None:
    model = Heads()
    report = exported(model, tmp_path, {"x": (1, 6, 8)})
    assert any("`eager`" in note for note in report.notes)
    assert model.asked == ["eager", "sdpa"], "the caller's model is as it was"


def test_where_eager_does_not_help_the_first_cause_is_told(tmp_path: Path) -> None:
    class Hopeless(Heads):
        def forward(self, x: Any) -> Any:
            if torch.compiler.is_exporting():
                raise ValueError(f"no way, with {self.config._attn_implementation}")
            return x

    with pytest.raises(ModelFailed, match="cannot be exported: ValueError: no way, with sdpa"):
        exported(Hopeless(), tmp_path, {"x": (1, 6, 8)})
