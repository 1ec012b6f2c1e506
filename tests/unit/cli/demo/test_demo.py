"""The demo's arithmetic: an answer that differs is never called equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batchyard.cli.demo.client import Images
from batchyard.cli.demo.report import figures, findings, verdict
from batchyard.cli.demo.tally import Tally

EXPECTED = np.array([[1, 2], [4, 3], [5, 50]], np.float32)
LABELS = np.array([1, 0, 0])


def tally() -> Tally:
    return Tally(EXPECTED, LABELS)


def test_identical_answers_pass_once_every_image_was_seen() -> None:
    t = tally()
    t.add(0, 0, EXPECTED[:2].copy(), 1000)
    assert "1 scan never came back" in verdict(t)
    t.add(3, 2, EXPECTED[2:].copy(), 1000)
    assert t.passed
    assert (t.identical, t.unequal, t.right, t.rows_total, t.requests) == (3, 0, 2, 3, 2)
    assert t.difference == 0.0


@pytest.mark.parametrize(
    ("factor", "unequal"),
    [(1 + 2e-7, 0), (1 + 1e-4, 1), (float("nan"), 1), (float("inf"), 1)],
)
def test_a_last_bit_is_tolerated_and_more_is_not(factor: float, unequal: int) -> None:
    t = tally()
    changed = EXPECTED.copy()
    changed[2] = (changed[2].astype(np.float64) * factor).astype(np.float32)
    t.add(1, 0, changed, 1000)
    assert (t.identical, t.unequal) == (2, unequal)
    assert t.difference > 0
    assert t.passed is (unequal == 0)
    assert ("FAILED: 1 answer differed" in verdict(t)) is (unequal == 1)


def test_images_that_a_full_yard_had_no_time_for_are_told_and_fail_nothing() -> None:
    t = tally()
    t.late[3] = 1
    assert not t.passed  # nothing came back at all
    t.add(0, 0, EXPECTED[:2].copy(), 1000)
    assert t.passed
    assert "1 scan had none" in verdict(t)
    t.add(0, 0, EXPECTED[:2] * 2, 1000)
    assert not t.passed


def test_an_answer_of_the_neighbour_is_unequal() -> None:
    t = tally()
    t.add(1, 0, EXPECTED[[1, 0, 2]], 1000)
    assert (t.identical, t.unequal, t.passed) == (1, 2, False)


def test_a_tally_survives_its_file_and_adds_up(tmp_path: Path) -> None:
    t = tally()
    t.began_s, t.ended_s = 10.0, 12.0
    t.add(0, 0, EXPECTED[:1], 5_000_000)
    t.add(3, 1, EXPECTED[1:] * 2, 7_000_000)
    t.refused, t.late = [0, 0, 1, 600], [0, 0, 0, 1]
    t.save(tmp_path / "tally.npz")
    total = tally()
    for _ in range(2):
        total.merge(Tally.load(tmp_path / "tally.npz", EXPECTED, LABELS))
    assert (total.rows, total.identical, total.unequal, total.right) == ([2, 0, 0, 4], 2, 4, 4)
    assert (total.began_s, total.ended_s) == (10.0, 12.0)
    assert total.latencies_ns[0] == [5_000_000, 5_000_000]
    said = "\n".join(findings(total, 2.5))
    assert "3 scans and 2 requests per second" in said
    assert "refused     1,202 times (NORMAL 2, LOW 1,200): " in said
    assert "late        2 requests (LOW 2): " in said
    assert "2 of 6 answers equal the direct run, 33.3333% bit for bit" in said


def test_latencies_are_shown_for_every_priority_even_unused_ones() -> None:
    t = tally()
    t.add(0, 0, EXPECTED[:1], 1_500_000)
    lines = figures(t)
    assert [line.split()[0] for line in lines] == ["priority", "URGENT", "HIGH", "NORMAL", "LOW"]
    assert lines[1].split()[1:] == ["1", "1", "1.50", "ms", "1.50", "ms"]
    assert lines[4].split() == ["LOW", "0", "64", "-", "-"]


def test_images_are_walked_through_in_order_and_over_and_over() -> None:
    images = Images(np.arange(5), start=3)
    taken = [images.take(2) for _ in range(4)]
    assert [start for start, _ in taken] == [3, 0, 2, 4]
    assert [rows.tolist() for _, rows in taken] == [[3, 4], [0, 1], [2, 3], [4]]
    images.back_to(2)
    assert images.take(2)[0] == 2
