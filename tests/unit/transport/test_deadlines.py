"""The heap of deadlines, in virtual time."""

from __future__ import annotations

from batchyard.transport.deadlines import SLEEP_MAX_MS, SWEEP_MIN, Deadlines, sleep_ms


def test_things_come_out_when_they_are_due_and_in_their_order() -> None:
    deadlines: Deadlines[str] = Deadlines(lambda _: False)
    for due_ns, thing in ((30, "c"), (10, "a"), (20, "b"), (10, "a2")):
        deadlines.add(due_ns, thing)
    assert deadlines.next_ns() == 10
    assert list(deadlines.due(9)) == []
    assert list(deadlines.due(20)) == ["a", "a2", "b"]
    assert deadlines.next_ns() == 30


def test_what_is_over_is_passed_over() -> None:
    over = {"a", "b"}
    deadlines: Deadlines[str] = Deadlines(over.__contains__)
    for due_ns, thing in enumerate("abcd"):
        deadlines.add(due_ns, thing)
    assert deadlines.next_ns() == 2
    over.add("d")
    assert list(deadlines.due(99)) == ["c"]
    assert deadlines.next_ns() is None


def test_what_ends_while_the_due_are_handled_is_passed_over_too() -> None:
    over: set[str] = set()
    deadlines: Deadlines[str] = Deadlines(over.__contains__)
    deadlines.add(1, "a")
    deadlines.add(1, "b")
    for thing in deadlines.due(1):
        assert thing == "a"
        over.add("b")


def test_what_is_due_stays_so_until_somebody_has_come_to_an_end_with_it() -> None:
    """An exception (a signal's handler's) amid what is done about one loses none."""
    over: set[str] = set()
    deadlines: Deadlines[str] = Deadlines(over.__contains__)
    for thing in "abc":
        deadlines.add(1, thing)
    for thing in deadlines.due(1):
        if thing == "b":
            break
        over.add(thing)
    assert deadlines.next_ns() == 1
    assert list(deadlines.due(1)) == ["b", "c"]


def test_things_may_be_added_while_the_due_are_handled() -> None:
    deadlines: Deadlines[str] = Deadlines(lambda _: False)
    deadlines.add(5, "a")
    deadlines.add(5, "b")
    found = []
    for thing in deadlines.due(9):
        found.append(thing)
        if thing == "a":
            deadlines.add(20, "a, later")
    assert found == ["a", "b"]
    assert deadlines.next_ns() == 20


def test_ended_things_with_far_deadlines_do_not_pile_up() -> None:
    over: set[int] = set()
    deadlines: Deadlines[int] = Deadlines(over.__contains__)
    for number in range(100_000):
        deadlines.add(10**12 + number, number)
        over.add(number - 10)
    assert len(deadlines) <= SWEEP_MIN + 1


def test_a_sleep_is_rounded_up_and_never_too_long_for_poll() -> None:
    assert sleep_ms(None, 5) == SLEEP_MAX_MS
    assert sleep_ms(1_500_000, 0) == 2
    assert sleep_ms(0, 5_000_000) == 0
    assert sleep_ms(10**30, 0) == SLEEP_MAX_MS
