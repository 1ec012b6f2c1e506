"""Which axes of a model's inputs are free, what they are called, and at which sizes they are checked. Pure.

    image:1=batch            the batch is on axis 1
    ids:1=sequence           a free axis; one name on two inputs means one size on both
    ids:1=sequence:2-512     checked inside these bounds alone
    table:0=fixed            no batch on this input, though axis 0 would be taken for one

A size may follow from others: "cache + sequence", or "32*height", as the tracer writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..transport.errors import InvalidRequest
from .specs import BATCH, NAME, InputSpec, size_of

FIXED = "fixed"
SYNTAX = "INPUT:AXIS=NAME[:MIN-MAX], such as ids:1=sequence or image:2=height:64-1024"
STEP_MAX = 32  # sizes that are checked keep as many factors of two as the given one has, up to this

_TEXT = re.compile(r"(?:(?P<input>.+):)?(?P<axis>\d+)=(?P<name>[^:=]+)(?::(?P<least>\d*)-(?P<most>\d*))?")

# Texts as above, or {input: {axis: name}}.
Dynamic = Sequence[str] | Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Bounds:
    """The sizes that a free axis may have, as its user says; `most` is None where he does not."""

    least: int = 1
    most: int | None = None


@dataclass(frozen=True)
class FreeAxes:
    """What the user said about free axes: names by input and axis, and bounds by name."""

    names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    bounds: Mapping[str, Bounds] = field(default_factory=dict)

    def names_of(self, spec: InputSpec) -> Mapping[int, str]:
        return self.names.get(spec.name, {})


def parse(given: Dynamic | None, specs: Sequence[InputSpec]) -> FreeAxes:
    """What `given` says about these inputs. Raises InvalidRequest with the syntax, or with what the inputs
    have."""
    names: dict[str, dict[int, str]] = {}
    bounds: dict[str, Bounds] = {}
    for text in _texts(given):
        found = _TEXT.fullmatch(text.strip())
        if found is None or not (NAME.fullmatch(found["name"].strip()) or size_of(found["name"], None)):
            raise InvalidRequest(f"a free axis is {SYNTAX}, and not {text!r}")
        name, axis, label = found["input"], int(found["axis"]), found["name"].strip()
        spec = _input(name, specs)
        if axis >= len(spec.shape):
            raise InvalidRequest(f"{spec.name} has axes 0 to {len(spec.shape) - 1}, and no axis {axis}")
        if names.setdefault(spec.name, {}).setdefault(axis, label) != label:
            raise InvalidRequest(f"axis {axis} of {spec.name} has two names")
        if list(names[spec.name].values()).count(BATCH) > 1:
            raise InvalidRequest(f"two axes of {spec.name} cannot be the batch")
        if found["least"] or found["most"]:
            given_bounds = Bounds(int(found["least"] or 1), int(found["most"]) if found["most"] else None)
            if label in (FIXED, BATCH) or not NAME.fullmatch(label):
                raise InvalidRequest(
                    f"{text!r}: bounds are for names of your own; --batch-max bounds a batch"
                )
            if given_bounds.least < 1 or not given_bounds.least <= (given_bounds.most or given_bounds.least):
                raise InvalidRequest(f"{text!r}: the bounds are MIN-MAX, of 1 or more, the lesser first")
            if bounds.setdefault(label, given_bounds) != given_bounds:
                raise InvalidRequest(f"{label} has two pairs of bounds")
    return FreeAxes(names, bounds)


def _texts(given: Dynamic | None) -> list[str]:
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping):
        try:
            return [f"{name}:{axis}={label}" for name, axes in given.items() for axis, label in axes.items()]
        except AttributeError:
            raise InvalidRequest(f"dynamic is {{input: {{axis: name}}}}, and not {given!r}") from None
    if not all(isinstance(text, str) for text in given):
        raise InvalidRequest(f"a free axis is {SYNTAX}, and not {list(given)!r}")
    return list(given)


def _input(name: str | None, specs: Sequence[InputSpec]) -> InputSpec:
    if name is None and len(specs) == 1:
        return specs[0]
    for spec in specs:
        if spec.name == name:
            return spec
    there = ", ".join(spec.name for spec in specs)
    raise InvalidRequest(f"there is no input {name!r} with a free axis to name; the inputs are {there}")


def labelled(specs: Sequence[InputSpec], free: FreeAxes, dynamic_batch: bool) -> tuple[InputSpec, ...]:
    """`specs` with a name for every axis that is to be free: the user's, and `batch` for axis 0 of each input
    where he says nothing else of it. Raises InvalidRequest where sizes of one name differ."""
    found = []
    for spec in specs:
        names = {axis: name for axis, name in free.names_of(spec).items() if name != FIXED}
        if BATCH in names.values() and not dynamic_batch:
            raise InvalidRequest("a fixed batch (--fixed-batch) cannot be on a free axis as well")
        is_silent = 0 not in free.names_of(spec) and BATCH not in names.values()
        if dynamic_batch and is_silent and spec.shape:
            names[0] = BATCH
        found.append(replace(spec, axes=tuple(names.get(axis, "") for axis in range(len(spec.shape)))))
    own_sizes(found)
    return tuple(found)


def perhaps_batch(specs: Sequence[InputSpec], free: FreeAxes) -> str:
    """What else may count rows, as an option to write: an axis as long as the one that the user calls the
    batch, of an input of which he says nothing."""
    said = {
        spec.name: spec.shape[axis]
        for spec in specs
        for axis, name in free.names_of(spec).items()
        if name == BATCH
    }
    found = [
        f"--dynamic {spec.name}:{axis}={BATCH}"
        for spec in specs
        if spec.name not in said
        for axis, size in enumerate(spec.shape)
        if axis and size in said.values()
    ]
    return f"; if they count rows as well: {' '.join(found)}" if found else ""


def own_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The size of each name as the shapes say, without `batch`. Raises InvalidRequest where they disagree."""
    sizes: dict[str, int] = {}
    for spec in specs:
        for axis, name in enumerate(spec.axes):
            if not NAME.fullmatch(name) or name == BATCH:
                continue
            if sizes.setdefault(name, spec.shape[axis]) != spec.shape[axis]:
                raise InvalidRequest(
                    f"{name} is {sizes[name]} on one input, and {spec.shape[axis]} on axis {axis} of "
                    f"{spec.name}: one name has one size"
                )
    return sizes


def traced_sizes(specs: Sequence[InputSpec], rows: int) -> dict[str, int]:
    """Sizes to trace at: the shapes' own, but `rows` for a batch, and none of 1, which a tracer would take
    for a constant. Sizes of different names should differ, because a tracer takes equal ones for one."""
    sizes = {BATCH: rows, **own_sizes(specs)}
    for name, size in sizes.items():
        if size == 1:
            sizes[name] = next(other for other in range(3, 3 + len(sizes) + 1) if other not in sizes.values())
    return sizes


def values(own: int, bounds: Bounds) -> list[int]:
    """Sizes to check besides `own`: some smaller, larger, odd, and 1, as far as the bounds allow."""
    steps = (step for step in (STEP_MAX, 16, 8, 4, 2) if own % step == 0 and own >= 4 * step)
    step = next(steps, 1)
    wanted = [own // 2, own * 3 // 4, own * 3 // 2]
    found = [max(step, value - value % step) for value in wanted] + [own - 1, own + 1, own + 3, 1]
    if bounds != Bounds():
        found += [bounds.least, bounds.most or own]
    fits = [value for value in found if bounds.least <= value <= (bounds.most or value) and value != own]
    return list(dict.fromkeys(fits))
