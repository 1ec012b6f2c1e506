"""Python functions as models: how one is named, and how it declares its tensors.

Owns the two ways of naming one ("package.module:name", "folder/file.py:name"), the text of a tensor
("float32[batch, 3]"), and the decorator. Nothing here imports what is named: that is for a worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, TypeVar

import msgspec

from . import dtypes
from .errors import InvalidRequest, shown
from .tensors import RANK_MAX, TensorSpec

ATTRIBUTE = "__batchyard_signature__"  # where the decorator leaves a function's declaration
ROWS_MAX = 1024  # of one run
INPUT, OUTPUT = "input", "output"  # names of tensors that were declared without one

_REFERENCE = re.compile(r"(?P<place>.+):(?P<name>[^\W\d]\w*)", re.DOTALL)
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_TENSOR = re.compile(r"\s*(?P<dtype>\w+)\s*(\[(?P<axes>[^\[\]]*)\])?\s*")
_AXIS = re.compile(r"\d{1,15}|[^\W\d]\w*")

_importing = 0  # modules that a worker's process is importing for a model

Called = TypeVar("Called", bound=Callable[..., object])
Declared = str | Mapping[str, str]  # one tensor without a name, or {name: tensor}
Rows = Annotated[int, msgspec.Meta(ge=0, le=ROWS_MAX)]


class FunctionSignature(msgspec.Struct, array_like=True, frozen=True):
    """A function's inputs and outputs. `bare`: it takes its one input as an array, not in a dict."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]  # empty: a worker finds out by calling it
    bare: bool = False
    max_batch: Rows = 0  # most rows that it takes in one call; 0: no bound of its own


class Function(msgspec.Struct, array_like=True, frozen=True):
    """A callable that is served as a model: a function, or a class that each worker makes one of."""

    name: str
    module: str = ""  # to import it from; "": the model's file
    signature: FunctionSignature | None = None  # None: its own module declares it


@contextmanager
def importing() -> Iterator[None]:
    """While a worker imports what a model names: a program that has no `if __name__ == "__main__"` would
    start its yard anew then, whose workers would import it, and so on."""
    global _importing
    _importing += 1
    try:
        yield
    finally:
        _importing -= 1


def is_importing() -> bool:
    """Whether this process is a worker that imports what a model names."""
    return _importing > 0


def is_reference(text: str) -> bool:
    """Whether a model's text names a Python function, and not a file that is one."""
    match = _REFERENCE.fullmatch(text)
    return match is not None and (match["place"].endswith(".py") or bool(_MODULE.fullmatch(match["place"])))


def parse(text: str) -> tuple[str, Function]:
    """(file, function) of "folder/file.py:name", or ("", function) of "package.module:name".

    Raises InvalidRequest for a text that is neither.
    """
    match = _REFERENCE.fullmatch(text)
    if match is not None and "\0" not in text:
        if match["place"].endswith(".py"):
            return match["place"], Function(match["name"])
        if _MODULE.fullmatch(match["place"]):
            return "", Function(match["name"], match["place"])
    raise InvalidRequest(
        f'{text!r} names no Python function: write "package.module:function", or "file.py:function"'
    )


def declared(
    inputs: Declared, outputs: Declared | None = None, max_batch: int | None = None
) -> FunctionSignature:
    """The signature that these texts mean; see `model`. Raises InvalidRequest."""
    if max_batch is not None and (type(max_batch) is not int or not 1 <= max_batch <= ROWS_MAX):
        raise InvalidRequest(f"max_batch is a number of rows from 1 to {ROWS_MAX}, not {shown(max_batch)}")
    takes = _tensors("inputs", inputs, INPUT)
    gives = _tensors("outputs", outputs, OUTPUT) if outputs is not None else []
    return FunctionSignature(takes, gives, isinstance(inputs, str), max_batch or 0)


def model(
    *, inputs: Declared, outputs: Declared | None = None, max_batch: int | None = None
) -> Callable[[Called], Called]:
    """Say of a function, or of a class whose objects are called, what it takes and gives as a model.

    inputs: {"image": "float32[batch, 3, 32, 32]"}: it is called with a dict of arrays of these names. Or
        one text without a name: then it is called with the array alone. An axis is a size, or a name
        where any size will do. When axis 0 of every tensor has a name, it counts the rows of a batch.
    outputs: what it returns, in the same way; an array alone will do for one output. Default: a worker
        finds out, by calling it with zeros.
    max_batch: the most rows that one call may have; the yard's own bound may be lower.

    The arrays are read-only, and only there for the call: a function copies what it wants to keep.
    Raises InvalidRequest for texts that are no tensors.
    """
    signature = declared(inputs, outputs, max_batch)

    def mark(function: Called) -> Called:
        setattr(function, ATTRIBUTE, signature)
        return function

    return mark


def _tensors(what: str, given: Declared, name: str) -> list[TensorSpec]:
    if isinstance(given, str):
        return [_tensor(name, given)]
    if not isinstance(given, Mapping) or not given or not all(isinstance(key, str) and key for key in given):
        raise InvalidRequest(
            f'{what} is a text such as "float32[batch, 3]", or {{name: text}}, not {shown(given)}'
        )
    return [_tensor(key, text) for key, text in given.items()]


def _tensor(name: str, text: object) -> TensorSpec:
    """The tensor that `str(TensorSpec)` shows as "name: text". Raises InvalidRequest."""
    match = _TENSOR.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidRequest(f'tensor {name!r} is a text such as "float32[batch, 3]", not {shown(text)}')
    known = [entry.name for entry in dtypes.BY_NAME.values() if entry.itemsize]
    if match["dtype"] not in known:
        raise InvalidRequest(
            f"tensor {name!r}: there is no element type {match['dtype']!r}, only {', '.join(known)}"
        )
    entry = dtypes.BY_NAME[match["dtype"]]
    within = (match["axes"] or "").strip()
    axes = [axis.strip() for axis in within.split(",")] if within else []
    if len(axes) > RANK_MAX or not all(_AXIS.fullmatch(axis) for axis in axes):
        raise InvalidRequest(f"tensor {name!r}: an axis is a size or a name, at most {RANK_MAX}: {text!r}")
    return TensorSpec(name, entry.code, [int(axis) if axis.isdecimal() else axis for axis in axes])
