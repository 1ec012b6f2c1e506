"""A yard of ten small models, asked where it is or through a gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import (
    Client,
    serve,
)
from batchyard.client import Yard

from .rows import MAX_BATCH, WIDE


@pytest.fixture(scope="module")
def paths(onnx_models: Any, slow_model: Path, neg_model: Path) -> dict[str, Path]:
    rng = np.random.default_rng(5)
    return {
        "net": onnx_models.affine("net", 16, 8),
        "neg": neg_model,
        "slow": slow_model,
        "wide": onnx_models.unary("wide", "Neg", ["n", WIDE]),
        "free": onnx_models.unary("free_axis", "Neg", ["n", "width"]),
        "alone": onnx_models.unary("alone", "Neg", [3, 4]),
        "half": onnx_models.unary("half", "Neg", ["n", 4], 10),
        "pair": onnx_models.save(
            "pair",
            [("Sub", ["a", "b"], ["d"], {}), ("Cast", ["a"], ["i"], {"to": 7})],
            [("a", 1, ["n", 4]), ("b", 1, ["n", 4])],
            [("d", 1, ["n", 4]), ("i", 7, ["n", 4])],
        ),
        "counter": onnx_models.save(
            "counter",
            [("Add", ["x", "state"], ["stateN"], {}), ("Identity", ["stateN"], ["y"], {})],
            [("x", 1, ["n", 4]), ("state", 1, ["n", 4])],
            [("y", 1, ["n", 4]), ("stateN", 1, ["n", 4])],
        ),
        "lookup": onnx_models.save(  # an index past 4 fails the whole run
            "lookup",
            [("Gather", ["table", "k"], ["y"], {"axis": 0})],
            [("k", 7, ["n"])],
            [("y", 1, ["n", 3])],
            {"table": rng.standard_normal((5, 3)).astype(np.float32)},
        ),
    }


@pytest.fixture(scope="module")
def yard(paths: dict[str, Path]) -> Iterator[Yard]:
    with serve(paths, workers=2, max_batch=MAX_BATCH, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as made:
        yield made
