"""Requests that lost their broker: what each of them asked, and when it may be asked again.

A request that had no outcome when its connection ended is submitted anew on the next one, unless its
model is not idempotent. The lost session's memory is used no more, because a worker of the lost
broker may still write into the output slots; but nobody writes into the input slots, and nobody frees
them, so the inputs are copied from there into the new session's memory.

Pure: no socket, no clock, no thread. The I/O thread and the simulator drive one `Backlog` each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..transport import dtypes
from ..transport.deadlines import Deadlines
from ..transport.errors import ArenaExhausted, BatchyardError, BrokerLost, DeadlineExceeded, UnknownConnection
from .channel import Channel, Pending
from .memory import SlotMemory
from .signature import Array, Signature

Ended = tuple[Any, Exception]  # somebody who waits no longer, and why


class MessageRefused(BrokerLost):
    """The broker takes our message for none. The next one would, too: nothing of it is sent again."""


def may_ask_again(error: BrokerLost, signature: Signature | None, alone: bool = False) -> bool:
    """Whether a request that ended with `error` may be submitted once more.

    signature: its model's; None: nothing of it has been sent yet.
    alone: nothing but it was under way, so a broker that does not know the connection has run nothing.
    """
    if isinstance(error, MessageRefused):
        return False
    return signature is None or signature.idempotent or (alone and isinstance(error, UnknownConnection))


def not_again(error: BrokerLost, signature: Signature | None) -> BrokerLost:
    """What a request that may not be submitted once more ends with."""
    if isinstance(error, MessageRefused) or signature is None:
        return error
    return BrokerLost(f"{error}; {signature.name!r} is not idempotent, so the request is not sent again")


def nobody_came(lost: object, waited_s: float, why: object = "") -> BrokerLost:
    """What a request ends with whose time was up before there was another broker."""
    return BrokerLost(f"{lost}, and no other came within {waited_s:.3g} s{f' ({why})' if why else ''}")


def asked(pending: Pending, memory: SlotMemory | None) -> dict[str, Array]:
    """The inputs of a lost connection's request, by name, as they were when it was submitted.

    memory: that connection's. What was copied there is read there, since the caller may have changed
    his array; what was not copied is the caller's array itself, which keeps its slot.
    """
    assert pending.signature is not None
    tensors = pending.message.inputs
    arrays: Sequence[Array | None] = pending.arrays or [None] * len(tensors)
    copied = set(pending.inputs)
    found = {}
    for want, tensor, array in zip(pending.signature.inputs, tensors, arrays, strict=True):
        if memory is not None and (array is None or tensor.offset in copied):
            array = memory.view(tensor.offset, dtypes.BY_CODE[tensor.dtype].numpy, tuple(tensor.shape))
        assert array is not None
        found[want.spec.name] = array
    return found


class Lost:
    """A request without a broker. `due_ns`: when its caller's patience ends; `waiter`: who waits for it,
    None when nobody does any more."""

    __slots__ = ("due_ns", "how", "inputs", "model", "priority", "since_ns", "span", "waiter")

    def __init__(
        self, pending: Pending, memory: SlotMemory | None, error: BrokerLost, due_ns: int, now_ns: int
    ) -> None:
        self.inputs = asked(pending, memory)
        self.model: str = pending.message.model
        self.priority: int = pending.message.priority
        self.how = str(error)  # not the error, whose traceback keeps the lost session
        self.due_ns = due_ns
        self.since_ns = now_ns
        self.waiter: Any = pending.waiter
        self.span = pending.span

    def submit(self, channel: Channel, signature: Signature, now_ns: int) -> tuple[Pending, Sequence[Any]]:
        """Ask again, with the time that is left. Raises ArenaExhausted, or InvalidRequest when the next
        broker's model of this name is another."""
        left_ns = max(1, self.due_ns - now_ns)
        pending, frames = channel.submit(signature, self.inputs, self.priority, left_ns, 0.0)
        pending.waiter = self.waiter
        pending.span = self.span
        return pending, frames

    def end(self) -> Any:
        """It waits no longer: let go of the lost memory. Who waited."""
        waiter, self.waiter = self.waiter, None
        self.inputs = {}
        return waiter

    def too_late(self, now_ns: int, has_broker: bool, why: object = "") -> Exception:
        """What it ends with when its time is up."""
        if has_broker:
            return DeadlineExceeded(f"the deadline passed before {self.model!r} was ready again")
        return nobody_came(self.how, (now_ns - self.since_ns) / 1e9, why)


class Backlog:
    """Requests without a broker, by model in the order in which they came, until each is asked again,
    its time is up, or nobody wants it any more."""

    def __init__(self, is_wanted: Callable[[Any], bool]) -> None:
        """`is_wanted` tells of a waiter whether it still waits."""
        self._is_wanted = is_wanted
        self._waiting: dict[str, deque[Lost]] = {}
        self._dues: Deadlines[Lost] = Deadlines(lambda lost: not self._waits(lost))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def _waits(self, lost: Lost) -> bool:
        return lost.waiter is not None and self._is_wanted(lost.waiter)

    @property
    def models(self) -> list[str]:
        """Models that are waited for."""
        return list(self._waiting)

    def add(
        self, pending: Pending, memory: SlotMemory | None, error: BrokerLost, due_ns: int, now_ns: int
    ) -> list[Ended]:
        """A request of a lost connection; says so when it can't be asked again."""
        if not may_ask_again(error, pending.signature):
            return [(pending.waiter, not_again(error, pending.signature))]
        if self._is_wanted(pending.waiter):
            lost = Lost(pending, memory, error, due_ns, now_ns)
            self._waiting.setdefault(lost.model, deque()).append(lost)
            self._dues.add(due_ns, lost)
        return []

    def ask_again(
        self, channel: Channel, signature: Signature, now_ns: int
    ) -> tuple[list[tuple[Pending, Sequence[Any], int]], list[Ended]]:
        """Submit a model's requests as far as there is room for them.

        ([request, frames, when its caller's patience ends], who can't be asked again). What there is no
        room for waits, as long as something is under way that will give room back.
        """
        submitted: list[tuple[Pending, Sequence[Any], int]] = []
        ended: list[Ended] = []
        waiting = self._waiting.get(signature.name)
        while waiting:
            lost = waiting[0]
            if self._waits(lost):
                try:
                    submitted.append((*lost.submit(channel, signature, now_ns), lost.due_ns))
                except BatchyardError as error:
                    if isinstance(error, ArenaExhausted) and channel.pending:
                        return submitted, ended
                    ended.append((lost.waiter, error))
            lost.end()
            waiting.popleft()
        self._waiting.pop(signature.name, None)
        return submitted, ended

    def next_ns(self) -> int | None:
        """When `expire` is due; None: never."""
        return self._dues.next_ns()

    def expire(self, now_ns: int, has_broker: bool, why: object = "") -> list[Ended]:
        """Whose time is up. `why`: what the broker that did come said, which did not let us in."""
        ended = []
        for lost in list(self._dues.due(now_ns)):
            error = lost.too_late(now_ns, has_broker, why)
            ended.append((lost.end(), error))
        for model, waiting in list(self._waiting.items()):
            if not any(map(self._waits, waiting)):
                del self._waiting[model]
                for lost in waiting:
                    lost.end()
        return ended

    def end(self, error: Exception, model: str = "") -> list[Ended]:
        """Give up on a model ("": on all of them)."""
        ended: list[Ended] = []
        for name in [model] if model else self.models:
            for lost in self._waiting.pop(name, ()):
                if self._waits(lost):
                    ended.append((lost.waiter, error))
                lost.end()
        return ended
