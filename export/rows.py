"""Whether rows may share a run: the axis `batch` of a graph is tested before the file is published.

evidence/ has the test; a worker makes the same one when it loads the file. A model that fails it is published
with free axes, none of which is called `batch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..evidence.axes import SHARED, UNNAMED, Proposal, propose
from ..evidence.drawing import OTHER_SCALE, Drawing
from ..evidence.judge import judge
from ..transport.errors import ModelFailed
from ..transport.tensors import TensorSpec
from . import axes, runtime
from .specs import BATCH, COMPLEX, FLOATS, Array, Feeds, InputSpec, sample


@dataclass(frozen=True)
class Rows:
    """The batch axes by the names of inputs and outputs; none: requests run alone. `reason`: why, with the
    figure."""

    inputs: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""

    def __str__(self) -> str:
        places = sorted({*self.inputs.values(), *self.outputs.values()})
        return f"batch axis: {', '.join(map(str, places)) or 'none'} ({self.reason})"


class Drawn(Drawing):
    """Draws inputs as the specs describe them; nothing about them is guessed."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        specs: Sequence[InputSpec],
        places: Sequence[int],
        scale: float = 1,
    ) -> None:
        super().__init__(inputs, places)
        self._given = (inputs, specs, places)
        self._scale = scale

    def feeds(self, rows: int, rng: np.random.Generator, sizes: Mapping[str, int] = {}) -> Feeds:
        """Random values by the specs; fractions are multiplied by `scale`."""
        _, specs, places = self._given
        found = {}
        for spec, place in zip(specs, places, strict=True):
            spec = called(spec, place)
            values = spec.sample({**sizes, BATCH: rows}, rng)
            is_fraction = spec.dtype in (*FLOATS, *COMPLEX)
            found[spec.name] = (values * self._scale).astype(values.dtype) if is_fraction else values
        return found

    def other_values(self) -> Drawing:
        return Drawn(*self._given, scale=OTHER_SCALE)


def with_name(names: Sequence[str], place: int, name: str) -> tuple[str, ...]:
    return tuple(name if axis == place else other for axis, other in enumerate(names))


def proved(
    proto: Any, session: Any, specs: Sequence[InputSpec], by_name: bool
) -> tuple[Rows, tuple[InputSpec, ...]]:
    """(verdict, specs): tests the axis `batch` (`by_name`), or the one that the file's own names suggest. If
    it holds, it is called `batch` in the specs and in the graph.

    session: of the same graph.
    """
    inputs, outputs = tensors(proto.graph.input), tensors(proto.graph.output)
    proposals, reason = named(inputs, outputs) if by_name else propose(inputs, outputs)
    if not proposals:
        return Rows(reason=reason), tuple(specs)

    def run(feeds: Feeds) -> list[Array]:
        answers = runtime.run(session, feeds)
        return [one.astype(np.float32) if one.dtype.kind == "V" else one for one in answers]

    verdict = judge(
        inputs, outputs, run, proposals, ways=lambda _, places, __: [Drawn(inputs, specs, places)]
    )
    if verdict.axes is None:
        return Rows(reason=verdict.reason), tuple(specs)
    takes, gives = verdict.axes[: len(inputs)], verdict.axes[len(inputs) :]
    found = Rows(
        {spec.name: axis for spec, axis in zip(inputs, takes, strict=True) if axis != SHARED},
        {spec.name: axis for spec, axis in zip(outputs, gives, strict=True)},
        verdict.reason,
    )
    chosen = tuple(called(spec, axis) for spec, axis in zip(specs, takes, strict=True))
    if chosen != tuple(specs):
        del proto.graph.value_info[:]  # it has the old names
    for value, spec in zip(proto.graph.input, chosen, strict=True):
        for dim, name in zip(value.type.tensor_type.shape.dim, spec.axes, strict=False):
            if name:  # setting none would take the size away
                dim.dim_param = name
    for value, axis in zip(proto.graph.output, gives, strict=True):
        dims = value.type.tensor_type.shape.dim
        for dim in dims:
            if dim.dim_param == BATCH:  # of something else that has the name: see name_outputs
                dim.Clear()
        dims[axis].dim_param = BATCH
    return found, chosen


