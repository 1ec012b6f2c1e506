"""What may be published: smaller, not slower, and near enough. Pure: figures in, reasons out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .timing import Timing
from .validation import Difference

FP32_DIFFERENCE_MAX = 1e-4  # of scaled_max: rounding in another order, and nothing else
# Two runs of one and the same file differ by a few percent of median ratio on a shared machine.
SLOWER_MAX = 1.05
AGREEMENT_MIN = 0.98


@dataclass(frozen=True)
class Tolerance:
    """How far a variant may be from PyTorch: root mean square, relative, and top-1 agreement."""

    rms_max: float
    agreement_min: float = AGREEMENT_MIN


TOLERANCES: Mapping[str, Tolerance] = {
    "fp16-storage": Tolerance(0.005),
    "int8-storage": Tolerance(0.05),
    "dynamic": Tolerance(0.10),
    "static": Tolerance(0.10),
}


def fp32_refusal(difference: Difference) -> str | None:
    """Why the plain export is not what PyTorch, or the .onnx file that it comes from, computes; or None."""
    if difference.scaled_max <= FP32_DIFFERENCE_MAX:  # NaN is refused too
        return None
    return (
        f"differs from its source by {difference.scaled_max:.2e}, and may by {FP32_DIFFERENCE_MAX:.0e}"
    )


def refusals(
    size_ratio: float, timings: Sequence[Timing], difference: Difference, tolerance: Tolerance
) -> list[str]:
    """Every reason against a variant, each with its figure; none: it may be published."""
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
    return reasons


def cost(size_ratio: float, timings: Sequence[Timing]) -> float:
    """What `best` minimizes: size times time, both relative to fp32."""
    slowest = max((timing.ratio for timing in timings), default=1.0)
    return size_ratio * slowest
