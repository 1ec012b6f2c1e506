"""The relay baselines carry messages between real processes and leave nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq
from batchyard.tools import processes
from batchyard.tools.baselines import KINDS, PAYLOAD, Relay

pytestmark = pytest.mark.integration


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_relay_carries_messages_and_leaves_no_process(kind: str) -> None:
    with Relay(kind) as relay:
        pids, folder = relay.pids, Path(str(relay._folder))
        assert len(pids) == 2
        for index in range(200):
            message = index.to_bytes(4, "big") + PAYLOAD
            relay._socket.send(message)
            assert relay._socket.recv() == message
        assert relay.window(16, 0.05, warm_up_s=0).latencies_ns
        assert relay.round_trips(0.02, warm_up_s=0).latencies_ns
        with pytest.raises(zmq.Again):
            relay._socket.recv(zmq.NOBLOCK)  # every window was drained
    assert not any(map(_is_alive, pids))
    assert not folder.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_between_leaves_no_process_either(kind: str) -> None:
    try:
        with Relay(kind) as relay:
            pids = relay.pids
            raise LookupError
    except LookupError:
        pass
    assert not any(map(_is_alive, pids))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="pigeon"):
        Relay("pigeon")


@pytest.mark.skipif(not processes.is_supported(), reason="needs /proc")
def test_idle_share_finds_children_and_tells_busy_from_asleep() -> None:
    with Relay("python ROUTER/ROUTER") as relay:
        assert set(relay.pids) <= set(processes.descendants(os.getpid()))
        shares = processes.idle_share({"relay": relay.pids[0]}, 0.2)
        assert shares["relay"] < 0.2
        before_s = processes.cpu_s(relay.pids[0])
        relay.window(16, 0.3)
        assert processes.cpu_s(relay.pids[0]) > before_s
    assert processes.cpu_s(relay.pids[0] if relay.pids else 2**22 + 1) == 0.0
