"""ZMTP as bytes: what the codec of the wire makes of what a peer sends, whole, in pieces, and damaged."""

from __future__ import annotations

import random
from typing import Any

import pytest
from batchyard.transport.wire import Bounds, zmtp
from batchyard.transport.wire.zmtp import DEALER, ROUTER, Receiver, command, encode, opening

BOUNDS = Bounds(frame_bytes=1 << 22, parts=8, message_bytes=1 << 23)


def receiver(bounds: Bounds = BOUNDS) -> Receiver:
    """A ROUTER whose peer has greeted it."""
    made = Receiver(ROUTER, bounds)
    assert made.receive(opening(DEALER)) == []
    assert made.is_ready
    return made


def whole(messages: list[list[Any]]) -> list[list[bytes]]:
    return [[bytes(part) for part in parts] for parts in messages]


def feed(one: Receiver, data: bytes) -> list[list[bytes]]:
    """As stream.py does: what a large frame lacks is read to its room."""
    messages = []
    at = 0
    while at < len(data) and not one.violation:
        if one.room is not None:
            count = min(len(one.room), len(data) - at)
            one.room[:count] = data[at : at + count]
            messages += one.filled(count)
            at += count
        else:
            count = min(random.Random(at).choice((1, 7, 1000, 70_000)), len(data) - at)
            messages += one.receive(data[at : at + count])
            at += count
            while one.has_more:
                messages += one.receive(b"")
    return whole(messages)


MESSAGES: list[list[bytes]] = [
    [b""],
    [b"a"],
    [b"x" * 255],
    [b"x" * 256],
    [b"", b"", b""],
    [b"payload", b"y" * 5000, b"z" * 100_000],
    [b"m" * (2 << 20)],
    [b"last"],
]


def bytes_of(messages: list[list[bytes]]) -> bytes:
    return b"".join(b"".join(encode(parts)) for parts in messages)


def test_messages_come_back_as_they_were_whole_or_in_pieces() -> None:
    assert feed(receiver(), bytes_of(MESSAGES)) == MESSAGES


def test_a_peer_that_sends_a_byte_at_a_time_is_understood() -> None:
    one = Receiver(ROUTER, BOUNDS)
    data = opening(DEALER) + bytes_of([[b"hello", b"x" * 300], [b"again"]])
    messages = []
    for index in range(len(data)):
        messages += one.receive(data[index : index + 1])
    assert whole(messages) == [[b"hello", b"x" * 300], [b"again"]]


