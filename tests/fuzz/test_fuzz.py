"""The short campaigns: `python3 run soak --fuzz` plays the long ones."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from batchyard.tests.fuzz import campaign, guided, live, targets

INPUTS = 8_000  # of each target
CHUNK = 1_000_000  # apart from those of a long campaign
LIVE_S = 4.0
SEED = 7


@pytest.mark.parametrize("name", targets.NAMES)
def test_nothing_but_the_documented_errors_is_raised_and_what_is_accepted_is_right(name: str) -> None:
    target = targets.target(name)
    assert {target.check(seed) for seed in target.seeds} == {targets.ACCEPTED}
    played = campaign.play(name, CHUNK, INPUTS)
    assert not played.broken, played.broken[0]
    assert 0 < played.accepted[name] < INPUTS  # it bends neither too little nor too much


def test_a_broken_promise_is_told_with_the_input_and_how_to_feed_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "admin_to_broker"
    seeds = targets.target(name).seeds

    def broken(payload: bytes) -> str:
        raise KeyError(payload[0])

    monkeypatch.setattr(targets, "target", lambda name: targets.Target(name, seeds, broken))
    told = campaign.play(name, CHUNK, 1).broken[0].splitlines()
    assert told[0].startswith("admin_to_broker: KeyError: ")
    command = told[-1].split()[2:]  # without the word, and with this Python
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout in ("accepted\n", "refused\n")


@pytest.mark.parametrize(
    ("where", "name", "said"),
    [
        ("batchyard.broker.signature.check_range", "request_handles", "outside its arena"),
        ("batchyard.gpuworker.memory.check_range", "batch_handles", "outside"),
        ("batchyard.transport.segments.memfd._judge", "segment_handles", "not offered|another size|Error"),
    ],
)
def test_a_check_that_is_missing_is_found(
    monkeypatch: pytest.MonkeyPatch, where: str, name: str, said: str
) -> None:
    monkeypatch.setattr(where, lambda *arguments: None)
    assert re.search(said, campaign.play(name, CHUNK, INPUTS).broken[0])


@pytest.mark.skipif(not guided.is_installed(), reason="atheris is not installed")
def test_a_guided_campaign_runs_and_says_how_much_it_fed() -> None:
    inputs, said = guided.run("request_handles", 1)
    assert not said, said
    assert inputs > 100


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_broker_under_attack_serves_the_client_that_is_in_order_and_comes_to_rest() -> None:
    met = live.campaign(LIVE_S, SEED)
    assert not met.broken, met.broken
    assert met.requests > 20
    assert all(met.refused[reason] for reason in live.SEEN), met.refused
