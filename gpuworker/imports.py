"""Finding the callable that a Load names: a module is imported, or a file is run as a module of its own.

A file is read anew by every load, past Python's cache of modules and of compiled code, so that an old
and a new revision live side by side. What it imports in turn is cached as ever.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import pkgutil
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import TracebackType
from typing import Any

from ..transport.functions import Function

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
        if function.module:
            module: Any = pkgutil.resolve_name(f"{function.module}:")
        else:
            own = f"_batchyard_{next(_numbers)}_{Path(path).stem}"
            module = _run_file(path, own)
    except (Exception, SystemExit) as error:
        log_traceback(f"importing {place} failed", error)
        raise UserError(f"{place} cannot be imported: {described(error)}") from None
    try:
        return getattr(module, function.name), own
    except AttributeError:
        forget(own)
        raise UserError(f"{place}: the module has no {function.name!r}") from None


def forget(own: str) -> None:
    """Let go of the module that was made for a file."""
    sys.modules.pop(own, None)


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
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:500]}" if text else type(error).__name__


def log_traceback(what: str, error: BaseException) -> None:
    """The user's own lines of it: ours, and the import machinery's, say nothing."""
    lines = traceback.format_exception(type(error), error, _users(error.__traceback__))
    log.error("%s\n%s", what, "".join(lines).rstrip())


def _users(trace: TracebackType | None) -> TracebackType | None:
    first = trace
    while first is not None:
        file = first.tb_frame.f_code.co_filename
        if not file.startswith("<frozen importlib") and Path(file).parent != _HERE:
            return first
        first = first.tb_next
    return trace
