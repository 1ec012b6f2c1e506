"""The link of an event loop: its timer, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batchyard.client.loop import LoopLink
from batchyard.client.session import Sessions, Settings

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
