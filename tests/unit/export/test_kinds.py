"""What outputs are taken for, by the graph's end, the name, and the shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.export.kinds import CLASSES, EMBEDDING, VALUES, kinds
from batchyard.transport.errors import InvalidRequest

FLOAT = 1
BIAS = {"w": np.ones((4, 32), np.float32), "b": np.ones(32, np.float32)}
GEMM = ("Gemm", ["x", "w", "b"], ["y"], {})


def graph(models: Any, name: str, nodes: Any, constants: Any, output: str = "y", rank: int = 2) -> Any:
    import onnx

    out = [("x", FLOAT, ["n", 4])], [(output, FLOAT, ["n", *range(2, rank), 32])]
    return onnx.load(str(models.save(f"kind_{name}", nodes, *out, constants)))


@pytest.mark.parametrize(
    ("name", "nodes", "kind"),
    [
        ("linear", [GEMM], CLASSES),
        ("added", [("MatMul", ["x", "w"], ["h"], {}), ("Add", ["h", "b"], ["y"], {})], CLASSES),
        ("softmax", [("MatMul", ["x", "w"], ["h"], {}), ("Softmax", ["h"], ["y"], {})], CLASSES),
        ("flattened", [("Gemm", ["x", "w", "b"], ["h"], {}), ("Flatten", ["h"], ["y"], {})], CLASSES),
        ("projection", [("MatMul", ["x", "w"], ["y"], {})], EMBEDDING),
        ("pooler", [("Gemm", ["x", "w", "b"], ["h"], {}), ("Tanh", ["h"], ["y"], {})], EMBEDDING),
    ],
)
def test_the_graphs_end_shows_what_an_output_is(name: str, nodes: Any, kind: str, onnx_models: Any) -> None:
    used = {key: value for key, value in BIAS.items() if any(key in node[1] for node in nodes)}
    proto = graph(onnx_models, name, nodes, used)
    assert kinds(proto, [np.ones((3, 32), np.float32)]) == (kind,)


def test_boxes_single_numbers_and_whole_ones_are_values(onnx_models: Any) -> None:
    proto = graph(onnx_models, "values", [GEMM], BIAS)
    for answer in (np.ones((3, 100, 6), np.float32), np.ones((3, 1), np.float32), np.ones((3, 5), np.int64)):
        assert kinds(proto, [answer]) == (VALUES,)


def test_scores_of_as_many_as_are_asked_for_are_no_classes(onnx_models: Any) -> None:
    pairs = ("MatMul", ["x", "t"], ["logits"], {})
    path = onnx_models.save(
        "kind_pairs", [pairs], [("x", FLOAT, ["n", 4]), ("t", FLOAT, [4, "m"])], [("logits", FLOAT, ["n", "m"])]
    )
    import onnx

    assert kinds(onnx.load(str(path)), [np.ones((3, 32), np.float32)]) == (VALUES,)


def test_a_name_says_more_than_the_graph(onnx_models: Any) -> None:
    named = graph(onnx_models, "named", [("Gemm", ["x", "w", "b"], ["embedding"], {})], BIAS, "embedding")
    assert kinds(named, [np.ones((3, 32), np.float32)]) == (EMBEDDING,)
    scores = graph(onnx_models, "scores", [("MatMul", ["x", "w"], ["logits"], {})], {"w": BIAS["w"]}, "logits")
    assert kinds(scores, [np.ones((3, 32), np.float32)]) == (CLASSES,)


def test_the_user_says_it_best(onnx_models: Any) -> None:
    proto = graph(onnx_models, "asked", [GEMM], BIAS)
    for task, kind in {"regression": VALUES, "embedding": EMBEDDING, "classification": CLASSES}.items():
        assert kinds(proto, [np.ones((3, 32), np.float32)], task) == (kind,)
    with pytest.raises(InvalidRequest, match="auto, classification, embedding, regression"):
        kinds(proto, [np.ones((3, 32), np.float32)], "detection")
