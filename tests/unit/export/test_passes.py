"""Passes report what they did, and what they leave answers the same. Needs onnxscript, not torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from batchyard.export import passes, runtime

pytest.importorskip("onnxscript")


@pytest.fixture
def proto(onnx_models: Any) -> Any:
    """Seven nodes for an affine map: a constant sum, two identities, a dead end."""
    import onnx

    rng = np.random.default_rng(0)
    path = onnx_models.save(
        "passes",
        [
            ("Add", ["w0", "w1"], ["w"], {}),
            ("Identity", ["x"], ["x1"], {}),
            ("MatMul", ["x1", "w"], ["h"], {}),
            ("Identity", ["h"], ["h1"], {}),
            ("Add", ["h1", "b"], ["s"], {}),
            ("Relu", ["s"], ["y"], {}),
            ("Exp", ["s"], ["dead"], {}),
        ],
        [("x", 1, ["batch", 8])],
        [("y", 1, ["batch", 8])],
        {
            "w0": rng.standard_normal((8, 8)).astype(np.float32),
            "w1": rng.standard_normal((8, 8)).astype(np.float32),
            "b": rng.standard_normal(8).astype(np.float32),
        },
    )
    return onnx.load(str(path))


def test_nodes_go_and_answers_stay(proto: Any) -> None:
    found, ran = passes.optimize(proto)
    assert passes.nodes(proto) == 7
    assert passes.nodes(found) <= 3
    assert [ran[0].nodes_before, ran[-1].nodes_after] == [7, passes.nodes(found)]
    assert all(one.nodes_after == two.nodes_before for one, two in pairwise(ran))
    assert {node.domain for node in found.graph.node} <= passes.STANDARD
    x = {"x": np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)}
    (before,) = runtime.run(runtime.session(proto.SerializeToString()), x)
    (after,) = runtime.run(runtime.session(found.SerializeToString()), x)
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_nodes_inside_branches_count(onnx_models: Any) -> None:
    from onnx import helper

    def branch(op: str) -> Any:
        return helper.make_graph(
            [helper.make_node(op, ["x"], [f"{op}_y"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_y", 1, [1])],
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"))
    graph = helper.make_graph([node], "g", [], [])
    assert passes.nodes(helper.make_model(graph)) == 3