def test_the_frames_are_those_of_the_specification() -> None:
    assert b"".join(encode([b"ab"])) == b"\x00\x02ab"
    assert b"".join(encode([b"a", b"b"])) == b"\x01\x01a\x00\x01b"
    assert b"".join(encode([b"x" * 256])) == b"\x02\0\0\0\0\0\0\x01\0" + b"x" * 256
    assert b"".join(encode([b"x" * 256, b""]))[:1] == b"\x03"
    greeting = opening(DEALER)[:64]
    assert greeting == b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL" + b"\0" * 16 + b"\0" * 32
    assert opening(DEALER)[64:] == (b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0")


def test_memory_of_any_shape_travels_as_its_bytes() -> None:
    numbers = memoryview(bytes(range(24))).cast("I", [2, 3])
    empty = memoryview(b"").cast("I")
    assert feed(receiver(), b"".join(encode([numbers, empty]))) == [[bytes(range(24)), b""]]


def test_no_more_than_so_many_frames_are_looked_at_in_one_call() -> None:
    one = receiver()
    data = b"\0\0" * (3 * zmtp.EVENTS_MAX)
    first = one.receive(data)
    assert len(first) == zmtp.EVENTS_MAX
    rest = []
    while one.has_more:
        rest.append(len(one.receive(b"")))
    assert sum(rest) == 2 * zmtp.EVENTS_MAX


def test_what_came_before_a_violation_is_still_delivered() -> None:
    one = receiver()
    assert whole(one.receive(bytes_of([[b"good"]]) + b"\x40\x01x" + bytes_of([[b"bad"]]))) == [[b"good"]]
    assert one.violation
    assert one.receive(bytes_of([[b"late"]])) == []


READY = command(b"READY", b"\x0bSocket-Type\0\0\0\x06DEALER")
GREETING = opening(DEALER)[:64]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no ZMTP greeting"),
        (b"\xff" + b"\0" * 8 + b"\x7e", "no ZMTP greeting"),
        (b"\xff" + b"\0" * 8 + b"\x7f\x01", "ZMTP 1"),
        (GREETING[:12] + b"CURVE".ljust(20, b"\0") + b"\0" * 32, "NULL mechanism only"),
        (GREETING + bytes_of([[b"too early"]]), "before READY"),
        (GREETING + command(b"PING", b"\0\0"), "before READY"),
        (GREETING + command(b"ERROR", b"\x03no!"), "the peer refuses: no!"),
        (GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\x03SUB"), "of this type"),
        (GREETING + command(b"READY", b""), "of this type"),
        (GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\x07DEALER"), "damaged"),
        (GREETING + command(b"READY", b"\x01a\0\0\0\0" * 40), "of this type"),
        (GREETING + command(b"READY", b"".join(b"\x01%c\0\0\0\0" % n for n in range(60))), "damaged"),
        (GREETING + command(b"READY", b"\x08Identity\0\0\x01\0" + b"i" * 256 + b"\x0bSocket-Type\0\0\0\x06DEALER"), "255"),
        (GREETING + b"\x06" + (1 << 40).to_bytes(8, "big"), "a command of"),
        (GREETING + READY + READY, "a second READY"),
        (GREETING + READY + command(b"PING", b"\0"), "a PING that is none"),
        (GREETING + READY + command(b"PING", b"\0\0" + b"c" * 17), "a PING that is none"),
        (GREETING + READY + b"\x04\x01\x00", "without a name"),
        (GREETING + READY + b"\x05\x06\x04PING\0", "flags 0x5"),
        (GREETING + READY + b"\x08\x00", "flags 0x8"),
        (GREETING + READY + b"\x02" + (1 << 62).to_bytes(8, "big"), "more than is taken"),
        (GREETING + READY + command(b"ERROR", b"\x04away"), "the peer gives up: away"),
    ],
)  # fmt: skip
def test_what_is_not_zmtp_as_it_must_be_is_refused_with_its_reason(sent: bytes, said: str) -> None:
    one = Receiver(ROUTER, BOUNDS)
    assert one.receive(sent) == []
    assert said in one.violation
    assert one.room is None


def test_a_peer_that_can_be_told_why_is_told() -> None:
    one = Receiver(ROUTER, BOUNDS)
    one.receive(GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\x03SUB"))
    assert one.farewell.startswith(b"\x04")
    assert b"\x05ERROR" in one.farewell
    other = Receiver(DEALER, BOUNDS)
    other.receive(opening(ROUTER)[:64] + one.farewell)
    assert "does not talk" in other.violation


def test_a_ping_is_answered_with_its_context_and_a_flood_of_them_with_a_few() -> None:
    one = receiver()
    one.receive(command(b"PING", b"\0\x0acontext"))
    assert one.replies == [command(b"PONG", b"context")]
    one.receive(command(b"PING", b"\0\x0a") * 200)
    assert len(one.replies) == zmtp.PONGS_MAX
    assert not one.violation


def test_commands_may_stand_between_the_frames_of_a_message() -> None:
    one = receiver()
    data = b"\x01\x01a" + command(b"PING", b"\0\0") + command(b"SUBSCRIBE", b"x") + b"\0\x01b"
    assert whole(one.receive(data)) == [[b"a", b"b"]]


def test_one_part_too_many_is_kept_and_the_rest_is_read_away() -> None:
    parts = [b"%d" % number for number in range(500)]
    got = feed(receiver(), bytes_of([parts, [b"next"]]))
    assert got == [parts[: BOUNDS.parts + 1], [b"next"]]
    assert len(got[0]) == BOUNDS.parts + 1


def test_a_message_of_too_many_bytes_is_refused_though_each_frame_is_small_enough() -> None:
    one = receiver(Bounds(frame_bytes=4000, parts=100, message_bytes=10_000))
    feed(one, bytes_of([[b"x" * 3000] * 4]))
    assert "more than is taken" in one.violation


def test_a_huge_frame_that_is_only_announced_costs_no_memory() -> None:
    resource = pytest.importorskip("resource")
    bounds = Bounds(frame_bytes=1 << 28, parts=8, message_bytes=1 << 30)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    waiting = []
    for _ in range(20):
        one = receiver(bounds)
        one.receive(b"\x02" + (1 << 28).to_bytes(8, "big") + b"a few bytes")
        assert one.room is not None
        waiting.append(one)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50_000


def test_an_identity_that_the_peer_chose_is_known() -> None:
    one = Receiver(ROUTER, BOUNDS)
    one.receive(GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\x06DEALER\x08IDENTITY\0\0\0\x02me"))
    assert one.identity == b"me"
