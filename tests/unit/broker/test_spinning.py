"""For how long the loop polls: not at all while every core is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from batchyard.broker.spinning import Spinning

SPIN_NS = 100_000
CORES = 2


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "loadavg"


def says(file: Path, runnable: object) -> None:
    file.write_text(f"0.20 0.18 0.12 {runnable}/345 8901\n")


@pytest.fixture
def spinning(file: Path) -> Iterator[Spinning]:
    says(file, 1)
    made = Spinning(SPIN_NS, str(file), CORES)
    yield made
    made.close()


def looks(spinning: Spinning, count: int) -> int:
    for _ in range(count):
        spinning.look()
    return spinning.spin_ns


def test_it_polls_while_there_is_a_core_for_everybody(spinning: Spinning, file: Path) -> None:
    assert spinning.spin_ns == SPIN_NS
    says(file, CORES)
    assert looks(spinning, 10) == SPIN_NS


def test_it_sleeps_while_more_threads_are_runnable_than_there_are_cores_and_polls_again_later(
    spinning: Spinning, file: Path
) -> None:
    says(file, CORES + 1)
    assert looks(spinning, 10) == 0
    says(file, 1)
    assert looks(spinning, 10) == SPIN_NS


def test_one_crowded_look_is_no_reason_to_sleep(spinning: Spinning, file: Path) -> None:
    says(file, 9)
    assert looks(spinning, 1) == SPIN_NS


def test_a_broker_that_is_not_to_poll_never_does(file: Path) -> None:
    says(file, 1)
    spinning = Spinning(0, str(file), CORES)
    assert looks(spinning, 3) == 0
    spinning.close()


@pytest.mark.parametrize("runnable", ["", "many", "-"])
def test_where_the_system_does_not_tell_it_polls(spinning: Spinning, file: Path, tmp_path: Path, runnable: str) -> None:
    says(file, runnable)
    assert looks(spinning, 10) == SPIN_NS
    file.write_text("")
    assert looks(spinning, 10) == SPIN_NS
    nowhere = Spinning(SPIN_NS, str(tmp_path / "nowhere"), CORES)
    assert looks(nowhere, 10) == SPIN_NS
    nowhere.close()
