"""The judge of answers: what it must call equal, what it must not; and elements of less than a byte."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ..plain import TOLERANCE, difference, pack, unpack


def test_what_is_equal_is_equal_whatever_its_type() -> None:
    for array in (
        np.arange(6).reshape(2, 3),
        np.array([1.5, np.nan, np.inf, -np.inf], np.float32),
        np.array(["a", "ü", ""], object),
        np.zeros((0, 4)),
        np.float32(3),
        np.array([1, -8, 7], ml_dtypes.int4),
        np.array([0.5, -2], ml_dtypes.float8_e5m2),
        np.array([1 + 2j], np.complex64),
    ):
        assert difference(array, np.array(array)) == ""


@pytest.mark.parametrize(
    ("want", "have", "why"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "shape"),
        (np.zeros(2, np.float32), np.zeros(2, np.float64), "type"),
        (np.zeros(2, np.int32), np.zeros(2, np.uint32), "type"),
        (np.arange(3), np.array([0, 1, 3]), "1 of 3"),
        (np.ones(3, np.float32), np.array([1, 1, 1.001], np.float32), "off"),
        (np.ones(3, np.float32), np.array([1, np.nan, 1], np.float32), "off|elsewhere"),
        (np.array([np.nan, 1], np.float32), np.array([0, 1], np.float32), "elsewhere"),
        (np.array([np.inf], np.float32), np.array([-np.inf], np.float32), "elsewhere"),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), "1 of 2"),
        (np.array([1], ml_dtypes.uint4), np.array([2], ml_dtypes.uint4), "1 of 1"),
        (np.array([1], ml_dtypes.float8_e4m3fn), np.array([1.125], ml_dtypes.float8_e4m3fn), "1 of 1"),
        (np.zeros(3, np.float32), np.full(3, 1e-30, np.float32), "off"),
    ],
)
def test_what_differs_is_told(want: Any, have: Any, why: str) -> None:
    import re

    assert re.search(why, difference(want, have))


def test_rounding_is_forgiven_by_the_largest_value_and_no_more() -> None:
    want = np.array([1000, 1e-6], np.float32)
    near = want + np.float32(1000 * TOLERANCE["float32"] / 2)
    far = want + np.float32(1000 * TOLERANCE["float32"] * 2)
    assert difference(want, near) == ""
    assert "off" in difference(want, far)
    assert difference(want, far, share=1e-3) == ""


def test_bits_of_types_that_numpy_lacks_are_read_as_the_type() -> None:
    half = np.array([1.5, -3], ml_dtypes.bfloat16)
    assert difference(half, half.view(np.uint16)) == ""
    assert difference(half, half.view(np.uint16) ^ 1 << 14) != ""
    four = np.array([-8, 7], ml_dtypes.int4)
    assert difference(four, np.array([-8, 7], np.int8)) == ""


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(ml_dtypes.int4, 4), (ml_dtypes.uint4, 4), (ml_dtypes.int2, 2), (ml_dtypes.uint2, 2), (np.uint8, 8)],
)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8])
def test_packed_elements_come_back(kind: Any, bits: int, count: int) -> None:
    least = -(1 << bits - 1) if np.dtype(kind).name.startswith("int") else 0
    given = np.array([least + number % (1 << bits) for number in range(count)], kind)
    packed = pack(given, bits)
    assert len(packed) == -(-count * bits // 8)
    assert difference(given, unpack(packed, kind, bits, [count])) == ""


def test_the_first_of_two_half_bytes_lies_low() -> None:
    assert pack(np.array([1, 2, 3], ml_dtypes.uint4), 4) == bytes([0x21, 0x03])
