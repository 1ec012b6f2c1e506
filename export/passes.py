"""The optimizer's passes, in order, with the number of nodes after each.

Every pass keeps to the standard operators, so that the file runs on every provider. Of ONNX Runtime's levels
only the basic one is used: the higher ones write operators that exist on its CPU alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .quiet import quiet
from .runtime import options

STANDARD = {"", "ai.onnx"}
FOLDED_ELEMENTS_MAX = 1 << 18  # a folded constant is stored: don't turn a small Expand into megabytes
ROUNDS_MAX = 3


@dataclass(frozen=True)
class Pass:
    """One pass: nodes before and after, and whether it changed anything (it may, and keep their number)."""

    name: str
    nodes_before: int
    nodes_after: int
    changed: bool


def nodes(proto: Any) -> int:
    """Nodes of the graph, and of the graphs inside If, Loop and Scan."""

    def inside(graph: Any) -> int:
        return sum(
            1 + sum(inside(part.g) for part in node.attribute if part.HasField("g")) for node in graph.node
        )

    return inside(proto.graph)


@quiet()
def optimize(proto: Any) -> tuple[Any, list[Pass]]:
    """The optimized onnx.ModelProto, and every pass that ran.

    Runs the onnxscript passes until a whole round changes nothing, then ONNX Runtime's once.
    """
    import onnx_ir

    model = onnx_ir.serde.deserialize_model(proto)
    ran: list[Pass] = []
    for _ in range(ROUNDS_MAX):
        first = len(ran)
        for name, run in graph_passes():
            before = sum(1 for _ in model.graph.all_nodes())
            changed = run(model)
            after = sum(1 for _ in model.graph.all_nodes())
            ran.append(Pass(name, before, after, changed or after != before))
        if not any(step.changed for step in ran[first:]):
            break
    found, last = by_runtime(onnx_ir.serde.serialize_model(model))
    return found, [*ran, last]


def graph_passes() -> list[tuple[str, Callable[[Any], bool]]]:
    """(name, pass): each changes the onnx_ir.Model in place and returns whether it did."""
    import onnx_ir.passes.common as common
    from onnxscript import optimizer, rewriter

    def simple(one: Any) -> Callable[[Any], bool]:
        return lambda model: bool(one(model).modified)

    def fold(model: Any) -> bool:
        folded = optimizer.fold_constants_ir(model, output_size_limit=FOLDED_ELEMENTS_MAX)
        return bool(folded.modified)

    def rewrite(model: Any) -> bool:
        before = [node.op_type for node in model.graph.all_nodes()]
        rewriter.rewrite(model)  # in place, and says nothing
        return [node.op_type for node in model.graph.all_nodes()] != before

    return [
        ("inline functions", simple(common.InlinePass())),
        ("fold constants", fold),
        ("rewrite patterns", rewrite),
        ("common subexpressions", simple(common.CommonSubexpressionEliminationPass())),
        (
            "constants to initializers",
            simple(common.LiftConstantsToInitializersPass(lift_all_constants=True)),
        ),
        ("identities", simple(common.IdentityEliminationPass())),
        ("unused nodes", simple(common.RemoveUnusedNodesPass())),
        ("equal initializers", simple(common.DeduplicateInitializersPass())),
    ]


def by_runtime(proto: Any) -> tuple[Any, Pass]:
    """ONNX Runtime's basic level. Its result is dropped if it is not standard ONNX."""
    import onnx
    import onnxruntime

    before = nodes(proto)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        chosen = options()
        chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        chosen.optimized_model_filepath = str(written)
        try:
            onnxruntime.InferenceSession(
                proto.SerializeToString(), chosen, providers=["CPUExecutionProvider"]
            )
        except Exception:  # no kernel on the CPU, such as float64 convolutions: another provider may have it
            return proto, Pass("onnxruntime basic", before, before, False)
        found = onnx.load(str(written))
    if any(node.domain not in STANDARD for node in found.graph.node):
        return proto, Pass("onnxruntime basic", before, before, False)
    kept = [one for one in found.opset_import if one.domain in STANDARD]
    found.ClearField("opset_import")
    found.opset_import.extend(kept)
    after = nodes(found)
    return found, Pass("onnxruntime basic", before, after, after != before)
