"""Requests that lost their broker: what is asked again, of whom, with how much time; and who is told what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from batchyard.client.channel import Channel, Pending
from batchyard.client.memory import SlotMemory
from batchyard.client.resubmit import Backlog, MessageRefused, asked, may_ask_again
from batchyard.client.signature import Signature
from batchyard.transport import messages as m
from batchyard.transport.errors import (
    ArenaExhausted,
    BrokerLost,
    DeadlineExceeded,
    InvalidRequest,
    UnknownConnection,
)
from batchyard.transport.tensors import TensorSpec

MS = 1_000_000
GONE = BrokerLost("the broker went away")
NUMBERS = count(1)


def signature(width: int = 4, idempotent: bool = True, second: bool = False) -> Signature:
    """net: x: float32[n, width] (and b: float32[n, 2]) -> y: float32[n, 3]."""
    inputs = [TensorSpec("x", 1, ["n", width]), *([TensorSpec("b", 1, ["n", 2])] if second else [])]
    y = [TensorSpec("y", 1, ["n", 3])]
    state = m.ModelState.READY
    return Signature(m.ModelInfo("net", state, "", 1, inputs, y, True, "", 8, [], idempotent))


NET = signature()


class User:
    """Somebody who waits."""

    gone = False


@pytest.fixture
def memories() -> Iterator[list[SlotMemory]]:
    made = [SlotMemory(1 << 20), SlotMemory(1 << 20)]
    yield made
    for memory in made:
        memory.close()


def under_way(channel: Channel, inputs: Any, net: Signature = NET) -> Pending:
    pending, _ = channel.submit(net, inputs, 1, 500 * MS, 0.0)
    pending.waiter = User()
    return pending


def backlog_of(*pendings: Pending, memory: SlotMemory | None, due_ns: int = 500 * MS) -> Backlog:
    backlog = Backlog(lambda user: not user.gone)
    for pending in pendings:
        assert backlog.add(pending, memory, GONE, due_ns, 100 * MS) == []
    return backlog


def read(channel: Channel, pending: Pending, place: int = 0) -> np.ndarray[Any, Any]:
    tensor = pending.message.inputs[place]
    assert channel.memory is not None
    return channel.memory.view(tensor.offset, np.dtype(np.float32), tuple(tensor.shape))


def test_what_was_copied_is_read_from_the_slot_and_what_was_not_from_the_callers_array(memories: Any) -> None:
    channel = Channel(memories[0], NUMBERS)
    net = signature(second=True)
    copied = np.full((2, 4), 5, np.float32)
    placed = memories[0].array(memories[0].alloc(16), np.dtype(np.float32), (2, 2))
    placed[:] = 6
    pending = under_way(channel, {"x": copied, "b": placed}, net)
    copied[:] = -1  # the caller's own again
    found = asked(pending, memories[0])
    assert (found["x"] == 5).all()
    assert found["b"] is placed  # so its slot is not given to another


def test_without_shared_memory_what_was_sent_is_kept() -> None:
    channel = Channel(None, NUMBERS)
    x = np.full((2, 4), 5, np.float32)
    pending = under_way(channel, x)
    x[:] = -1
    assert (asked(pending, None)["x"] == 5).all()


def test_it_is_submitted_to_the_next_memory_with_the_time_that_is_left(memories: Any) -> None:
    old, new = Channel(memories[0], NUMBERS), Channel(memories[1], NUMBERS)
    first = under_way(old, np.full((2, 4), 7, np.float32))
    user = first.waiter
    backlog = backlog_of(first, memory=memories[0])
    assert backlog.models == ["net"]
    ((again, _, due_ns),), ended = backlog.ask_again(new, NET, 400 * MS)
    assert ended == []
    assert (again.message.priority, again.message.deadline_ns, due_ns) == (1, 100 * MS, 500 * MS)
    assert again.waiter is user
    assert again.number != first.number
    assert (read(new, again) == 7).all()
    assert not backlog
    assert backlog.ask_again(new, NET, 400 * MS) == ([], [])


def test_a_model_that_must_not_run_twice_ends_its_requests_at_once(memories: Any) -> None:
    pending = under_way(
        Channel(memories[0], NUMBERS), np.zeros((1, 4), np.float32), signature(idempotent=False)
    )
    backlog = Backlog(lambda user: True)
    ((user, error),) = backlog.add(pending, memories[0], GONE, 500, 100)
    assert user is pending.waiter
    assert "not idempotent" in str(error)
    assert not backlog


@pytest.mark.parametrize(
    ("error", "idempotent", "alone", "again"),
    [
        (GONE, True, False, True),
        (GONE, False, False, False),
        (GONE, False, True, False),
        (UnknownConnection("who?"), False, True, True),  # it has run nothing of ours
        (UnknownConnection("who?"), False, False, False),  # an earlier one may have run
        (UnknownConnection("who?"), True, False, True),
        (MessageRefused("nonsense"), True, True, False),  # the next would refuse it, too
    ],
)
def test_who_is_asked_again(error: BrokerLost, idempotent: bool, alone: bool, again: bool) -> None:
    assert may_ask_again(error, signature(idempotent=idempotent), alone) is again
    assert may_ask_again(error, None) is not isinstance(error, MessageRefused)


def test_what_has_no_room_waits_while_something_is_under_way_and_no_longer(memories: Any) -> None:
    old, new = Channel(memories[0], NUMBERS), Channel(memories[1], NUMBERS)
    rows = np.zeros((15_000, 4), np.float32)  # 240 kB in, 180 kB out: two at once
    backlog = backlog_of(*(under_way(old, rows) for _ in range(2)), memory=memories[0])
    other = under_way(new, rows)
    busy = under_way(new, rows)
    assert backlog.ask_again(new, NET, 200 * MS) == ([], [])
    for pending in (other, busy):
        new.handle(m.Failed(pending.number, 8, "no"), [])
    submitted, ended = backlog.ask_again(new, NET, 200 * MS)
    assert (len(submitted), ended) == (2, [])
    held = memories[0].alloc(200_000)
    backlog = backlog_of(submitted[0][0], memory=memories[1])
    small = SlotMemory(1 << 16)
    submitted, ((_, error),) = backlog.ask_again(Channel(small, NUMBERS), NET, 200 * MS)
    assert submitted == []
    assert isinstance(error, ArenaExhausted)  # nothing will ever give room back
    small.close()
    memories[0].free(held)


def test_another_model_of_the_same_name_is_the_callers_error(memories: Any) -> None:
    pending = under_way(Channel(memories[0], NUMBERS), np.zeros((1, 4), np.float32))
    backlog = backlog_of(pending, memory=memories[0])
    _, ((_, error),) = backlog.ask_again(Channel(memories[1], NUMBERS), signature(width=9), 200 * MS)
    assert isinstance(error, InvalidRequest)


@pytest.mark.parametrize(("has_broker", "kind"), [(True, DeadlineExceeded), (False, BrokerLost)])
def test_whose_time_is_up_is_told_whether_a_broker_came(memories: Any, has_broker: bool, kind: type) -> None:
    pending = under_way(Channel(memories[0], NUMBERS), np.zeros((1, 4), np.float32))
    user = pending.waiter
    backlog = backlog_of(pending, memory=memories[0])
    assert backlog.next_ns() == 500 * MS
    assert backlog.expire(499 * MS, has_broker) == []
    ((told, error),) = backlog.expire(500 * MS, has_broker)
    assert told is user
    assert type(error) is kind
    assert has_broker or "no other came within 0.4 s" in str(error)
    assert not backlog
    assert backlog.expire(600 * MS, has_broker) == []


def test_who_has_gone_is_neither_asked_for_nor_told(memories: Any) -> None:
    old, new = Channel(memories[0], NUMBERS), Channel(memories[1], NUMBERS)
    first, second = (under_way(old, np.zeros((1, 4), np.float32)) for _ in range(2))
    backlog = backlog_of(first, second, memory=memories[0])
    first.waiter.gone = True
    ((again, *_),), _ = backlog.ask_again(new, NET, 200 * MS)
    assert again.waiter is second.waiter
    backlog = backlog_of(second, memory=memories[0])
    second.waiter.gone = True
    assert backlog.expire(200 * MS, False) == []
    assert not backlog  # so nobody has to connect for it


def test_giving_up_ends_all_of_a_model_or_everything(memories: Any) -> None:
    old = Channel(memories[0], NUMBERS)
    pendings = [under_way(old, np.zeros((1, 4), np.float32)) for _ in range(2)]
    users = [pending.waiter for pending in pendings]
    assert [user for user, _ in backlog_of(*pendings, memory=memories[0]).end(GONE, "net")] == users
    assert [user for user, _ in backlog_of(*pendings, memory=memories[0]).end(GONE)] == users
    assert backlog_of(*pendings, memory=memories[0]).end(GONE, "other") == []
    backlog = backlog_of(*pendings, memory=memories[0])
    lost = [*backlog._waiting["net"]]
    backlog.ask_again(Channel(memories[1], NUMBERS), NET, 200 * MS)
    assert [entry.inputs for entry in lost] == [{}, {}], "the lost session's memory is let go of"
