"""What a call says besides its model and its inputs: checked, and made into a Request.

The same options on every verb of every client: priority, deadline, timeout, traceparent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import Any

import numpy as np

from ..transport.dtypes import CODE_BY_NUMPY
from ..transport.errors import ArenaExhausted, InvalidRequest, shown
from ..transport.messages import Priority
from ..transport.tensors import nbytes_of
from . import tracing
from .engine import GRACE_NS
from .request import Request
from .session import SECONDS_MAX, Session, check_name
from .signature import Array

TIMEOUT_S = 30.0

_modules = sys.modules


class Options:
    """The options that many requests share."""

    def __init__(self, model: str, priority: int | str, deadline: float | None, timeout: float) -> None:
        self.model = model
        self.priority = priority_of(priority)
        self.deadline_ns = deadline_ns_of(deadline, timeout)
        self.patience_ns = min(self.deadline_ns, int(timeout * 1e9)) + GRACE_NS
        self.since_ns: int | None = None  # when the time of requests begins; None: when they are made
        check_name(model)

    def request(self, inputs: Any) -> Request:
        """A request, whose time begins now."""
        now_ns = time.monotonic_ns() if self.since_ns is None else self.since_ns
        return Request(
            self.model, inputs, self.priority, now_ns + self.deadline_ns, now_ns + self.patience_ns, now_ns
        )


def request_of(
    model: str,
    inputs: Any,
    priority: int | str = Priority.NORMAL,
    deadline: float | None = None,
    timeout: float = TIMEOUT_S,
    traceparent: str | None = None,
) -> Request:
    """The request of a call, whose time begins now. Raises InvalidRequest for options that can't be."""
    if type(priority) is Priority and deadline is None and type(timeout) is float and 0.0 < timeout < 1e9:
        deadline_ns = patience_ns = int(timeout * 1e9)  # the quick way
    else:
        priority = priority_of(priority)
        deadline_ns = deadline_ns_of(deadline, timeout)
        patience_ns = min(deadline_ns, int(timeout * 1e9))
    if type(model) is not str or not model or not model.isascii():
        check_name(model)
    now_ns = time.monotonic_ns()
    request = Request(model, inputs, priority, now_ns + deadline_ns, now_ns + patience_ns + GRACE_NS, now_ns)
    request.traceparent = traceparent
    if traceparent is not None or "opentelemetry.trace" in _modules:
        request.span = tracing.begin(model, priority, traceparent)
    return request


def priority_of(priority: int | str) -> int:
    """A Priority, its number, or its name in any case. Raises InvalidRequest."""
    if type(priority) is Priority:
        return priority
    if isinstance(priority, str):
        found = Priority.__members__.get(priority.upper())
        if found is not None:
            return found
    elif priority in (0, 1, 2, 3):
        return int(priority)
    names = ", ".join(Priority.__members__)
    raise InvalidRequest(f"priority is one of {names}, not {shown(priority)}")


def deadline_ns_of(deadline: float | None, timeout: float) -> int:
    """Time that the broker has. Raises InvalidRequest for a duration that is not above zero."""
    if deadline is None and type(timeout) is float and 0.0 < timeout <= SECONDS_MAX:
        return int(timeout * 1e9)
    check_seconds("timeout", timeout)
    if deadline is None:
        return int(timeout * 1e9)
    check_seconds("deadline", deadline)
    return int(deadline * 1e9)


def check_seconds(what: str, seconds: object) -> None:
    """Raises InvalidRequest unless it is a duration."""
    if not isinstance(seconds, int | float) or not 0 < seconds <= SECONDS_MAX:
        raise InvalidRequest(
            f"{what} is a number of seconds above 0 and up to {SECONDS_MAX:,.0f}, not {shown(seconds)}"
        )


def window_of(window: int) -> int:
    """How many requests a map has under way at once. Raises InvalidRequest."""
    if not isinstance(window, int) or window < 1:
        raise InvalidRequest(
            f"window is how many requests are under way at once: 1 or more, not {shown(window)}"
        )
    return window


def source_of(inputs: Iterable[Any]) -> Iterator[Any]:
    """An iterator over the inputs of a map. Raises InvalidRequest."""
    try:
        return iter(inputs)
    except TypeError:
        found = shown(inputs)
        raise InvalidRequest(f"map goes over a list of inputs, or another iterable, not {found}") from None


def empty_in(session: Session | None, shape: int | Sequence[int], dtype: Any) -> Array:
    """`empty`, in a session's memory; without one, an ordinary array."""
    try:
        dims = tuple(map(index, shape)) if isinstance(shape, Iterable) else (index(shape),)
    except TypeError:
        found = shown(shape)
        raise InvalidRequest(f"a shape is a whole number or several, such as (8, 3), not {found}") from None
    try:
        element = np.dtype(dtype)
        code = CODE_BY_NUMPY[element]
    except (TypeError, KeyError):
        raise InvalidRequest(f"a tensor's dtype is one such as np.float32, not {shown(dtype)}") from None
    nbytes = nbytes_of(code, dims)
    if session is None or session.memory is None:
        return np.empty(dims, element)
    try:
        offset = session.memory.alloc(nbytes)
    except ArenaExhausted:
        session.recover_slots()
        offset = session.memory.alloc(nbytes)
    return session.memory.array(offset, element, dims)
