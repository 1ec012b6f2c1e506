"""Storage variants are small in the file and nearly the same when run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.export import runtime
from batchyard.export.storage import fp16_storage, int8_storage


@pytest.fixture
def proto(onnx_models: Any) -> Any:
    """conv -> flatten -> gemm(transB) -> matmul: a weight of each orientation."""
    import onnx

    rng = np.random.default_rng(0)
    weights = {
        "c": rng.standard_normal((32, 4, 3, 3)),
        "g": rng.standard_normal((48, 32 * 6 * 6)) * np.linspace(0.01, 10, 48)[:, None],
        "m": rng.standard_normal((48, 40)),
        "b": rng.standard_normal(48),
    }
    path = onnx_models.save(
        "storage",
        [
            ("Conv", ["x", "c"], ["h"], {}),
            ("Flatten", ["h"], ["f"], {}),
            ("Gemm", ["f", "g", "b"], ["k"], {"transB": 1}),
            ("MatMul", ["k", "m"], ["y"], {}),
        ],
        [("x", 1, ["batch", 4, 8, 8])],
        [("y", 1, ["batch", 40])],
        {name: array.astype(np.float32) for name, array in weights.items()},
    )
    return onnx.load(str(path))


def answer(proto: Any) -> Any:
    x = np.random.default_rng(1).standard_normal((3, 4, 8, 8)).astype(np.float32)
    (y,) = runtime.run(runtime.session(proto.SerializeToString()), {"x": x})
    return y


@pytest.mark.parametrize(("make", "size", "error"), [(fp16_storage, 0.52, 1e-3), (int8_storage, 0.28, 2e-2)])
def test_a_variant_is_small_and_answers_nearly_the_same(
    proto: Any, make: Any, size: float, error: float
) -> None:
    stored = make(proto)
    assert stored.ByteSize() < size * proto.ByteSize()
    wanted = answer(proto)
    assert np.linalg.norm(answer(stored) - wanted) < error * np.linalg.norm(wanted)
    assert len(proto.graph.initializer) == 4, "the original is left as it was"


def test_int8_has_one_scale_per_output_channel_whatever_the_orientation(proto: Any) -> None:
    scales = {one.name: tuple(one.dims) for one in int8_storage(proto).graph.initializer}
    assert scales["c.scale"] == (32, 1, 1, 1)
    assert scales["g.scale"] == (48, 1)
    assert scales["m.scale"] == (1, 40)
    assert "b" in scales, "a bias stays float32"


def test_what_does_not_fit_into_fp16_and_what_is_not_finite_stay_float32(proto: Any) -> None:
    from onnx import numpy_helper

    for name, value in (("c", 1e6), ("m", np.nan)):
        (weight,) = [one for one in proto.graph.initializer if one.name == name]
        array = numpy_helper.to_array(weight).copy()
        array.flat[7] = value
        weight.CopyFrom(numpy_helper.from_array(array, name))
    half = {one.name for one in fp16_storage(proto).graph.initializer}
    assert {"c", "m", "g.fp16"} <= half
    assert {"c.int8", "m"} <= {one.name for one in int8_storage(proto).graph.initializer}


def test_channels_of_zeros_stay_zero(proto: Any) -> None:
    from onnx import numpy_helper

    (weight,) = [one for one in proto.graph.initializer if one.name == "m"]
    weight.CopyFrom(numpy_helper.from_array(np.zeros((48, 40), np.float32), "m"))
    assert np.array_equal(answer(int8_storage(proto)), np.zeros((3, 40), np.float32))
