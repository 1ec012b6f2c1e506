"""Every request has one outcome in the books, and what has none is seen."""

from __future__ import annotations

from batchyard.tests.campaigns.reliability.ledger import OK, WRONG, Ledger


def test_a_request_is_under_way_until_it_has_an_outcome() -> None:
    ledger = Ledger()
    first, second = ledger.open(0, 100, 50), ledger.open(1, 100, 50)
    ledger.end(first, OK, 120)
    assert ledger.under_way() == [second]
    assert (ledger.sent, ledger.outcomes) == (2, {OK: 1})
    assert (first.outcome, first.ended_ns) == (OK, 120)


def test_a_second_outcome_is_counted_and_changes_nothing() -> None:
    ledger = Ledger()
    sent = ledger.open(0, 100, 50)
    ledger.end(sent, OK, 120)
    ledger.end(sent, WRONG, 130)
    assert (ledger.duplicated, sent.outcome, sent.ended_ns) == (1, OK, 120)
    assert ledger.outcomes == {OK: 1}


def test_the_latest_outcome_is_measured_from_its_own_deadline() -> None:
    ledger = Ledger()
    early, late = ledger.open(0, 100, 50), ledger.open(0, 100, 10)
    ledger.end(early, OK, 149)
    assert ledger.late_worst_ns == 0
    ledger.end(late, "DeadlineExceeded", 117)
    assert ledger.late_worst_ns == 7


def test_an_answer_counts_after_the_mark_only_when_its_request_was_sent_after_it() -> None:
    ledger = Ledger()
    before = ledger.open(0, 90, 50)
    ledger.mark(100)
    after, refused = ledger.open(0, 101, 50), ledger.open(0, 102, 50)
    ledger.end(before, OK, 110)
    ledger.end(refused, "BrokerLost", 111)
    assert ledger.answered_ns == 0
    ledger.end(after, OK, 112)
    assert ledger.answered_ns == 112
    ledger.end(ledger.open(0, 113, 50), OK, 114)
    assert ledger.answered_ns == 112  # the first