def called(spec: InputSpec, place: int) -> InputSpec:
    """The input with `place` as its batch axis, if any. Another axis of that name is renamed."""
    names = [
        BATCH if axis == place else f"{spec.name}_{axis}" if name == BATCH else name
        for axis, name in enumerate(spec.axes)
    ]
    return replace(spec, axes=tuple(names))


def named(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[list[Proposal], str]:
    """The axis called `batch`, if every output has it once and some input has it."""
    if not any(BATCH in (spec.shape or ()) for spec in inputs):
        return [], f"no input has a free axis {BATCH!r}"
    for spec in outputs:
        count = (spec.shape or []).count(BATCH)
        if count != 1:
            how = "no axis" if count == 0 else f"{count} axes, and not one,"
            return [], f"output {spec.name!r} has {how} of the batch's size"
    places = [
        (spec.shape or []).index(BATCH) if BATCH in (spec.shape or ()) else SHARED
        for spec in (*inputs, *outputs)
    ]
    count = len(inputs)
    return [
        Proposal(tuple(places[:count]), tuple(places[count:]), f"every output has the axis {BATCH!r}")
    ], ""


def tensors(values: Any) -> list[TensorSpec]:
    """Inputs or outputs of a graph as evidence/ takes them."""
    found = []
    for value in values:
        tensor = value.type.tensor_type
        shape: list[int | str] | None = None
        if tensor.HasField("shape"):
            shape = [
                dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else UNNAMED)
                for dim in tensor.shape.dim
            ]
        found.append(TensorSpec(value.name, tensor.elem_type, shape))
    return found


def disowned(proto: Any, specs: Sequence[InputSpec], symbols: Mapping[str, str]) -> tuple[InputSpec, ...]:
    """The specs without a batch axis: it stays free, under another name, in them and in the graph.

    symbols: what the tracer called each input's axis; inputs of one symbol keep one size. Outputs lose their
    names: see name_outputs.
    """
    names: dict[str, str] = {}
    sizes: dict[str, int] = {}
    found = []
    for spec, value in zip(specs, proto.graph.input, strict=True):
        place = spec.batch_axis
        if place is not None:
            name = names.setdefault(symbols.get(spec.name, BATCH), f"{spec.name}_{place}")
            size = sizes.setdefault(name, spec.shape[place])
            shape = tuple(size if axis == place else own for axis, own in enumerate(spec.shape))
            spec = replace(spec, shape=shape, axes=with_name(spec.axes, place, name))
            value.type.tensor_type.shape.dim[place].dim_param = name
        found.append(spec)
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if BATCH in dim.dim_param:
                dim.Clear()
    return tuple(found)


def name_outputs(proto: Any, session: Any, specs: Sequence[InputSpec]) -> None:
    """Call free axes of outputs that have no name by the input's axis that they follow, as runs show it."""
    ends = [dim for value in proto.graph.output for dim in value.type.tensor_type.shape.dim]
    if all(dim.dim_param or dim.HasField("dim_value") for dim in ends):
        return
    own = {BATCH: 2, **axes.own_sizes(specs)}
    try:
        before = [one.shape for one in runtime.run(session, sample(specs, own, seed=0))]
    except ModelFailed:
        return
    for name in own:
        for size in axes.values(own[name], axes.Bounds()):
            try:
                after = [
                    one.shape for one in runtime.run(session, sample(specs, {**own, name: size}, seed=0))
                ]
            except ModelFailed:
                continue
            for value, old, new in zip(proto.graph.output, before, after, strict=True):
                dims = value.type.tensor_type.shape.dim
                for dim, one, other in zip(dims, old, new, strict=False):
                    is_unnamed = not dim.dim_param and not dim.HasField("dim_value")
                    if is_unnamed and (one, other) == (own[name], size):
                        dim.dim_param = name
            break
