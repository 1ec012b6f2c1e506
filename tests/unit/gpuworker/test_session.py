"""The worker's session over plain messages: what it keeps, and when it lets go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from batchyard.gpuworker.child import Session
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.segments import SegmentHandle


class Arenas:
    """A worker's Memory that only remembers."""

    def __init__(self) -> None:
        self.attached: list[int] = []

    def attach(self, number: int, handle: SegmentHandle, broker_pid: int) -> None:
        self.attached.append(number)

    def detach_all(self) -> None:
        self.attached.clear()


def greeted(arenas: Any) -> tuple[Session, list[Any]]:
    said: list[Any] = []

    def send(messages: list[Any], frames: Any = ()) -> None:
        said.extend(messages)

    session = Session("cpu", 4711, send, lambda key, load, beside: None, arenas)  # type: ignore[arg-type,return-value]
    session.register()
    session.handle(m.WorkerWelcome(7, 1, 42))
    session.handle(m.Attach(3, SegmentHandle("memfd", "5", 4096)))
    return session, said


def test_registering_twice_with_one_broker_loses_no_arena() -> None:
    arenas = Arenas()
    session, said = greeted(arenas)
    session.register()  # the old connection's end is noticed after the new one's greeting
    assert arenas.attached == [3]
    assert said == [m.Register(4711, ["cpu"])] * 2


def test_a_welcome_ends_what_an_earlier_broker_had_attached() -> None:
    arenas = Arenas()
    session, said = greeted(arenas)
    session.handle(m.Refused(Code.UNKNOWN_CONNECTION, "register first"))
    assert said == [m.Register(4711, ["cpu"])] * 2
    session.handle(m.WorkerWelcome(8, 1, 43))
    assert arenas.attached == []


def test_a_welcome_drops_the_bindings_into_what_is_unmapped() -> None:
    forgotten: list[int] = []
    model: Any = SimpleNamespace(
        name="net", inputs=[], outputs=[], batchable=True, alone_reason="", max_batch=4, placement="",
        recipe=SimpleNamespace(name="cpu"), warmup_ns={}, buckets=[], forget_bindings=lambda: forgotten.append(1),
    )  # fmt: skip
    arenas: Any = Arenas()
    started: list[Any] = []
    session = Session("cpu", 4711, lambda messages, frames=(): None, lambda *job: started.append(job), arenas)
    session.handle(m.Load("net", 1, __file__, 4, None, False))
    session.loaded(started[0][0], (model, None))
    session.register()
    assert not forgotten
    session.handle(m.WorkerWelcome(8, 1, 43))
    assert forgotten == [1]
