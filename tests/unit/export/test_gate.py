"""The publishing gate, on figures alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from batchyard.export.gate import Tolerance, refusal, refusals
from batchyard.export.timing import Timing
from batchyard.export.validation import Difference

NEAR = Difference((1,), 10, 1e-3, 1e-3, 1e-3, 1e-3, 1.0)
TOLERANCE = Tolerance(0.01, 0.98)


def timing(ratio: float, batch: int = 1) -> Timing:
    return Timing(batch, "CPUExecutionProvider", 1.0, ratio, ratio, 9)


def test_what_is_smaller_and_as_fast_and_near_is_published() -> None:
    assert refusals(0.26, [timing(0.8), timing(1.03, 8)], NEAR, TOLERANCE) == []


def test_the_dynamic_cnn_that_is_five_times_slower_is_refused_with_its_figure() -> None:
    assert refusals(0.25, [timing(1.0), timing(5.08, 8)], NEAR, TOLERANCE) == [
        "slower: 5.08 times fp32 at batch 8"
    ]


@pytest.mark.parametrize(
    ("size", "ratio", "change", "said"),
    [
        (1.0, 1.0, {}, "not smaller: 100%"),
        (0.5, 1.06, {}, "slower: 1.06"),
        (0.5, float("nan"), {}, "slower"),
        (0.5, 1.0, {"rms": 0.02}, "inexact: error 0.02"),
        (0.5, 1.0, {"rms": float("nan")}, "inexact: error nan"),
        (0.5, 1.0, {"agreement": 0.97}, "disagrees: top-1 97.0%"),
    ],
)
def test_every_bound_refuses_alone(size: float, ratio: float, change: dict[str, Any], said: str) -> None:
    (reason,) = refusals(size, [timing(ratio)], dataclasses.replace(NEAR, **change), TOLERANCE)
    assert reason.startswith(said)


def test_all_reasons_are_given_at_once_and_no_classes_are_no_reason() -> None:
    far = dataclasses.replace(NEAR, rms=1.0, agreement=None)
    assert len(refusals(1.2, [timing(3.0)], far, TOLERANCE)) == 3


@pytest.mark.parametrize(("scaled", "refused"), [(9e-5, False), (1.1e-4, True), (float("nan"), True)])
def test_fp32_is_held_to_its_own_bound(scaled: float, refused: bool) -> None:
    assert (refusal(dataclasses.replace(NEAR, scaled_max=scaled)) is not None) is refused


def test_an_embedding_that_is_turned_is_refused() -> None:
    turned = dataclasses.replace(NEAR, agreement=None, cosine=0.98)
    assert refusals(0.5, [timing(1.0)], turned, TOLERANCE) == [
        "turned: cosine of the worst row 0.9800, at least 0.99"
    ]
    assert refusals(0.5, [timing(1.0)], dataclasses.replace(turned, cosine=float("nan")), TOLERANCE)
    assert refusals(0.5, [timing(1.0)], dataclasses.replace(turned, cosine=0.999), TOLERANCE) == []


@pytest.mark.parametrize(("precision", "scaled"), [("float16", 5e-3), ("bfloat16", 5e-2)])
def test_half_precision_may_be_off_by_its_own_rounding(precision: str, scaled: float) -> None:
    near = dataclasses.replace(NEAR, scaled_max=scaled)
    assert refusal(near, precision) is None
    assert refusal(near) is not None
    assert refusal(dataclasses.replace(NEAR, scaled_max=10 * scaled), precision) is not None
