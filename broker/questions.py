"""Questions about models: answered at once, or when the model in question is ready or has failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from msgspec.structs import replace

from ..transport import messages as m
from ..transport.errors import Code
from .events import ToClient
from .models import Model, unknown

WAITING_MAX = 1024  # questions of one connection that wait for a model to load
ANSWERS_MAX = 256  # in one turn, to those that waited: some 10 us each
LEAVING = "this yard is being stopped, and will soon refuse requests"


class Questions:
    """Connections that wait for a model. `leaving`: models that are served are described with LEAVING as
    their reason."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models
        self.leaving = False
        self._waiting: dict[int, deque[m.Describe]] = {}  # by connection
        self.again: dict[int, int] = {}  # connections, and how many of their questions may have an answer now

    def ask(self, conn: int, message: m.Describe) -> list[ToClient]:
        """The answers that can be given now: none while the model is loading."""
        model = self._models.get(message.model)
        if message.model and (model is None or model.leaving):
            failed = m.Failed(message.request, Code.UNKNOWN_MODEL, unknown(self._models, message.model))
            return [ToClient(conn, failed, is_of_question=True)]
        if model is not None and model.state is m.ModelState.LOADING:
            waiting = self._waiting.setdefault(conn, deque())
            waiting.append(message)
            if len(waiting) <= WAITING_MAX:
                return []
            given_up = waiting.popleft()  # a client that asks so often no longer waits for the first answer
            text = f"{given_up.model!r} is loading, and {WAITING_MAX} later questions wait for a model"
            failed = m.Failed(given_up.request, Code.OVERLOADED, text, 100_000_000)
            return [ToClient(conn, failed, is_of_question=True)]
        # A list of a thousand models' metadata would not fit into a message.
        infos = [model.info()] if model is not None else [entry.brief() for entry in self._served()]
        if self.leaving:
            infos = [info if info.reason else replace(info, reason=LEAVING) for info in infos]
        return [ToClient(conn, m.Described(message.request, infos), is_of_question=True)]

    def answer(self) -> list[ToClient]:
        """Some model's state has changed: the answers to waiting questions, or to ANSWERS_MAX of them; then
        `again` is not empty."""
        self.again = {conn: len(messages) for conn, messages in self._waiting.items()}
        return self.some()

    def some(self) -> list[ToClient]:
        """Some of the answers that are due."""
        room = ANSWERS_MAX
        actions: list[ToClient] = []
        for conn, left in list(self.again.items()):
            waiting = self._waiting[conn]
            for _ in range(min(left, room)):
                actions += self.ask(conn, waiting.popleft())
            if left > room:
                self.again[conn] = left - room
                return actions
            room -= left
            del self.again[conn]
            if not waiting:
                del self._waiting[conn]
        return actions

    def forget(self, conn: int) -> None:
        self._waiting.pop(conn, None)
        self.again.pop(conn, None)

    def _served(self) -> list[Model]:
        return [model for model in self._models.values() if not model.leaving]
