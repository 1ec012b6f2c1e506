"""What `check` measures: padding at sizes that the model runs on, and refusals in our words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.cli import measuring
from batchyard.gpuworker import providers
from batchyard.gpuworker.backends.onnx import ServedModel
from batchyard.transport.messages import Load

FLOAT = 1


def pads(path: Any) -> list[dict[str, Any]]:
    load = Load("model", 1, str(path), 4, None, False)
    return measuring.paddable(ServedModel(load, providers.recipe("cpu", 1)))


@pytest.mark.parametrize(("window", "to"), [(5, [16, 32, 64, 128]), (33, [128, 256, 512])])
def test_padding_is_tried_at_sizes_that_the_model_runs_on(window: int, to: list[int], onnx_models: Any) -> None:
    kernel = np.ones((1, 1, window), np.float32)
    path = onnx_models.save(
        f"window{window}",
        [("Conv", ["x", "k"], ["y"], {})],
        [("x", FLOAT, ["batch", 1, "time"])],
        [("y", FLOAT, ["batch", 1, "left"])],
        {"k": kernel},
    )
    (found,) = pads(path)
    assert (found["axis"], found["to"], found["harmless"]) == ("time", to, False)
    assert "can't be cut back" in found["why"]


def test_a_refusal_has_the_operators_words_and_no_error_code(onnx_models: Any) -> None:
    path = onnx_models.save(
        "sevens",
        [("Reshape", ["x", "s"], ["y"], {})],
        [("x", FLOAT, ["batch", "time"])],
        [("y", FLOAT, ["batch", "k", 7])],
        {"s": np.array([0, -1, 7])},
    )
    (found,) = pads(path)
    assert found["why"].startswith("it does not run on a row of 128: The input tensor cannot be reshaped")
    assert found["why"].endswith("(in the operator Reshape)")
