"""The simulator keeps every promise for its first seeds, replays exactly, and sees bugs that are sown."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from batchyard.tests.sim.faults import BLOWS, CHANCES
from batchyard.tests.sim.gate import ROOT, judge
from batchyard.tests.sim.mutants import MUTANTS
from batchyard.tests.sim.world import run

SEEDS = 500
BLOCK = 100
REPLAYED = (3, 76, 189)
OTHER_PROCESS_S = 60

injected: Counter[str] = Counter()
played: list[int] = []


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_promise_is_kept(first: int) -> None:
    for seed in range(first, first + BLOCK):
        injected.update(run(seed).faults)
        played.append(seed)


def test_every_kind_of_fault_was_injected() -> None:
    if len(played) < SEEDS:
        pytest.skip("not all seeds were played in this session")
    wanted = {*BLOWS, *CHANCES, "hang", "hung_killed", "watched_end", "killed_by_item", "cancel", "abandoned", "arena_full", "queue_full", "joined", "cached", "quarantined", "maps", "lost", "asked_again", "runs_alone"}
    assert {kind for kind in wanted if not injected[kind]} == set()
    assert injected["requests"] > 20 * SEEDS


def test_a_seed_replays_exactly() -> None:
    assert [run(seed) for seed in REPLAYED] == [run(seed) for seed in REPLAYED]
    assert len({run(seed).trace_hash for seed in REPLAYED}) == len(REPLAYED)


def test_a_seed_replays_exactly_in_another_process_with_another_hash_seed() -> None:
    seeds = [str(seed) for seed in REPLAYED]
    done = subprocess.run(
        [sys.executable, "-m", "batchyard.tests.sim", *seeds],
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        timeout=OTHER_PROCESS_S,
        check=True,
    )
    for seed in REPLAYED:
        assert f"seed {seed}: trace {run(seed).trace_hash}," in done.stdout


def test_every_mutant_still_fits_the_code() -> None:
    assert [m.name for m in MUTANTS if (ROOT / m.file).read_text(encoding="utf-8").count(m.old) != 1] == []
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.parametrize(
    "name",
    [
        "a request that is done is released twice",
        "a dead worker's batch is requeued twice",
        "slots that a worker holds are freed",
    ],
)
def test_a_broken_yard_is_seen(name: str) -> None:
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == name]
    assert (judge(mutant, seeds=50) or "").startswith("simulator, seed ")
