"""Proposes which axis of each tensor counts rows: by names, by position, or by the configuration.

Pure. A proposal is a claim; judge.py tests it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

from ..transport.tensors import TensorSpec

SHARED = -1  # in place of an axis: every row of a batch has the same value of this input
UNNAMED = "?"  # a free axis to which the file gives no name
PROPOSALS_MAX = 8  # each costs some runs
CHOICES_MAX = 256  # combinations of axes that are ranked


@dataclass(frozen=True)
class Proposal:
    """A possible batch axis: an axis or SHARED for every input, an axis for every output."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...] | None  # None: a run shows them
    why: str  # "every output has the axis 'batch'"
    is_named: bool = False  # inputs and outputs use the same name


def propose(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[list[Proposal], str]:
    """(proposals, best first; the reason if there are none).

    A proposal is a named axis that every output has once and each input at most once. If there is none,
    because axes have no names or the outputs use other names: one free axis of each input, axis 0 first.
    """
    if not inputs:
        return [], "it has no inputs"
    for spec in outputs:
        if spec.shape is None:
            return [], f"the file does not say how many axes output {spec.name!r} has"
    found = [
        proposal for name in _names(outputs) if (proposal := _by_name(name, inputs, outputs)) is not None
    ]
    # Rows are mostly on axis 0: names there are tried before names on other axes.
    found.sort(key=lambda proposal: sum(axis > 0 for axis in (*proposal.inputs, *(proposal.outputs or ()))))
    if not found:
        reason = _why_none(inputs, outputs)
        if reason:
            return [], reason
        found = _by_trial(inputs)
    return found[:PROPOSALS_MAX], ""


def by_position(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], wanted: int | Mapping[str, int]
) -> Proposal:
    """The configuration's proposal: one axis for every tensor in which it is free, or an axis for each named
    tensor (other inputs are shared). Raises ValueError with a sentence."""
    named = dict(wanted) if isinstance(wanted, Mapping) else None
    if named is not None:
        known = {spec.name for spec in (*inputs, *outputs)}
        unknown = [name for name in named if name not in known]
        if unknown:
            raise ValueError(f"batch_axis names {unknown[0]!r}; the model has {', '.join(sorted(known))}")

    def axis_of(spec: TensorSpec) -> int:
        axis = named.get(spec.name, SHARED) if named is not None else wanted
        assert isinstance(axis, int)
        if axis != SHARED and spec.shape is not None and not _is_free(spec, axis):
            if named is None:
                return SHARED
            raise ValueError(f"batch_axis: axis {axis} of {spec} is not free")
        return axis if spec.shape is not None else SHARED

    takes, gives = tuple(map(axis_of, inputs)), tuple(map(axis_of, outputs))
    if all(axis == SHARED for axis in takes):
        raise ValueError("batch_axis: no input has rows on that axis")
    if SHARED in gives:
        name = outputs[gives.index(SHARED)].name
        raise ValueError(f"batch_axis: output {name!r} has no rows, so it cannot be divided among requests")
    return Proposal(takes, gives, "its configuration says batch_axis", is_named=True)


def _names(outputs: Sequence[TensorSpec]) -> list[str]:
    """Names of free axes that every output has exactly once, in the first output's order."""
    if not outputs:
        return []
    first = outputs[0].shape or []
    return [
        axis
        for axis in dict.fromkeys(first)
        if isinstance(axis, str)
        and axis != UNNAMED
        and all((spec.shape or []).count(axis) == 1 for spec in outputs)
    ]


def _by_name(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Proposal | None:
    shapes = [spec.shape or [] for spec in inputs]
    if any(shape.count(name) > 1 for shape in shapes) or not any(name in shape for shape in shapes):
        return None
    return Proposal(
        tuple(shape.index(name) if name in shape else SHARED for shape in shapes),
        tuple((spec.shape or []).index(name) for spec in outputs),
        f"every output has the axis {name!r}",
        is_named=True,
    )


def _by_trial(inputs: Sequence[TensorSpec]) -> list[Proposal]:
    """One free axis of each input, or none. Proposals with more inputs and lower axes come first."""
    choices = []
    for spec in inputs:
        free = (
            [] if spec.optional else [axis for axis in range(len(spec.shape or ())) if _is_free(spec, axis)]
        )
        choices.append([*free, SHARED])
    axes = list(islice(product(*choices), CHOICES_MAX))
    axes.sort(key=lambda chosen: (chosen.count(SHARED), sum(chosen)))
    return [
        Proposal(chosen, None, f"{_named(inputs, chosen)} may count rows")
        for chosen in axes
        if any(axis != SHARED for axis in chosen)
    ]


def _named(inputs: Sequence[TensorSpec], axes: Sequence[int]) -> str:
    """ "axis 0 of 'x' and 1 of 'state'"."""
    found = [f"{axis} of {spec.name!r}" for spec, axis in zip(inputs, axes, strict=True) if axis != SHARED]
    return "axis " + " and ".join(found[:3]) + (" and others" if len(found) > 3 else "")


def _is_free(spec: TensorSpec, axis: int) -> bool:
    shape = spec.shape or []
    return 0 <= axis < len(shape) and not isinstance(shape[axis], int)


def _why_none(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Why no axis can count rows; "" if one may."""
    for spec in outputs:
        if not spec.shape:
            return f"output {spec.name!r} has no axes, so no batch axis"
        if spec.is_static:
            return f"every axis of output {spec.name!r} is fixed ({spec}): it has no free batch axis"
    if any(_is_free(spec, axis) for spec in inputs for axis in range(len(spec.shape or ()))):
        return ""
    return f"every axis of its inputs is fixed, or not known ({inputs[0]}): there is no free batch axis"
