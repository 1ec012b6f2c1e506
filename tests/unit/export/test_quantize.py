"""onnxruntime's quantizers, with our settings, on a graph made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.export import quantize, runtime
from batchyard.transport.errors import InvalidRequest


@pytest.fixture
def proto(onnx_models: Any) -> Any:
    import onnx

    return onnx.load(str(onnx_models.affine("quantized", 64, 32)))


@pytest.fixture
def rows() -> Any:
    return {"x": np.random.default_rng(2).standard_normal((32, 64)).astype(np.float32)}


def error(proto: Any, made: Any, rows: Any) -> float:
    (wanted,) = runtime.run(runtime.session(proto.SerializeToString()), rows)
    (got,) = runtime.run(runtime.session(made.SerializeToString()), rows)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("method", quantize.METHODS)
def test_static_answers_nearly_the_same_with_every_method(proto: Any, rows: Any, method: str) -> None:
    made = quantize.static(proto, [rows], method)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in made.graph.node}
    assert error(proto, made, rows) < 0.05


def test_dynamic_answers_nearly_the_same(proto: Any, rows: Any) -> None:
    assert error(proto, quantize.dynamic(proto), rows) < 0.05


def test_an_unknown_method_is_refused(proto: Any, rows: Any) -> None:
    with pytest.raises(InvalidRequest, match="minmax, entropy, percentile"):
        quantize.static(proto, [rows], "guess")
