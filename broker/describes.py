"""Questions about models: answered at once, or when the model that was asked for is ready or failed."""

from __future__ import annotations

from collections.abc import Mapping

from ..transport import messages as m
from ..transport.errors import Code
from .events import ToClient
from .registry import Model

WAITING_MAX = 1024  # questions of one connection that wait for a model to load


class Describes:
    """Who waits for which model."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models
        self._waiting: dict[int, list[m.Describe]] = {}  # by connection

    def ask(self, conn: int, message: m.Describe) -> list[ToClient]:
        """What to answer now: nothing, when the model is still loading."""
        model = self._models.get(message.model)
        if message.model and (model is None or model.leaving):
            failed = m.Failed(message.request, Code.UNKNOWN_MODEL, self.unknown(message.model))
            return [ToClient(conn, failed)]
        if model is not None and model.state is m.ModelState.LOADING:
            waiting = self._waiting.setdefault(conn, [])
            waiting.append(message)
            if len(waiting) <= WAITING_MAX:
                return []
            given_up = waiting.pop(0)  # whoever asks so often no longer waits for the first answer
            text = f"{given_up.model!r} is loading, and {WAITING_MAX} later questions wait for a model"
            return [ToClient(conn, m.Failed(given_up.request, Code.OVERLOADED, text, 100_000_000))]
        models = [model] if model is not None else self._served()
        return [ToClient(conn, m.Described(message.request, [entry.info() for entry in models]))]

    def answer(self) -> list[ToClient]:
        """Some model's state has changed: what to answer to those who waited."""
        waiting, self._waiting = self._waiting, {}
        asked = ((conn, message) for conn, messages in waiting.items() for message in messages)
        return [action for conn, message in asked for action in self.ask(conn, message)]

    def forget(self, conn: int) -> None:
        """The connection is gone."""
        self._waiting.pop(conn, None)

    def _served(self) -> list[Model]:
        return [model for model in self._models.values() if not model.leaving]

    def unknown(self, name: str) -> str:
        """The sentence for a name that is no model's."""
        known = ", ".join(sorted(model.name for model in self._served())) or "none"
        return f"no model is called {name!r}; this yard has: {known}"
