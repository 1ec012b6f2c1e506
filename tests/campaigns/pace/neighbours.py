"""Images of 602,112 bytes, 64 of one client at once in batches of 8, beside outputs of 4,000 bytes: how much a worker
has to copy. Inputs that lie side by side are run where they are; 8 outputs of 4,000 bytes are copied out, 32,000."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE, CLASSES = (3, 224, 224), 1000
ROWS, AT_ONCE = 8, 64
OUTPUTS = ROWS * CLASSES * 4  # bytes


def _write(path: Path) -> None:
    """`image` float32[batch, 3, 224, 224] -> `scores` float32[batch, 1000]."""
    weights = np.random.default_rng(0).standard_normal((SHAPE[0], CLASSES), np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("MatMul", ["means", "weights"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *SHAPE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "images", [image], [scores], [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def measure(rounds: int) -> dict[str, Any]:
    """Full batches by the bytes that were copied for them."""
    image = np.random.default_rng(1).standard_normal((1, *SHAPE)).astype(np.float32)
    batches: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "images.onnx")
        with batchyard.serve(Path(folder) / "images.onnx", threads=1, max_batch=ROWS) as yard, yard.client() as client:
            for _ in range(rounds):
                receipts = [future.reply.receipt for future in _answered(client, image)]
                batches |= {receipt.batch: receipt.copied_bytes for receipt in receipts if receipt.rows == ROWS}
    copied = list(batches.values())
    return {"batches": len(copied), "in_place": copied.count(OUTPUTS), "median": float(np.median(copied))}


def _answered(client: Any, image: Any) -> list[Any]:
    futures = [client.submit("images", image) for _ in range(AT_ONCE)]
    for future in futures:
        future.result()
    return futures


def report(found: dict[str, Any]) -> None:
    print(f"{ROWS} images of {4 * np.prod(SHAPE):,} bytes a batch: {found['batches']} batches,")
    print(f"  {found['in_place']} of them with their inputs in place; median {found['median']:,.0f} bytes copied")
