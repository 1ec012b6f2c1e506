"""The control of the hour's campaign: what it must see, or a stopped client is called late."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from batchyard.tests.campaigns.reliability import hour_judge
from batchyard.tests.campaigns.reliability.hour_judge import CONTROL_S, Control

MS = 1_000_000


@pytest.mark.parametrize("where", ["asleep", "awake"])
def test_the_control_sees_a_stop_of_its_process_wherever_it_is(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """It was blind between its waking and its next sleep: 12 of 150 stops of 60 ms."""
    clock = SimpleNamespace(now_ns=1_000 * MS)
    monkeypatch.setattr(hour_judge, "time", SimpleNamespace(monotonic_ns=lambda: clock.now_ns))
    control = Control()
    for round_ in range(20):
        control._sleeps()
        clock.now_ns += int(CONTROL_S * 1e9) + (900 * MS if (round_, where) == (10, "asleep") else 0)
        control._woken()
        clock.now_ns += 900 * MS if (round_, where) == (10, "awake") else MS // 10
    assert 899 * MS <= control.stalled_ns(1_000 * MS, clock.now_ns) <= 901 * MS
    assert control.worst_ns >= 899 * MS
