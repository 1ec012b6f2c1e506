"""The command line of the campaigns, the clients' answers, and whom a campaign may kill."""

from __future__ import annotations

import os
import signal
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from batchyard.tests.campaigns.reliability import __main__ as main
from batchyard.tests.campaigns.reliability import proc
from batchyard.tests.campaigns.reliability.registry import CAMPAIGNS
from batchyard.tests.campaigns.reliability.soak import WARM_UP_S, Lives
from batchyard.tests.campaigns.reliability.truth import INPUTS, Truth


@pytest.mark.parametrize("campaign", CAMPAIGNS.values(), ids=list(CAMPAIGNS))
def test_a_quick_campaign_demands_no_more_than_the_full_one(campaign: main.Campaign) -> None:
    assert type(campaign.quick) is type(campaign.full)
    for field in fields(campaign.full):
        assert field.metadata["meaning"]
        assert 0 < getattr(campaign.quick, field.name) <= getattr(campaign.full, field.name)


def test_the_command_line_changes_single_numbers_of_a_demand() -> None:
    campaign = CAMPAIGNS["worker-kills"]
    options = main._parser().parse_args(["worker-kills", "--quick", "--worker-kills.in-flight", "3"])
    demand = main._demand(campaign, options)
    assert (demand.kills, demand.in_flight) == (campaign.quick.kills, 3)
    full = main._demand(campaign, main._parser().parse_args([]))
    assert full == campaign.full


@pytest.mark.parametrize("argv", [["nonsense"], ["--worker-kills.kills", "0"], ["--soak.seconds", "nan"]])
def test_a_wrong_command_line_ends_with_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_an_answer_is_right_for_its_own_input_alone(tmp_path: Path) -> None:
    expected = np.arange(INPUTS * 2 * 3, dtype=np.float32).reshape(INPUTS, 2, 3)
    Truth(np.zeros((INPUTS, 2, 1), np.float32), expected).save(tmp_path / "truth.npz")
    truth = Truth.load(tmp_path / "truth.npz")
    assert truth.right(1, expected[1])
    assert not truth.right(1, expected[2])
    assert not truth.right(1, expected[1][:1])
    assert not truth.right(1, np.full_like(expected[1], np.nan))


def test_a_process_that_is_not_ours_is_never_signalled() -> None:
    for pid in (os.getpid(), os.getppid(), 1):
        with pytest.raises(ProcessLookupError, match="not one of this campaign's"):
            proc.send(pid, signal.SIGCONT)


def test_bytes_mapped_are_those_of_arenas() -> None:
    maps = (
        "7f0000000000-7f0000002000 rw-s 00000000 00:01 9 /memfd:batchyard (deleted)\n7f01-7f02 r--p 0 0 lib\n"
    )
    found = [int(stop, 16) - int(start, 16) for start, stop in proc.MAPPED.findall(maps)]
    assert found == [0x2000]


def test_memory_of_several_lives_grows_as_each_of_them_did_once_warm() -> None:
    lives = Lives()
    for pid, (start_s, base) in enumerate([(0.0, 1000.0), (100.0, 5000.0)]):
        cold = [(start_s, base / 2)]
        warm = [(start_s + WARM_UP_S + second, base + 3 * second) for second in range(10)]
        lives.samples[pid] = cold + warm
    assert lives.slope_per_s() == pytest.approx(3)


def test_what_never_comes_is_said_in_words() -> None:
    with pytest.raises(TimeoutError, match="not within 0 s: the moon"):
        proc.until(lambda: False, 0, "the moon")
