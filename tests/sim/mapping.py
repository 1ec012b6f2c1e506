"""A user's `map`: the real Window on a line of its own, driven as map.results drives it.

The real one waits in the user's thread; here everything that comes lets it go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from batchyard.client.engine import GRACE_NS
from batchyard.client.map import SEND_SHARE, Window
from batchyard.client.packing import packer_of
from batchyard.client.request import Request
from batchyard.client.signature import Signature
from batchyard.transport import errors

from .clock import MS
from .models import ALONE_ROWS, INPUTS, MAX_BATCH, make_inputs
from .tickets import Ticket

if TYPE_CHECKING:
    from .client import SimClient


class SimMap:
    """From the user's call to the last result, or the first error."""

    def __init__(self, client: SimClient, model: str) -> None:
        rng = client.world.rng
        self.model = model
        self._client = client
        self._patience_ns = rng.choice((50, 400, 1500)) * MS
        self._tickets: deque[Ticket] = deque()  # in order, with those of which nothing was taken out
        self._line = client.line()
        self._line.user = self
        self._begun = False
        self._size = rng.choice((1, 3, 8, 12))
        self._window = Window(self._line.engine, self._inputs(rng.randrange(1, 14)), self._size, self._request)
        now_ns = client.world.clock.now_ns
        self._question = Request(model, None, 0, 0, now_ns + self._patience_ns, now_ns)
        self._line.ask(self._question)

    def _inputs(self, number_of: int) -> Iterator[Any]:
        client, rng = self._client, self._client.world.rng
        for _ in range(number_of):
            does = client.world.what_an_item_does(self.model)
            number = client.world.next_number()
            rows = ALONE_ROWS if self.model == "alone" else rng.choice((1, 1, 1, 2, MAX_BATCH[self.model]))
            inputs = make_inputs(self.model, number, rows, does, rng.randrange(1000), 4)
            ticket = Ticket(number, self.model, does, inputs)
            ticket.driver = self._line
            client.asked(ticket, self._patience_ns)
            self._tickets.append(ticket)
            yield {spec.name: array for spec, array in zip(INPUTS[self.model], inputs, strict=True)}
            for array in inputs:
                array[...] = -1  # the caller's own again, when the next is asked for

    def _request(self, given: Any) -> Request:
        now_ns = self._client.world.clock.now_ns
        until_ns = now_ns + self._patience_ns
        request = Request(self.model, given, 2, until_ns, until_ns + GRACE_NS, now_ns)
        first = given[INPUTS[self.model][0].name]
        numbers = set((first[0] if self.model == "turned" else first[:, 0]).tolist())
        for ticket in self._tickets:  # several, if it is packed
            if ticket.number in numbers:
                ticket.request, ticket.inputs = request, []
        return request

    def go_on(self) -> None:
        """One round of results(): fill, and take out what has come."""
        client, window = self._client, self._window
        if self not in client.maps:
            return
        try:
            if not self._begun:
                outcome = self._question.take()
                if outcome is None:
                    return
                self._begun = True
                if isinstance(outcome, Exception):
                    raise outcome
                (info,) = outcome  # type: ignore[misc]
                Signature(info)
                self._window.packer = packer_of(info, self._size // SEND_SHARE)
            while True:
                has_room = window.wants_filling
                while has_room:
                    has_room = window.fill(client.world.clock.now_ns)
                if window.waits:
                    return
                if window.is_over:
                    self._end(None)
                    return
                reply = window.take(client.world.clock.now_ns)
                if reply is not None:
                    client.check(self._tickets.popleft(), reply)
                del reply
        except errors.BatchyardError as error:
            self._end(error)

    def _end(self, error: errors.BatchyardError | None) -> None:
        """The first error is the user's; the rest is cancelled, and the line is given back."""
        client = self._client
        client.maps.remove(self)
        if error is not None and self._tickets:
            client.check(self._tickets.popleft(), error)
        for ticket in self._tickets:
            client.ended(ticket, "cancelled")
        self._window.leave()
        self._line.act_soon()
        client.leave(self._line)
