"""Decides which variants may be published: smaller, not slower, accurate enough. Pure: figures in, reasons
out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .timing import Timing
from .validation import Difference

# Of scaled_max, by the least exact type that the model computes in: rounding in another order, nothing else.
# PyTorch rounds after every operator, onnxruntime's CPU computes half precision in float32.
DIFFERENCE_MAX: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
# Two runs of one and the same file differ by a few percent of median ratio on a shared machine.
SLOWER_MAX = 1.05
AGREEMENT_MIN = 0.98
COSINE_MIN = 0.99


@dataclass(frozen=True)
class Tolerance:
    """How far a variant's answers may be from PyTorch's: the relative root mean square error, the share of
    rows with the same class, and the cosine of the worst embedding."""

    rms_max: float
    agreement_min: float = AGREEMENT_MIN
    cosine_min: float = COSINE_MIN


TOLERANCES: Mapping[str, Tolerance] = {
    "fp16-storage": Tolerance(0.005),
    "int8-storage": Tolerance(0.05),
    "dynamic": Tolerance(0.10),
    "static": Tolerance(0.10),
}


def refusal(difference: Difference, precision: str = "float32") -> str | None:
    """Why the plain export does not compute what its source does (PyTorch, or an .onnx file); None: it does.

    precision: the least exact type that the model computes in.
    """
    allowed = DIFFERENCE_MAX[precision]
    if difference.scaled_max <= allowed:  # NaN is refused too
        return None
    where = f" (with {difference.worst})" if difference.worst else ""
    return (
        f"differs from its source by {difference.scaled_max:.2e}, and at most {allowed:.0e} is allowed{where}"
    )


def refusals(
    size_ratio: float, timings: Sequence[Timing], difference: Difference, tolerance: Tolerance
) -> list[str]:
    """Every reason against publishing a variant, each with its figure."""
    reasons = []
    if not size_ratio < 1:
        reasons.append(f"not smaller: {size_ratio:.0%} of fp32")
    slow = [timing for timing in timings if not timing.ratio <= SLOWER_MAX]
    if slow:
        worst = max(slow, key=lambda timing: timing.ratio)
        reasons.append(f"slower: {worst.ratio:.2f} times fp32 at batch {worst.batch}")
    if not difference.rms <= tolerance.rms_max:
        reasons.append(f"inexact: error {difference.rms:.2g}, at most {tolerance.rms_max:g}")
    if difference.agreement is not None and not difference.agreement >= tolerance.agreement_min:
        reasons.append(f"disagrees: top-1 {difference.agreement:.1%}, at least {tolerance.agreement_min:.0%}")
    if difference.cosine is not None and not difference.cosine >= tolerance.cosine_min:
        reasons.append(
            f"turned: cosine of the worst row {difference.cosine:.4f}, at least {tolerance.cosine_min:g}"
        )
    return reasons


def cost(size_ratio: float, timings: Sequence[Timing]) -> float:
    """What `best` minimizes: size times time, both relative to fp32."""
    slowest = max((timing.ratio for timing in timings), default=1.0)
    return size_ratio * slowest
