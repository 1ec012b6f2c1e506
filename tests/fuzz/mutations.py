"""Inputs that are nearly right: good bytes, bent. One `random.Random` decides all of it, so a seed is
a campaign that can be run again.

Half of the inputs are bent as bytes; the other half as values, so that what comes out is MessagePack
again, and reaches the checks that stand behind the decoder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

BENDS_MAX = 4  # of one input
BLOCK_MAX = 24  # bytes that are cut, doubled or taken from another input
LENGTH_MAX = 1 << 16
# Heads that promise more than there is, ends of ranges, strings that are none, timestamps, nesting.
TOKENS = [
    *(bytes([code]) for code in (0x00, 0x7F, 0x80, 0x90, 0x9F, 0xA0, 0xC0, 0xC1, 0xC2, 0xC3, 0xE0, 0xFF)),
    *(bytes([code]) + b"\xff" * 8 for code in (0xC6, 0xCF, 0xD3, 0xDB, 0xDD, 0xDF)),
    *(bytes([code, 0x80]) + bytes(7) for code in (0xCB, 0xCF, 0xD3)),
    *(b"\xd9\x02" + bad for bad in (b"\xff\xfe", b"\xc3\x28", b"\xed\xa0")),
    b"\xd6\xff\xff\xff\xff\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xcb\x7f\xf8" + bytes(6),
    b"\xdc\x10\x00",
    b"\xdc\x10\x01",
    b"\x91" * 300,
    b"\x81\x01" * 300,
    b"\x81\x91\x01\x01",
    b"\x81\x80\x01",
]
_EDGES = sorted({sign * (1 << bits) + step for bits in range(64) for sign in (1, -1) for step in (-1, 0, 1)})
VALUES: list[Any] = [
    *(edge for edge in _EDGES if -(1 << 63) <= edge < 1 << 64),
    (1 << 64) - 1,
    *(None, True, False, 0.0, -0.0, 1.5, float("nan"), float("inf"), 1e308),
    *("", "x", "m" * 64, "m" * 65, "é" * 40, "7:1234", "batchyard-" + "0" * 32, "../../etc/passwd", "\0"),
    *(b"", b"x", bytes(64)),
    *([], [[]], {}, {"a": 1}, {1: 2}, [0] * 33, [1] * 1025, [[0, 0]] * 1025, [[1, [1, 4], 0, 0]]),
    *(msgpack.Timestamp(1, 1), msgpack.Timestamp((1 << 63) - 1, 0), msgpack.ExtType(5, b"abc")),
]


class Mutator:
    """Bends the seeds of one target."""

    def __init__(self, seeds: Sequence[bytes], rng: random.Random) -> None:
        self._rng = rng
        self._seeds = list(seeds)
        try:
            self._trees = [msgpack.unpackb(seed, strict_map_key=False) for seed in seeds]
        except (msgpack.UnpackException, ValueError):
            self._trees = []  # not values, but bytes of another kind
        self._bends: list[Callable[[bytearray, int], None]] = [
            self._change,
            self._change,
            self._put,
            self._cut,
            self._double,
            self._splice,
        ]

    def __call__(self) -> bytes:
        """The next input."""
        rng = self._rng
        number = int(rng.random() * len(self._seeds))
        if rng.random() < 0.5 and self._trees:
            tree = self._trees[number]
            for _ in range(1 + int(rng.random() * 2)):
                tree = self._bent(tree)
            made = bytes(msgpack.packb(tree))
            if rng.random() < 0.9:
                return made[:LENGTH_MAX]
        else:
            made = self._seeds[number]
        payload = bytearray(made)
        for _ in range(1 + int(rng.random() * BENDS_MAX)):
            rng.choice(self._bends)(payload, int(rng.random() * (len(payload) + 1)))
        return bytes(payload[:LENGTH_MAX])

    # ---- values -------------------------------------------------------------------------------

    def _bent(self, value: Any) -> Any:
        """The value with one thing in it changed. What is not on the way to it is shared, not copied."""
        rng = self._rng
        dice = rng.random()
        if isinstance(value, list) and value and dice < 0.9:
            at = int(rng.random() * len(value))
            if dice < 0.75:
                return [*value[:at], self._bent(value[at]), *value[at + 1 :]]
            if dice < 0.8:
                return value[:at] + value[at + 1 :]
            if dice < 0.85:
                times = rng.choice((2, 2, 2, 40, 40 if isinstance(value[at], list | dict) else 1100))
                return value[:at] + value[at : at + 1] * times + value[at + 1 :]
            return [*value, rng.choice(VALUES)]
        if isinstance(value, dict) and value and dice < 0.8:
            key = rng.choice(list(value))
            return {**value, key: self._bent(value[key])}
        if type(value) is int and dice < 0.6:
            return max(-(1 << 63), min((1 << 64) - 1, value + rng.choice((-64, -4, -1, 1, 4, 64, 4096))))
        return rng.choice(VALUES)

    # ---- bytes --------------------------------------------------------------------------------

    def _change(self, payload: bytearray, at: int) -> None:
        if at < len(payload):
            payload[at] = int(self._rng.random() * 256)

    def _put(self, payload: bytearray, at: int) -> None:
        payload[at:at] = self._rng.choice(TOKENS)

    def _cut(self, payload: bytearray, at: int) -> None:
        del payload[at : at + 1 + int(self._rng.random() * BLOCK_MAX)]

    def _double(self, payload: bytearray, at: int) -> None:
        payload[at:at] = payload[at : at + 1 + int(self._rng.random() * BLOCK_MAX)]

    def _splice(self, payload: bytearray, at: int) -> None:
        other = self._rng.choice(self._seeds)
        start = int(self._rng.random() * len(other))
        payload[at:at] = other[start : start + 1 + int(self._rng.random() * BLOCK_MAX)]
