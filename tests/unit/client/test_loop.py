"""The link of an event loop: its timer, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batchyard.client.loop import LoopLink
from batchyard.client.request import Request
from batchyard.client.session import Sessions, Settings
from batchyard.tests.striking import CutOff
from batchyard.transport.errors import BrokerLost

uvloop = pytest.importorskip("uvloop")  # not on Windows


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_timer_that_is_due_at_once_is_planned_once(
    new_loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop's handle of a call that is due within half a millisecond cannot say when."""
    loop = new_loop()
    link = LoopLink(Sessions(Settings(f"ipc://{tmp_path}", None, None, None, 1.0)), loop)
    monkeypatch.setattr(link.engine, "next_due_ns", time.monotonic_ns)
    link._plan_timer()
    first = link._timer
    link._plan_timer()
    assert link._timer is first is not None
    first.cancel()
    loop.close()


def test_a_callback_that_is_interrupted_in_its_mending_too_is_mended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.new_event_loop()
    link = LoopLink(Sessions(Settings(f"ipc://{tmp_path}", None, None, None, 1.0)), loop)
    mended: list[int] = []
    mend = link._mend

    def struck(*_: object) -> None:
        raise CutOff

    def seen() -> None:
        mended.append(1)
        mend()

    with monkeypatch.context() as patch:
        patch.setattr(link.engine, "expire", struck)
        patch.setattr(link, "_mend", struck)
        with pytest.raises(CutOff):
            link._tick()
    monkeypatch.setattr(link, "_mend", seen)
    link._act()
    assert mended == [1]
    link._act()
    assert mended == [1]
    loop.close()


def test_a_stream_ends_though_the_bell_of_its_end_was_struck(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    link = LoopLink(Sessions(Settings(f"ipc://{tmp_path}", None, None, None, 60.0)), loop)
    now_ns = time.monotonic_ns()
    request = Request("net", None, 1, 0, now_ns + 60_000_000_000, now_ns)

    async def read() -> None:
        async for _ in link.answers(request):
            pass

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        return task

    task = loop.run_until_complete(begin())
    stream = request.stream
    assert stream is not None
    bell = stream.bell

    def struck() -> None:
        stream.bell = bell
        raise CutOff

    stream.bell = struck
    request.outcome = BrokerLost("gone")
    with pytest.raises(CutOff):
        link._guarded(lambda: link._tell(request, request.waiter))
    with pytest.raises(BrokerLost):
        loop.run_until_complete(asyncio.wait_for(task, 10))
    link.end(BrokerLost("over"))
    loop.close()
