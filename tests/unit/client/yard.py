"""What the tests of the client's engine share: a model, a session, and the broker's side of a connection."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
from batchyard.client.engine import GRACE_NS, Engine
from batchyard.client.memory import SlotMemory
from batchyard.client.request import Request
from batchyard.client.signature import Signature
from batchyard.transport import messages as m
from batchyard.transport.errors import BrokerLost
from batchyard.transport.tensors import TensorSpec

MS = 1_000_000
CONNECT_NS = 5_000 * MS
RECEIPT = m.BatchReceipt(3, 10, 20, 30, 40, 1, "cpu", 1)
GONE = BrokerLost("the broker went away")
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def info(outputs: list[TensorSpec] | None = None, **changed: Any) -> m.ModelInfo:
    """net: x: float32[n, 4] -> y: float32[n, 3]."""
    fields = {
        "name": "net",
        "state": m.ModelState.READY,
        "reason": "",
        "revision": 1,
        "inputs": [TensorSpec("x", 1, ["n", 4])],
        "outputs": outputs or [TensorSpec("y", 1, ["n", 3])],
        "batchable": True,
        "alone_reason": "",
        "max_batch": 8,
        "workers": [],
    } | changed
    return m.ModelInfo(**fields)


class Session:
    """As a client's; it knows the model "net" unless `knows` is None."""

    def __init__(self, memory: SlotMemory | None, knows: m.ModelInfo | None) -> None:
        self.memory = memory
        self.signatures: dict[str, Signature] = {}
        self.lost = False
        if knows is not None:
            self.signatures[knows.name] = Signature(knows, self.signatures)

    @property
    def used(self) -> int:
        assert self.memory is not None
        return self.memory.used_bytes


class Side:
    """An engine, its sessions, and what a broker would answer."""

    def __init__(self, arena: int | None = 1 << 20, knows: m.ModelInfo | None = None) -> None:
        self.now_ns = 1_000 * MS
        self.bells = 0
        self.engine = Engine(count(1), "ipc:///yard", CONNECT_NS, self._ring)
        self.sessions: list[Session] = []
        self.arena = arena
        self.knows = knows or info()

    def _ring(self) -> None:
        self.bells += 1

    @property
    def session(self) -> Session:
        return self.sessions[-1]

    def connect(self, *, knows: bool = True) -> Session:
        memory = SlotMemory(self.arena) if self.arena is not None else None
        self.sessions.append(Session(memory, self.knows if knows else None))
        self.engine.connected(self.session, self.now_ns)
        return self.session

    def request(self, given: Any = X, timeout_ns: int = 500 * MS, model: str = "net") -> Request:
        now_ns = self.now_ns
        request = Request(model, given, 1, now_ns + timeout_ns, now_ns + timeout_ns + GRACE_NS, now_ns)
        request.waiter = self
        return request

    def submit(self, given: Any = X, timeout_ns: int = 500 * MS, model: str = "net") -> Request:
        request = self.request(given, timeout_ns, model)
        self.engine.submit(request, self.now_ns)
        return request

    def ask(self, model: str = "net") -> Request:
        question = self.request(None, model=model)
        self.engine.ask(question, self.now_ns)
        return question

    def sent(self) -> list[Any]:
        """Messages that leave now; of requests in columns, one for each."""
        left = [message for messages, _, _ in self.engine.take_envelopes() for message in messages]
        return [each for one in left for each in (one.apart() if isinstance(one, m.Submit) else [one])]

    def hear(self, *messages: Any, frames: Any = ()) -> list[Request]:
        """The broker says so; what that settles."""
        self.engine.received(messages, frames, self.now_ns)
        return self.engine.take_outcomes()

    def complete(self, *requests: Request) -> list[Request]:
        numbers = [request.message.request for request in requests]
        return self.hear(m.Completed(numbers, [5] * len(numbers), RECEIPT))

    def write(self, request: Request, y: np.ndarray[Any, Any]) -> None:
        """As a worker would, into the request's output slot."""
        assert self.session.memory is not None
        (slot,) = request.message.outputs
        self.session.memory.segment.buffer[slot.offset : slot.offset + slot.nbytes] = y.tobytes()

    def read(self, request: Request, place: int = 0) -> np.ndarray[Any, Any]:
        """As a worker would, from the request's input slot."""
        assert self.session.memory is not None
        tensor = request.message.inputs[place]
        return self.session.memory.view(tensor.offset, np.dtype(np.float32), tuple(tensor.shape))

    def lose(self, error: BrokerLost = GONE) -> None:
        self.engine.lost(error, self.now_ns)

    def wait(self, for_ns: int) -> None:
        """Time passes, and the engine is called when it is due."""
        until_ns = self.now_ns + for_ns
        while (due_ns := self.engine.next_due_ns()) is not None and due_ns <= until_ns:
            self.now_ns = max(due_ns, self.now_ns + 1)
            self.engine.expire(self.now_ns)
        self.now_ns = until_ns
        self.engine.expire(until_ns)

    def close(self) -> None:
        for session in self.sessions:
            if session.memory is not None:
                session.memory.close()
