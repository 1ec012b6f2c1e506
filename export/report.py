"""The result of an export, as data and as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .gate import cost
from .passes import Pass
from .timing import Timing
from .validation import Difference

FP32 = "fp32"
BASES = {"float32": FP32, "float16": "fp16", "bfloat16": "bf16"}  # by the type that a model computes in


@dataclass(frozen=True)
class Variant:
    """One form of the model. `path` and `sha256`: of a published one; `refused`: why it was not published."""

    name: str
    nbytes: int
    size_ratio: float
    timings: tuple[Timing, ...]
    difference: Difference | None
    refused: tuple[str, ...] = ()
    path: Path | None = None
    sha256: str | None = None

    @property
    def time_ratio(self) -> float:
        """Of the slowest batch size, relative to fp32."""
        return max((timing.ratio for timing in self.timings), default=1.0)

    @property
    def cost(self) -> float:
        return cost(self.size_ratio, self.timings)


@dataclass(frozen=True)
class Report:
    """`variants[0]` is the model itself, at `path` (fp32, unless it computes with less); the others lie
    beside it. `metadata` is the JSON with all of it."""

    path: Path
    source: str
    opset: int
    dynamic_batch: bool
    nodes_raw: int
    nodes: int
    passes: tuple[Pass, ...]
    variants: tuple[Variant, ...]
    metadata: Path
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    asked: tuple[str, ...] = ()  # variants that were asked for by name
    batch: Mapping[str, Any] = field(default_factory=dict)  # inputs, outputs: {name: axis}; reason
    sizes: Mapping[str, int] = field(default_factory=dict)  # of free axes, as they were given
    checked: Mapping[str, Sequence[int]] = field(default_factory=dict)  # sizes of free axes, by name
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> list[Variant]:
        """Variants that were requested by name and refused."""
        return [variant for variant in self.variants if variant.name in self.asked and variant.refused]

    @property
    def published(self) -> list[Variant]:
        """The variants on disk, fp32 first."""
        return [variant for variant in self.variants if variant.path is not None]

    @property
    def best(self) -> Variant:
        """The published variant with the least size times time; fp32 if none is better."""
        return min(self.published, key=lambda variant: variant.cost)

    def lines(self) -> list[str]:
        """As text: nodes, passes, and a row per variant."""
        head = f"{self.path}: opset {self.opset}"
        if not self.batch:
            head += f", {'dynamic' if self.dynamic_batch else 'fixed'} batch"
        if self.nodes < self.nodes_raw:
            less = (self.nodes_raw - self.nodes) / self.nodes_raw
            head += f", {self.nodes_raw} -> {self.nodes} nodes (-{less:.0%} against the raw export)"
        lines = [head]
        if self.batch:
            places = sorted({*self.batch["inputs"].values(), *self.batch["outputs"].values()})
            where = ", ".join(map(str, places)) or "none"
            lines.append(f"  batch axis: {where} ({self.batch['reason']})")
        if self.checked:
            found = [f"{name} at {', '.join(map(str, sizes))}" for name, sizes in self.checked.items()]
            lines.append(f"  free axes, checked: {'; '.join(found)}")
        lines += [f"  note: {note}" for note in self.notes]
        lines += [
            f"  pass {step.name:<26}{step.nodes_before:>5} ->{step.nodes_after:>5} nodes"
            for step in self.passes
            if step.changed
        ]
        lines += [f"  {row(variant)}" for variant in self.variants]
        if len(self.variants) > 1:
            lines.append(f"  best: {self.best.name} ({self.best.path})")
        return lines


def row(variant: Variant) -> str:
    """`int8-storage  1.1 MB   26 %  1.00x  error 5e-03, top-1 100.0 %  published`."""
    refused = "refused: " + "; ".join(variant.refused)
    if not variant.nbytes:  # it could not be made
        return f"{variant.name:<13}  {refused}"
    figures = f"{variant.name:<13}{variant.nbytes / 1e6:>8.3f} MB {variant.size_ratio:>5.0%}"
    if variant.timings:
        figures += f"  {variant.time_ratio:.2f}x"
    if variant.difference is not None:
        figures += f"  max {variant.difference.abs_max:.1e}, error {variant.difference.rms:.1e}"
        if variant.difference.agreement is not None:
            figures += f", top-1 {variant.difference.agreement:.1%}"
        if variant.difference.cosine is not None:
            figures += f", cosine {variant.difference.cosine:.4f}"
    return f"{figures}  {'published' if variant.path else refused}"
