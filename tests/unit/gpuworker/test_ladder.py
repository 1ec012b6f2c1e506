"""The ladder of providers on a virtual clock: strikes, quarantine, and the way back."""

from __future__ import annotations

import signal

import pytest
from batchyard.gpuworker import device, watchdog
from batchyard.gpuworker.ladder import QUARANTINE_NS, STRIKES_NS, Ladder, blames_device

S = 10**9


def test_the_best_provider_is_first_and_the_last_one_is_never_given_up() -> None:
    ladder = Ladder(["directml", "webgpu", "cpu"])
    assert ladder.choose(0) == "directml"
    assert ladder.fallback_reason("directml", 0) == ""
    ladder.refuse("directml", "no adapter", 0)
    ladder.refuse("webgpu", "wrong answers", 0)
    ladder.refuse("cpu", "impossible", 0)
    assert ladder.choose(0) == "cpu"
    assert ladder.fallback_reason("cpu", 0) == "directml does not work here: no adapter; webgpu does not work here: wrong answers"
    assert ladder.choose(10**6 * S) == "cpu", "a probe's word holds as long as the worker lives"
    assert ladder.better("cpu", 10**6 * S) is None


def test_one_strike_changes_nothing_and_two_within_minutes_are_a_quarantine() -> None:
    ladder = Ladder(["webgpu", "cpu"])
    assert not ladder.strike("webgpu", 100 * S)
    assert ladder.choose(100 * S) == "webgpu"
    assert ladder.strike("webgpu", 101 * S)
    assert ladder.choose(101 * S) == "cpu"
    assert ladder.fallback_reason("cpu", 101 * S) == (
        "webgpu is in quarantine for 10 minutes: its device ended 2 processes within 5 minutes"
    )


def test_strikes_that_are_far_apart_are_forgotten() -> None:
    ladder = Ladder(["webgpu", "cpu"])
    now_ns = 0
    for _ in range(5):
        assert not ladder.strike("webgpu", now_ns)
        now_ns += STRIKES_NS + 1
    assert ladder.choose(now_ns) == "webgpu"


def test_a_worker_goes_down_one_rung_at_a_time() -> None:
    ladder = Ladder(["directml", "webgpu", "cpu"])
    ladder.strike("directml", 0)
    ladder.strike("directml", S)
    assert ladder.choose(S) == "webgpu"
    ladder.strike("webgpu", 2 * S)
    assert ladder.choose(2 * S) == "webgpu", "one provider's strikes are not another's"
    ladder.strike("webgpu", 3 * S)
    assert ladder.choose(3 * S) == "cpu"


def test_the_last_provider_has_no_quarantine() -> None:
    ladder = Ladder(["cpu"])
    assert not any(ladder.strike("cpu", now_s * S) for now_s in range(10))
    assert ladder.choose(10 * S) == "cpu"


def test_a_quarantine_ends_and_the_provider_is_to_be_probed_again() -> None:
    ladder = Ladder(["webgpu", "cpu"])
    ladder.strike("webgpu", 0)
    ladder.strike("webgpu", S)
    over_ns = S + QUARANTINE_NS
    assert ladder.better("cpu", over_ns - 1) is None
    assert ladder.better("cpu", over_ns) == "webgpu"
    assert ladder.choose(over_ns) == "webgpu"
    assert ladder.fallback_reason("webgpu", over_ns) == ""
    assert not ladder.strike("webgpu", over_ns + S), "the old strikes are paid for"


def test_a_provider_whose_probe_fails_after_its_quarantine_is_in_quarantine_anew() -> None:
    ladder = Ladder(["webgpu", "cpu"])
    ladder.strike("webgpu", 0)
    ladder.strike("webgpu", S)
    over_ns = S + QUARANTINE_NS
    ladder.refuse("webgpu", "still no adapter", over_ns)
    assert ladder.choose(over_ns) == "cpu"
    assert ladder.fallback_reason("cpu", over_ns) == "webgpu is in quarantine for 10 minutes: still no adapter"
    assert ladder.better("cpu", over_ns + QUARANTINE_NS) == "webgpu"


@pytest.mark.parametrize(
    ("status", "blamed"),
    [
        (device.EXIT_CODE, True),
        (watchdog.EXIT_CODE, True),
        (watchdog.ORPHAN_EXIT_CODE, False),
        (-signal.SIGSEGV, True),
        (-signal.SIGABRT, True),
        (0xC0000005, True),  # an access violation on Windows
        (0, False),
        (1, False),
        (-signal.SIGTERM, False),
        (-9, False),  # somebody's kill, or the broker's of a hung worker
    ],
)
def test_what_ends_a_child_is_the_devices_fault_or_not(status: int, blamed: bool) -> None:
    assert blames_device(status) is blamed
