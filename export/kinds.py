"""The kind of each output, which decides how a variant is compared: top class, direction, or values.

classes      scores of classes; compared by the share of rows with the same top class (top-1)
embedding    a vector that users compare with others; compared by the cosine of the worst row
values       everything else, such as boxes and sequences; compared by the error alone
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..transport.errors import InvalidRequest
from .specs import Array

CLASSES, EMBEDDING, VALUES = "classes", "embedding", "values"
TASKS = {"classification": CLASSES, "embedding": EMBEDDING, "regression": VALUES}
AUTO = "auto"
EMBEDDING_MIN = 16  # a shorter vector is a point or a box, whose direction means nothing

_CLASSES_NAMED = re.compile(r"logit|prob|class|score|label", re.I)
_EMBEDDING_NAMED = re.compile(r"emb|feature|pool|vector|hidden", re.I)
_MAKES_CLASSES = {"Softmax", "LogSoftmax", "Gemm"}
_KEEPS = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}


def named(task: str) -> str:
    """The kind of a task. Raises InvalidRequest for an unknown name."""
    if task != AUTO and task not in TASKS:
        raise InvalidRequest(f"there is no task {task!r}; there is: {', '.join((AUTO, *TASKS))}")
    return TASKS.get(task, AUTO)


def kinds(proto: Any, answers: Sequence[Array], task: str = AUTO) -> tuple[str, ...]:
    """The kind of each output: what `task` says, or what the graph's end and the output's name suggest.

    proto: the optimized onnx.ModelProto; answers: its outputs for some rows.
    """
    chosen = named(task)
    found = []
    for value, answer in zip(proto.graph.output, answers, strict=True):
        is_vector = answer.dtype.kind in "fV" and answer.ndim >= 2 and answer.shape[-1] > 1
        if not is_vector:
            found.append(VALUES)
        elif chosen != AUTO:
            found.append(chosen)
        else:
            dims = value.type.tensor_type.shape.dim
            is_free = bool(dims) and not dims[-1].HasField("dim_value")
            found.append(_guessed(proto, value.name, answer, is_free))
    return tuple(found)


def _guessed(proto: Any, name: str, answer: Array, is_free: bool) -> str:
    if answer.ndim != 2:  # boxes, tokens, pictures: the last axis need not be classes
        return VALUES
    is_long = answer.shape[-1] >= EMBEDDING_MIN
    if is_free:  # images by texts: a classifier has as many classes whatever it is asked
        return VALUES
    if _CLASSES_NAMED.search(name):
        return CLASSES
    if _EMBEDDING_NAMED.search(name):
        return EMBEDDING if is_long else VALUES
    if _is_head(proto, name):
        return CLASSES
    return EMBEDDING if is_long else VALUES


def _is_head(proto: Any, name: str) -> bool:
    """Whether the graph ends as a classifier does: in a softmax, or in a linear layer with a bias. A
    projection has no bias, and a pooled or normalized vector ends in another operator."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    weights = {tensor.name for tensor in proto.graph.initializer}
    while (node := makers.get(name)) is not None and node.op_type in _KEEPS:
        name = node.input[0]
    if node is None:
        return False
    if node.op_type == "Gemm":
        return len(node.input) == 3
    if node.op_type == "Add":
        others = [one for one in node.input if one not in weights]
        maker = makers.get(others[0]) if len(others) == 1 else None
        return maker is not None and maker.op_type in ("MatMul", "Gemm")
    return node.op_type in _MAKES_CLASSES
