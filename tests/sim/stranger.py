"""Somebody who speaks nonsense: bytes that are no message, handles that point elsewhere, numbers that
nobody knows. Whatever a stranger says, the yard goes on, and nobody else is hurt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.tensors import Slot, Tensor

from .clock import MS
from .models import INT64
from .network import Link

if TYPE_CHECKING:
    from .world import World

ARENA_BYTES = 4096
MESSAGES_MAX = 12


class Stranger:
    """One connection, to the clients' or the workers' side. It never reads, and leaves without a word."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self._numbers = 0
        broker = world.broker
        assert broker is not None
        self._works = world.rng.random() < 0.2
        self._link = Link(world, broker.workers if self._works else broker.clients, self)
        self._has_arena = world.rng.random() < 0.7
        if not self._works and world.rng.random() < 0.8:
            segment = world.new_segment(ARENA_BYTES) if self._has_arena else None
            self._say([m.Hello(segment.handle if segment is not None else None, name)])
        for _ in range(world.rng.randrange(1, MESSAGES_MAX)):
            world.clock.after(world.rng.randrange(40 * MS), self._talk)
        world.clock.after(world.rng.randrange(60 * MS), self._link.reset)

    def receive(self, link: Link, payload: bytes, frames: Sequence[Any]) -> None:
        link.unread -= 1

    def link_ended(self, link: Link) -> None:
        pass

    def _say(self, messages: Sequence[Any], frames: Sequence[Any] = ()) -> None:
        self._link.to_broker(codec.encode(messages), frames)

    def _talk(self) -> None:
        rng = self.world.rng
        kind = rng.randrange(5)
        if kind == 0:
            self._link.to_broker(rng.randbytes(rng.randrange(40)))
        elif kind == 1:
            payload = codec.encode([self._submit(), m.Cancel([1, 99])])
            self._link.to_broker(payload[: rng.randrange(len(payload))])
        elif kind == 2:
            self._link.to_broker(b"\x92" + bytes([rng.randrange(2, 100)]) + b"\x90")  # another version
        elif self._works:
            self._say([m.Done(101, rng.randrange(9), 1, 1, 1, 0, []), m.BatchFailed(101, 1, 8, "no")])
        elif not self._has_arena:
            self._numbers += 1
            name = rng.choice([*self.world.config.models, "no"])
            submit = m.Submit(self._numbers, name, 0, 0, [Tensor(INT64, [1, 4], 0, 1)], [])
            last = max(1, self._numbers - rng.randrange(3))  # of a request that may be under way
            self._say([submit, m.Describe(last, "nothing")], [bytes(32)])
        elif kind == 3:
            self._say([self._submit() for _ in range(rng.randrange(1, 4))])
        else:
            self._say([m.Cancel([rng.randrange(9)]), m.Describe(1_000, "nothing"), self._submit()])

    def _submit(self) -> m.Submit:
        rng = self.world.rng
        self._numbers += 1
        rows = rng.choice((0, 1, 2, 5, 1 << 40))
        offset = rng.choice((0, 512, ARENA_BYTES - 32, ARENA_BYTES, 1 << 45))
        inputs = [Tensor(rng.choice((INT64, INT64, 1, 99)), [rows, rng.choice((4, 4, 3))], offset)]
        if rng.random() < 0.5:
            inputs.append(Tensor(INT64, [rows, 2], rng.choice((1024, offset))))
        outputs = [Slot(rng.choice((2048, offset)), rows * 16)] if rng.random() < 0.5 else []
        model = rng.choice([*self.world.config.models, "no"])
        return m.Submit(self._numbers, model, 0, 0, inputs, outputs, self._more(len(inputs) + len(outputs)))

    def _more(self, width: int) -> m.More | None:
        """Further requests in columns, whose columns may be of the wrong length."""
        rng = self.world.rng
        count = rng.randrange(-2, 3)
        if count < 0:
            return None
        first = self._numbers
        self._numbers += count
        offsets = rng.choices((0, 2048, ARENA_BYTES - 32, 1 << 45), k=count * width + rng.choice((0, 0, 1)))
        return m.More([first + 1 + index for index in range(count)], rng.choices((0, 10**9), k=count), offsets)
