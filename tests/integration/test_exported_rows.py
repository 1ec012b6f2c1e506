"""What the export publishes, served to many clients' requests at once: every answer is the request's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.client import serve
from batchyard.export import InputSpec, export_to_onnx

FLOAT = 1
REQUESTS = 64


@pytest.mark.parametrize(("axes", "batch"), [(["batch", 4], {}), (["tokens", "batch", 4], {"x": 1})])
def test_a_softmax_over_the_tokens_is_never_taken_over_strangers_tokens(
    axes: list[int | str], batch: dict[str, int], onnx_models: Any, reference: Any, tmp_path: Path
) -> None:
    """Tokens on axis 0: called a batch by mistake, or with the batch behind them."""
    source = onnx_models.save(
        f"tokens_{len(axes)}",
        [("Softmax", ["x"], ["y"], {"axis": 0})],
        [("x", FLOAT, axes)],
        [("y", FLOAT, axes)],
    )
    shape = (6, 4) if len(axes) == 2 else (6, 1, 4)
    spec = InputSpec("x", shape)
    report = export_to_onnx(source, tmp_path / "exported.onnx", [spec], measure_s=0.001)
    assert report.batch["inputs"] == batch
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(shape, dtype=np.float32) for _ in range(REQUESTS)]
    with serve(report.path, threads=1) as yard, yard.client() as client:
        futures = [client.submit("exported", row) for row in rows]
        for row, future in zip(rows, futures, strict=True):
            np.testing.assert_allclose(future.result(), reference(source, x=row)[0], rtol=1e-5, atol=1e-6)
