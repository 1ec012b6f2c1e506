"""The broker's ends of the wire, pretended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from batchyard.broker.clients import Clients
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.loop import Loop
from batchyard.broker.operators import Operators
from batchyard.broker.workers import Workers
from batchyard.transport.wire import Arrival, Descriptor, Listener, Peer, owned


class FakePeer(Peer):
    """Notes what it is sent; `fails` is raised instead."""

    def __init__(self, fails: Exception | None = None, credentials: tuple[int, int] | None = None, fd: int = -1) -> None:
        super().__init__(fd)
        self.fails = fails
        self.sent: list[list[bytes]] = []
        self.closed = False
        self.descriptor: int | None = None
        self.named = False
        self._credentials = credentials

    @property
    def credentials(self) -> tuple[int, int] | None:
        return self._credentials

    @property
    def chose_identity(self) -> bool:
        return self.named

    def send(self, parts: Sequence[Any]) -> None:
        if self.fails is not None:
            raise self.fails
        self.sent.append([bytes(part) for part in parts])

    def take_descriptor(self) -> Descriptor | None:
        descriptor, self.descriptor = self.descriptor, None
        return None if descriptor is None else Descriptor(owned(descriptor))

    def close(self) -> None:
        self.closed = self.ended = True


class FakeListener(Listener):
    """Whose peers the test makes; `arrivals` is what is read next."""

    def __init__(self) -> None:
        self.unwritten = {}
        self.strangers = {}
        self.arrivals: list[Arrival] = []
        self.admitted: list[Peer] = []
        self.dismissals: Callable[[int, int, int], int] = lambda now_ns, within_ns, most: 0

    def receive(self, messages_max: int, bytes_max: int) -> list[Arrival]:
        found, self.arrivals = self.arrivals[:messages_max], self.arrivals[messages_max:]
        return found

    @property
    def has_more(self) -> bool:  # type: ignore[override]
        return bool(self.arrivals)

    def flush(self) -> None:
        pass

    def admit(self, peer: Peer, descriptors_max: int = 0) -> None:
        self.admitted.append(peer)

    def dismiss_strangers(self, now_ns: int, within_ns: int, strangers_max: int) -> int:
        return self.dismissals(now_ns, within_ns, strangers_max)

    def close(self) -> None:
        pass


class Arenas:
    """Whose segments nobody opens."""

    def handle(self, arena: int) -> None:
        return None


class Broker:
    """The broker's loop with its sides and its core; what its peers say is put into `said` and `reported`."""

    def __init__(
        self, arenas: Any = None, descriptors_max: int = 1000, secret: str = "", **model: Any
    ) -> None:
        config = YardConfig({"net": ModelConfig("net", Path("/net.onnx"), **model)})
        nothing: Any = None
        self.core = core = Core(config, 1, 2)
        self.said, self.reported, self.asked = FakeListener(), FakeListener(), FakeListener()
        self.clients = Clients(
            self.said, nothing, arenas, core.models, core.counters, core.epoch, 8, descriptors_max
        )
        self.workers = Workers(self.reported, arenas, core.models, core.counters, secret)
        self.operators = Operators(self.asked, core.models, core.counters, config)
        self.loop = Loop(core, self.clients, self.workers, self.operators, arenas, lambda timeout_ms: 0)

    def hear(self, peer: Peer, payload: bytes | None, *frames: bytes) -> None:
        """A client says this; None: its connection ends."""
        self.said.arrivals.append((peer, None if payload is None else [payload, *frames]))
        self.loop.round(1)

    def hear_worker(self, peer: Peer, payload: bytes | None) -> None:
        """The same of a worker."""
        self.reported.arrivals.append((peer, None if payload is None else [payload]))
        self.loop.round(1)

    @property
    def refused(self) -> dict[str, int]:
        return dict(self.core.counters.snapshot()["refused"])
