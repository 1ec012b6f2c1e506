"""A model's state: which outputs come back as inputs, what they begin with, how large the next ones are.

Pure: arrays and metadata. sequence.py asks the yard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..transport import dtypes
from ..transport.errors import InvalidRequest, shown
from ..transport.tensors import TensorSpec
from .signature import Array, Signature

UNNAMED = "?"  # a free axis without a name
Shape = tuple[int, ...]

_GROWS = re.compile(r"past|cache|total|kv|history", re.I)
# An input's name -> what the output may be called that gives it back, best first.
_RULES = (
    (re.compile(r"^(.+)$"), (r"\1N", r"\1n", r"\1_n", r"\1_out", r"\1_next")),
    (re.compile(r"^(.+)$"), (r"next_\1", r"new_\1", r"out_\1")),
    (re.compile(r"^(.*)_in$"), (r"\1_out", r"\1_next")),
    (re.compile(r"^in_(.*)$"), (r"out_\1",)),
    (re.compile(r"^(.*[^_])_?(?:0|prev|init)$"), (r"\1n", r"\1_n", r"\1N", r"\1_next", r"\1_out", r"\1")),
    (re.compile(r"^(?:prev|last|initial|old)_(.*)$"), (r"next_\1", r"new_\1", r"final_\1", r"\1")),
    (re.compile(r"^past_key_values(.*)$"), (r"present\1", r"present_key_values\1")),
    (re.compile(r"^past(.*)$"), (r"present\1",)),
    (re.compile(r"^cache(.*)$"), (r"new_cache\1", r"present\1")),
)


def find(signature: Signature, given: Mapping[str, str] | None) -> dict[str, str]:
    """{input: the output that is its next value}: as given, or by their names. Raises InvalidRequest with
    what the model has, where there is none."""
    takes = {entry.spec.name: entry.spec for entry in signature.inputs}
    gives = {spec.name: spec for spec in signature.outputs}
    if given is not None:
        return _checked(signature.name, takes, gives, given)
    found: dict[str, str] = {}
    for name, spec in takes.items():
        for candidate in _called(name):
            output = gives.get(candidate)
            if output is not None and candidate not in found.values() and _may_be(spec, output):
                found[name] = candidate
                break
    if not found:
        raise InvalidRequest(
            f"no output of {signature.name!r} is the next value of an input, by their names: it takes "
            f"{', '.join(takes) or 'nothing'} and gives {', '.join(gives)}; say which, as "
            "states={'input': 'output'}"
        )
    return found


def _checked(
    model: str, takes: Mapping[str, TensorSpec], gives: Mapping[str, TensorSpec], given: Mapping[str, str]
) -> dict[str, str]:
    if not isinstance(given, Mapping) or not given:
        raise InvalidRequest(f"states is a mapping such as {{'input': 'output'}}, not {shown(given)}")
    for name, output in given.items():
        if name not in takes or output not in gives:
            missing, there = (name, takes) if name not in takes else (output, gives)
            kind = "input" if there is takes else "output"
            raise InvalidRequest(f"states: {model!r} has no {kind} {missing!r}; it has {', '.join(there)}")
        if not _may_be(takes[name], gives[output]):
            raise InvalidRequest(f"states: {gives[output]} can't be the next value of {takes[name]}")
    return dict(given)


def _called(name: str) -> list[str]:
    """The names of outputs that may be the next value of this input."""
    return [
        found.expand(form)
        for rule, forms in _RULES
        if (found := rule.fullmatch(name)) is not None
        for form in forms
    ]


def _may_be(takes: TensorSpec, gives: TensorSpec) -> bool:
    """Whether a value of the output can be one of the input."""
    if takes.dtype != gives.dtype or takes.dtype == dtypes.STRING:
        return False
    if takes.shape is None or gives.shape is None:
        return True
    return len(takes.shape) == len(gives.shape) and not any(
        isinstance(one, int) and isinstance(other, int) and one != other
        for one, other in zip(takes.shape, gives.shape, strict=True)
    )


# ---- what a state begins with -------------------------------------------------------------------


def zeros(signature: Signature, pairs: Mapping[str, str], name: str, step: Mapping[str, Any]) -> Array:
    """The state `name` before the first step: zeros of its declared shape. Its free axes: as many rows as
    the first step has, sizes that the step's inputs have by the same name, and 0 on an axis that grows.
    Raises InvalidRequest where a size can't be known."""
    entry = next(entry for entry in signature.inputs if entry.spec.name == name)
    gives = next(spec for spec in signature.outputs if spec.name == pairs[name])
    if entry.spec.shape is None:
        raise InvalidRequest(_give(signature.name, name, "its number of axes is not known"))
    named = _sizes(signature, step)
    rows = rows_of(signature, step)
    shape: list[int] = []
    open_axis = False
    for index, size in enumerate(entry.spec.shape):
        if isinstance(size, int):
            shape.append(size)
        elif index == entry.axis:
            shape.append(rows)
        elif size != UNNAMED and size in named:
            shape.append(named[size])
        elif _grows(size, gives.shape[index] if gives.shape else UNNAMED):
            shape.append(0)
        elif entry.axis < 0 and not open_axis:
            open_axis = True
            shape.append(rows)
        else:
            raise InvalidRequest(_give(signature.name, name, f"the size of its axis {index} is not known"))
    return np.zeros(shape, dtypes.BY_CODE[entry.spec.dtype].numpy)


