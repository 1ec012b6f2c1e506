"""Requests that come: admitted into their lanes, or refused at once.

What a client says of its request is checked here, before anything else in the core looks at it. Requests
that came in columns (messages.More) are checked together. Where that finds fault, or cannot be done, each is
checked by itself: every one gets the answer that it would have got alone.

Part of the core: pure, with the time as an argument.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..transport import messages as m
from ..transport.deadlines import Deadlines
from ..transport.errors import BatchyardError, Code, Overloaded
from . import events as e
from .admission import Admission
from .books import Books
from .models import Model, served
from .policy import Policy
from .requests import Part, Request, refusal
from .sharing import key_of

STOPPED_RETRY_S = 1.0


class Arrivals:
    """`stopped`: nothing more is admitted."""

    def __init__(
        self,
        models: Mapping[str, Model],
        admission: Admission,
        policy: Policy,
        books: Books,
        deadlines: Deadlines[Request],
    ) -> None:
        self.stopped = False
        self._models = models
        self._admission = admission
        self._policy = policy
        self._books = books
        self._deadlines = deadlines

    def submitted(self, event: e.Submitted, now_ns: int) -> None:
        if event.message.more is None:
            self._alone(event, now_ns)
        elif not self._together(event, now_ns):
            for message in event.message.apart():
                self._alone(e.Submitted(event.conn, event.arena, message, b"", event.shared), now_ns)

    def _together(self, event: e.Submitted, now_ns: int) -> bool:
        """Admit requests that are like one another, with one look at all of them. False, and nothing has
        changed, where they have to be looked at one by one."""
        message, more = event.message, event.message.more
        assert more is not None
        connection = self._books.connections.get(event.conn)
        model = self._models.get(message.model)
        if connection is None or model is None or model.leaving or not model.outputs or self.stopped:
            return False
        numbers = [message.request, *more.requests]
        left = [message.deadline_ns, *more.deadlines_ns]
        count = len(numbers)
        if len(set(numbers)) < count or not connection.requests.keys().isdisjoint(numbers):
            return False
        least_ns = min(left)
        if not least_ns and any(left):  # 0 is no deadline, the least of others is one
            return False
        try:
            rows, nbytes = model.check(message, self._books.arenas[event.arena].nbytes)
            model.check_more(message, more, self._books.arenas[event.arena].nbytes)
            self._admission.check(
                connection.account, model, rows * count, nbytes * count, message.priority, least_ns, now_ns
            )
            lane = model.lane(message.inputs, event.shared)
        except BatchyardError:
            return False
        width, offsets = message.width, more.offsets
        places: list[int] | None = None  # of the first: the message's own
        parts = []
        for index, (number, left_ns) in enumerate(zip(numbers, left, strict=True)):
            if index:
                places = offsets[(index - 1) * width : index * width]
            deadline_ns = now_ns + left_ns if left_ns else 0
            virtual_ns = self._policy.place_ns(message.priority, deadline_ns, now_ns)
            request = Request(
                event.conn, message, event.arena, model, lane, rows, nbytes, now_ns, virtual_ns, number,
                left_ns, places,
            )  # fmt: skip
            if deadline_ns:
                self._deadlines.add(deadline_ns, request)
            parts.append(Part(request, 0, rows))
        self._books.admit_together(connection, lane, parts)
        return True

    def _alone(self, event: e.Submitted, now_ns: int) -> None:
        message = event.message
        connection = self._books.connections.get(event.conn)
        if connection is None:
            return
        known = connection.requests.get(message.request)
        if known is not None:
            if not known.repeats(message):  # else the one outcome answers both
                self._books.counters.refuse("duplicate")
                text = f"request {message.request} is already under way on this connection"
                self._books.actions.append(e.ToClient(event.conn, m.Refused(Code.INVALID_REQUEST, text)))
            return
        name = message.model
        model = self._models.get(name)
        key = None
        try:
            if self.stopped:
                raise stopped()
            if model is None or model.leaving:
                model = served(self._models, name)
            if not model.outputs:
                raise Overloaded(f"{name!r} is not loaded yet", 0.1)
            rows, nbytes = model.check(message, self._books.arenas[event.arena].nbytes)
            if event.digest and not model.streams:
                key = key_of(model.revision, event.digest, message.inputs)
                if self._books.answered(event.conn, message, model, key, now_ns):
                    return
            self._admission.check(
                connection.account, model, rows, nbytes, message.priority, message.deadline_ns, now_ns
            )
            lane = model.lane(message.inputs, event.shared)
        except BatchyardError as error:
            # An unknown name is a client's text: counting each would let the counters grow without bound.
            self._books.counters.turned_away(name if name in self._models else "", message.priority, error)
            self._books.actions.append(e.ToClient(event.conn, refusal(message, error)))
            return
        deadline_ns = now_ns + message.deadline_ns if message.deadline_ns else 0
        virtual_ns = self._policy.place_ns(message.priority, deadline_ns, now_ns)
        request = Request(
            event.conn, message, event.arena, model, lane, rows, nbytes, now_ns, virtual_ns
        )
        if deadline_ns:
            self._deadlines.add(deadline_ns, request)
        self._books.admit(connection, request)
        if key is not None and model.sharing.shares and rows <= model.max_batch:
            request.key = key
            run = model.sharing.run(key)
            if run is not None:
                self._books.join(request, run)
                return
            model.sharing.begin(request)
        self._books.queue(request)


def stopped() -> Overloaded:
    return Overloaded("this yard is being stopped: send the request again when a yard is up", STOPPED_RETRY_S)
