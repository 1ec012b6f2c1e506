"""bfloat16 arithmetic as float32: the same answers within bfloat16's rounding, the same ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.export import export_to_onnx, runtime, widening
from batchyard.export.specs import numpy_dtype
from batchyard.transport.errors import ModelFailed

BF16, FLOAT = 16, 1


@pytest.fixture
def path(onnx_models: Any) -> Path:
    """y = If(sum > 0, x @ w, -x @ w) + 1, all of it in bfloat16."""
    from onnx import helper

    def branch(name: str, op: str) -> Any:
        node = helper.make_node(op, ["h"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, BF16, ["batch", 3])])

    bf16 = numpy_dtype("bfloat16")
    one = np.ones(1, bf16)
    found: Path = onnx_models.save(
        "bfloat16",
        [
            ("MatMul", ["x", "w"], ["h"], {}),
            ("Cast", ["one"], ["casted"], {"to": BF16}),
            (
                "If",
                ["flag"],
                ["chosen"],
                {"then_branch": branch("same", "Identity"), "else_branch": branch("other", "Neg")},
            ),
            ("Add", ["chosen", "casted"], ["y"], {}),
        ],
        [("x", BF16, ["batch", 4])],
        [("y", BF16, ["batch", 3])],
        {"w": np.arange(12).reshape(4, 3).astype(bf16), "one": one.astype(np.float32), "flag": np.array(True)},
    )
    return found


def test_what_the_cpu_cannot_run_runs_as_float32(path: Path) -> None:
    import onnx

    proto = onnx.load(str(path))
    assert widening.has_bfloat16(proto)
    with pytest.raises(ModelFailed):
        runtime.session(proto.SerializeToString())
    wide = widening.widened(proto)
    onnx.checker.check_model(wide, full_check=True)
    ends = [value.type.tensor_type.elem_type for value in (*wide.graph.input, *wide.graph.output)]
    assert ends == [BF16, BF16]
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(numpy_dtype("bfloat16"))
    (got,) = runtime.run(runtime.session(wide.SerializeToString()), {"x": x})
    assert got.dtype == x.dtype
    wanted = x.astype(np.float32) @ np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    np.testing.assert_allclose(got.astype(np.float32), wanted, rtol=2**-8)


def test_such_a_file_as_a_source_is_refused_in_a_sentence(path: Path, tmp_path: Path) -> None:
    """It is compared with its own answers, and there are none."""
    with pytest.raises(ModelFailed, match="onnxruntime cannot load"):
        export_to_onnx(path, tmp_path / "out.onnx", measure_s=0.001)
