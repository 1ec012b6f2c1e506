"""What every test may use: tiny ONNX models built on the spot, plain onnxruntime's answers to compare
with, and the profile under which Hypothesis looks for counterexamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from .required import required

settings.register_profile(
    "batchyard",
    deadline=None,  # the machine is shared: a slow example is no counterexample
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("batchyard")


def pytest_configure() -> None:
    required()  # a misspelt part is told at once, and not by passing tests


Axes = Sequence[int | str]
Value = tuple[str, int, Axes]  # name, ONNX element type, axes


class OnnxModels:
    """Builds models into a folder. Each is a few nodes, so loading one takes milliseconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self,
        name: str,
        nodes: Sequence[tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        constants: Mapping[str, np.ndarray[Any, Any]] | None = None,
        opset: int = 18,
    ) -> Path:
        """Write a model of `nodes`: (operator, inputs, outputs, attributes)."""
        import onnx
        from onnx import helper, numpy_helper

        def infos(values: Sequence[Value]) -> list[Any]:
            return [helper.make_tensor_value_info(name, dtype, list(axes)) for name, dtype, axes in values]

        graph = helper.make_graph(
            [helper.make_node(op, list(took), list(gave), **more) for op, took, gave, more in nodes],
            name,
            infos(inputs),
            infos(outputs),
            [numpy_helper.from_array(array, key) for key, array in (constants or {}).items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        made.ir_version = 10
        path = self.folder / f"{name}.onnx"
        onnx.save(made, str(path))
        return path

    def unary(self, name: str, op: str, axes: Axes, dtype: int = 1, opset: int = 18) -> Path:
        """One operator, one input `x`, one output `y` of the same axes."""
        return self.save(
            name, [(op, ["x"], ["y"], {})], [("x", dtype, axes)], [("y", dtype, axes)], None, opset
        )

    def mixing(self, width: int) -> Path:
        """y = x, and one more in every row if a number anywhere is 1234.5: no drawn input shows it."""
        return self.save(
            "mixing",
            [("Equal", ["x", "odd"], ["is"], {}), ("Cast", ["is"], ["ones"], {"to": 1}),
             ("ReduceMax", ["ones"], ["added"], {"keepdims": 0}), ("Add", ["x", "added"], ["y"], {})],
            [("x", 1, ["n", width])], [("y", 1, ["n", width])], {"odd": np.array(1234.5, np.float32)},
        )  # fmt: skip

    def affine(self, name: str, width: int, out: int, seed: int = 0) -> Path:
        """y = x @ w + b: a row's answer depends on that row alone, and is unlike its neighbour's."""
        rng = np.random.default_rng(seed)
        return self.save(
            name,
            [("MatMul", ["x", "w"], ["h"], {}), ("Add", ["h", "b"], ["y"], {})],
            [("x", 1, ["batch", width])],
            [("y", 1, ["batch", out])],
            {
                "w": rng.standard_normal((width, out)).astype(np.float32),
                "b": rng.standard_normal(out).astype(np.float32),
            },
        )


@pytest.fixture(scope="session")
def onnx_models(tmp_path_factory: pytest.TempPathFactory) -> OnnxModels:
    return OnnxModels(tmp_path_factory.mktemp("models"))


Reference = Callable[..., list[np.ndarray[Any, Any]]]


@pytest.fixture(scope="session")
def reference() -> Reference:
    """What plain onnxruntime answers: reference(path, x=..., ...) -> outputs."""
    import onnxruntime

    sessions: dict[Path, Any] = {}

    def run(path: Path, **feeds: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        if path not in sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            sessions[path] = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        answers: list[np.ndarray[Any, Any]] = sessions[path].run(None, feeds)
        return answers

    return run
