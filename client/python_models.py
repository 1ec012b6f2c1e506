"""A Python function in the caller's hands, as a worker in another process can find it: by name.

Nothing is pickled. A worker imports the same module, or runs the same file under another name, so what
is below `if __name__ == "__main__"` is not run there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..transport import dtypes
from ..transport.errors import InvalidRequest
from ..transport.python_models import ATTRIBUTE, INPUT, FunctionSignature, is_reference, parse
from ..transport.tensors import TensorSpec
from .encoding import plain

HOW = (
    "workers are other processes, and nothing is pickled: define it by `def` or `class` at the top level of "
    "a module or script, and pass it by that name"
)


class Named(NamedTuple):
    """A function by its reference, and what it takes and gives, unless only its module says so."""

    reference: str
    signature: FunctionSignature | None


def is_source(source: Any) -> bool:
    """Whether this is meant as a Python function: one, or a text that names one."""
    if isinstance(source, str):
        return is_reference(source)
    return isinstance(source, Named) or (callable(source) and not isinstance(source, os.PathLike))


def named(source: str | Callable[..., Any] | Named) -> Named:
    """The function as a worker will find it. Raises InvalidRequest."""
    if isinstance(source, Named):
        return source
    if isinstance(source, str):
        file, function = parse(source)
        return Named(f"{os.path.abspath(file)}:{function.name}" if file else source, None)
    text = reference(source)
    signature = getattr(source, ATTRIBUTE, None)
    if not isinstance(signature, FunctionSignature):
        raise InvalidRequest(
            f"{source.__name__!r} does not say what it takes and gives: put "
            '@batchyard.model(inputs={"x": "float32[batch, 4]"}, outputs={"y": "float32[batch]"}) on it'
        )
    return Named(text, signature)


def reference(function: Callable[..., Any]) -> str:
    """`module:name` or `file.py:name` of a function or a class. Raises InvalidRequest for what can't be
    found by name: lambdas, inner functions, methods, objects, and what was typed into a console."""
    name = getattr(function, "__qualname__", "")
    module_name = getattr(function, "__module__", None) or ""
    shown = getattr(function, "__name__", None) or type(function).__name__
    module = sys.modules.get(module_name)
    if module is None or not name.isidentifier() or getattr(module, name, None) is not function:
        raise InvalidRequest(f"{shown!r} cannot be imported by a worker; {HOW}")
    if module_name != "__main__":
        return f"{module_name}:{name}"
    if module.__spec__ is not None:  # python -m package.module
        return f"{module.__spec__.name}:{name}"
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py") or not Path(file).is_file():
        raise InvalidRequest(f"{shown!r} was not read from a .py file; {HOW}")
    return f"{os.path.abspath(file)}:{name}"


def learned(example: Any) -> FunctionSignature:
    """What a function takes that is to be called with batches of items like this one: an array, or a dict
    of them. Raises InvalidRequest."""
    bare = not isinstance(example, Mapping)
    specs = []
    for name, value in ({INPUT: example} if bare else dict(example)).items():
        try:
            array = plain(value)
        except ValueError as error:
            raise InvalidRequest(f"input {name!r} is no array: {error}") from None
        code = dtypes.CODE_BY_NUMPY.get(array.dtype)
        if code is None or not isinstance(name, str):
            raise InvalidRequest(f"input {name!r} is a {array.dtype}, which no tensor can be")
        specs.append(TensorSpec(name, code, ["batch", *array.shape]))
    if not specs:
        raise InvalidRequest("an item is an array or a dict of arrays, and this is an empty dict")
    return FunctionSignature(specs, [], bare)


def environment() -> dict[str, str]:
    """The environment in which workers find modules where this program does."""
    folders = [os.path.abspath(folder) for folder in sys.path]
    return {"PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1"}