def _give(model: str, name: str, why: str) -> str:
    return (
        f"the state {name!r} of {model!r} can't be begun with zeros, because {why}: give it, as "
        f"client.sequence({model!r}, **{{{name!r}: array}})"
    )


def _grows(takes: int | str, gives: int | str) -> bool:
    """Whether a free axis gets longer with every step: so it is called, here or at the output."""
    if not isinstance(takes, str) or takes == UNNAMED:
        return False
    longer = isinstance(gives, str) and takes != gives and ("+" in gives or takes in gives)
    return longer or bool(_GROWS.search(takes))


def rows_of(signature: Signature, step: Mapping[str, Any]) -> int:
    """Rows of a step: on the batch axis, or, of a model that runs alone, on a free axis 0; else 1."""
    for entry in signature.inputs:
        array = step.get(entry.spec.name)
        if isinstance(array, np.ndarray) and entry.axis >= 0:
            return int(array.shape[entry.axis]) if array.ndim > entry.axis else 1
    for entry in signature.inputs:
        array = step.get(entry.spec.name)
        shape = entry.spec.shape
        if isinstance(array, np.ndarray) and array.ndim and shape and not isinstance(shape[0], int):
            return int(array.shape[0])
    return 1


def _sizes(signature: Signature, step: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of named axes in the step's inputs."""
    found: dict[str, int] = {}
    for entry in signature.inputs:
        array = step.get(entry.spec.name)
        if isinstance(array, np.ndarray) and entry.spec.shape and len(entry.spec.shape) == array.ndim:
            axes = zip(entry.spec.shape, array.shape, strict=True)
            found.update({axis: size for axis, size in axes if isinstance(axis, str) and axis != UNNAMED})
    return found


# ---- how large the next outputs are -----------------------------------------------------------------


class Foresight:
    """Learns from each step how large the outputs of the next are."""

    def __init__(self) -> None:
        self._before: tuple[Any, dict[str, Shape], dict[str, Shape]] | None = None  # steps' shapes, in, out

    def learn(
        self, step: Mapping[str, Any], states: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        """A step has been made, from these states."""
        shapes = {name: array.shape for name, array in states.items()}
        self._before = _key(step), shapes, {name: array.shape for name, array in outputs.items()}

    def shapes(
        self,
        signature: Signature,
        pairs: Mapping[str, str],
        step: Mapping[str, Any],
        states: Mapping[str, Array],
    ) -> list[Shape] | None:
        """The shape of every output of a step; None where one can't be told from its size alone."""
        if signature.output_tails is not None:
            return None  # they are declared
        by_output = {output: name for name, output in pairs.items()}
        declared = {entry.spec.name: entry.spec for entry in signature.inputs}
        before = self._before if self._before is not None and self._before[0] == _key(step) else None
        rows = rows_of(signature, {**step, **states})
        found: list[Shape] = []
        for spec, batch_axis in zip(signature.outputs, signature.output_axes, strict=True):
            if spec.shape is None or not dtypes.BY_CODE[spec.dtype].itemsize:
                return None
            name = by_output.get(spec.name)
            last = before[2].get(spec.name) if before is not None else None
            shape: list[int] = []
            unsure = 0
            for index, size in enumerate(spec.shape):
                sure = _size(size, index == batch_axis, rows)
                if sure is None and name is not None:
                    takes = declared[name].shape
                    same = takes[index] if takes is not None else UNNAMED
                    sure = same if isinstance(same, int) else None
                    if sure is None and same != UNNAMED and same == size:
                        sure = states[name].shape[index]
                if sure is None:
                    unsure += 1
                    if last is None or len(last) != len(spec.shape):
                        return None
                    sure = last[index]
                    if name is not None and before is not None:  # it may grow by the same as before
                        sure += states[name].shape[index] - before[1][name][index]
                shape.append(sure)
            if unsure > 1 or min(shape, default=1) < 0:
                return None  # two sizes that nobody knows: their product does not tell them
            found.append(tuple(shape))
        return found


def _size(declared: int | str, is_batch: bool, rows: int) -> int | None:
    if isinstance(declared, int):
        return declared
    return rows if is_batch else None


def _key(step: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((name, np.shape(value)) for name, value in sorted(step.items()))
