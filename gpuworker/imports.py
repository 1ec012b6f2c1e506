"""Finding the callable that a Load names: a module is imported, or a file is run as a module of its own;
a class is made; and what it declares is read.

A file is read anew by every load, past Python's cache of modules and of compiled code, so that an old
and a new revision live side by side. What it imports in turn is cached as ever.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import logging
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import TracebackType
from typing import Any

from ..evidence.words import error_text
from ..transport.python_models import ATTRIBUTE, Function, FunctionSignature, importing

Call = Callable[[Any], Any]

_numbers = itertools.count(1)
_HERE = Path(__file__).parent

log = logging.getLogger("batchyard.gpuworker")


class UserError(Exception):
    """The user's own code raised, or is not what it must be; the text is for the client. The traceback
    is in this worker's log."""


class _FreshLoader(SourceFileLoader):
    """Reads the source. Compiled code that is kept is known by a time in seconds, which is too coarse."""

    def path_stats(self, path: str) -> Any:
        raise OSError("always from the source")


def place_of(function: Function, path: str) -> str:
    """How a function is called in messages; without the folder, which is no client's business."""
    return f"{function.module or Path(path).name}:{function.name}"


def find(function: Function, path: str) -> tuple[Any, str]:
    """(what `function` names, the name of the module that was made for its file, or ""). Raises UserError."""
    place = place_of(function, path)
    own = ""
    try:
        with importing():
            if function.module:
                if os.getcwd() not in sys.path:
                    sys.path.append(os.getcwd())  # last, so that a file there hides no library
                module: Any = pkgutil.resolve_name(f"{function.module}:")
            else:
                own = f"_batchyard_{next(_numbers)}_{Path(path).stem}"
                module = _run_file(path, own)
    except BaseException as error:  # of user code, every kind is its failure, and never this process's
        log_traceback(f"importing {place} failed", error)
        raise UserError(f"{place} cannot be imported: {described(error)}") from None
    try:
        return getattr(module, function.name), own
    except AttributeError:
        forget(own)
        raise UserError(f"{place}: the module has no {function.name!r}") from None


def file_of(function: Function, path: str) -> str:
    """The source that a function lies in, once it was found; "" where it has none."""
    file = getattr(sys.modules.get(function.module), "__file__", None) if function.module else path
    return file if file and Path(file).is_file() else ""


def signature_of(found: Any, function: Function, place: str) -> FunctionSignature:
    """What it takes and gives: its own word, or its configuration's. Raises UserError."""
    own = getattr(found, ATTRIBUTE, None)
    if own is not None and not isinstance(own, FunctionSignature):
        raise UserError(f"{place}: its {ATTRIBUTE} is not batchyard's")
    configured = function.signature
    if (
        own is not None
        and configured is not None
        and (own.inputs, own.outputs) != (configured.inputs, configured.outputs)
    ):
        raise UserError(f"{place} declares other inputs or outputs than its yard was told: say it once")
    signature = own or configured
    if signature is None:
        raise UserError(
            f"{place} does not say what it takes: put @batchyard.model(inputs=..., outputs=...) on it, or "
            "inputs and outputs into batchyard.toml"
        )
    return signature


def call_of(found: Any, place: str) -> Call:
    """The function itself, or an object of the class. Raises UserError."""
    if isinstance(found, type):
        try:
            found = found()
        except BaseException as error:
            log_traceback(f"making {place} failed", error)
            raise UserError(f"{place} cannot be made: {described(error)}") from None
    if not callable(found):
        raise UserError(f"{place} is a {type(found).__name__}, and cannot be called")
    if inspect.iscoroutinefunction(_code_of(found)) or inspect.isasyncgenfunction(_code_of(found)):
        raise UserError(f"{place} is a coroutine: a model is a plain function, or a generator")
    return found  # type: ignore[no-any-return]


def streams(call: Call) -> bool:
    """Whether it is a generator: it yields an answer, and then another."""
    return inspect.isgeneratorfunction(_code_of(call))


def _code_of(found: Any) -> Any:
    return found if inspect.isroutine(found) else type(found).__call__


def forget(own: str) -> None:
    """Let go of the module that was made for a file, and of what it holds: its functions and its names hold
    each other, and the collector may have been told to leave them alone."""
    module = sys.modules.pop(own, None)
    if module is not None:
        module.__dict__.clear()


def _run_file(path: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path, loader=_FreshLoader(name, path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that a file beside it hides no library
    sys.modules[name] = module  # dataclasses and others look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        forget(name)
        raise
    return module


def described(error: BaseException) -> str:
    """Its type and what it says, in one line."""
    text = error_text(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:500]}" if text else type(error).__name__


def log_traceback(what: str, error: BaseException) -> None:
    """Log the user's lines of a traceback, without ours and the import machinery's."""
    lines = traceback.format_exception(type(error), error, _users(error.__traceback__))
    log.error("%s\n%s", what, "".join(lines).rstrip())


def _users(trace: TracebackType | None) -> TracebackType | None:
    first = trace
    while first is not None:
        file = first.tb_frame.f_code.co_filename
        if not file.startswith("<frozen importlib") and _HERE not in Path(file).parents:
            return first
        first = first.tb_next
    return trace
