"""Descriptors: the size that a shape takes, and the one check that keeps a handle in its arena."""

from __future__ import annotations

import msgspec
import pytest
from batchyard.transport.errors import InvalidRequest
from batchyard.transport.tensors import (
    NBYTES_MAX,
    RANK_MAX,
    Slot,
    Tensor,
    TensorSpec,
    check_range,
    nbytes_of,
)
from hypothesis import given
from hypothesis import strategies as st

FLOAT32, INT8, STRING, COMPLEX128, UINT4, INT4 = 1, 3, 8, 15, 21, 22


def test_a_scalar_has_one_element_and_an_empty_tensor_none() -> None:
    assert nbytes_of(FLOAT32, []) == 4
    assert nbytes_of(FLOAT32, [0]) == 0
    assert nbytes_of(FLOAT32, [5, 0, 7]) == 0
    assert nbytes_of(FLOAT32, [2, 3]) == 24
    assert nbytes_of(COMPLEX128, [3]) == 48


@pytest.mark.parametrize(
    "shape",
    [[1 << 32, 1 << 32], [1 << 63, 2], [1 << 16] * 4, [1 << 46] * RANK_MAX, [(1 << 44) + 1], [1 << 64]],
)
def test_a_product_that_wraps_in_64_bits_is_refused(shape: list[int]) -> None:
    """numpy.prod([2**32, 2**32]) is 0, and a tensor of 0 bytes fits everywhere."""
    with pytest.raises(InvalidRequest, match="too large"):
        nbytes_of(FLOAT32, shape)


@pytest.mark.parametrize("shape", [[-1], [-1, -1], [-1, 0], [0, -1], [3, -2, -2], [-(1 << 63), -2]])
def test_a_negative_axis_is_refused_even_where_the_product_is_not_negative(shape: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="every axis must be 0 or more"):
        nbytes_of(FLOAT32, shape)


@pytest.mark.parametrize("dtype", [0, STRING, 23, 24, 99, -1, 1 << 40])
def test_a_type_that_has_no_size_cannot_be_sized(dtype: int) -> None:
    with pytest.raises(InvalidRequest, match="has no size that its shape could tell"):
        nbytes_of(dtype, [1])


@pytest.mark.parametrize("dtype", [UINT4, INT4])
@pytest.mark.parametrize(
    ("shape", "nbytes"), [([], 1), ([0], 0), ([1], 1), ([2], 1), ([3], 2), ([3, 3], 5), ([1 << 46], 1 << 45)]
)
def test_half_bytes_lie_two_to_a_byte(dtype: int, shape: list[int], nbytes: int) -> None:
    assert nbytes_of(dtype, shape) == nbytes


def test_the_size_of_strings_is_what_their_descriptor_says() -> None:
    assert Tensor(STRING, [2, 3], 0, 0, 77).nbytes == 77
    assert Tensor(FLOAT32, [2, 3], 0, 0, 77).nbytes == 24


def test_the_largest_size_is_allowed_and_one_byte_more_is_not() -> None:
    assert nbytes_of(INT8, [NBYTES_MAX]) == NBYTES_MAX
    with pytest.raises(InvalidRequest):
        nbytes_of(INT8, [NBYTES_MAX + 1])


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, 0), (0, 4096), (4096, 0), (4095, 1), (1, 4095), (64, 128), (4032, 64)]
)
def test_a_range_inside_the_arena_passes(offset: int, nbytes: int) -> None:
    check_range(offset, nbytes, 4096)


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [
        (-1, 1),
        (-64, 64),
        (0, -1),
        (0, 4097),
        (4095, 2),
        (4096, 1),
        (4097, 0),
        (1 << 63, 0),
        (1 << 64, (1 << 64) - (1 << 64) + 1),
        ((1 << 64) - 1, 2),  # offset + nbytes is 1 in 64 bits
        (64, (1 << 64) - 32),  # offset + nbytes is 32 in 64 bits
        (64, (1 << 63)),
    ],
)
def test_a_range_that_leaves_the_arena_is_refused(offset: int, nbytes: int) -> None:
    with pytest.raises(InvalidRequest, match="outside its arena"):
        check_range(offset, nbytes, 4096)


@given(st.integers(-100, 300), st.integers(-100, 300), st.integers(0, 200))
def test_a_range_passes_exactly_when_all_its_bytes_are_there(offset: int, nbytes: int, size: int) -> None:
    inside = offset >= 0 and nbytes >= 0 and offset + nbytes <= size
    try:
        check_range(offset, nbytes, size)
        passed = True
    except InvalidRequest:
        passed = False
    assert passed == inside


@given(st.lists(st.integers(0, 40), max_size=5), st.sampled_from([1, 2, 7, 15]))
def test_sizes_agree_with_numpy_where_numpy_can_be_asked(shape: list[int], dtype: int) -> None:
    import numpy as np
    from batchyard.transport.dtypes import BY_CODE

    assert nbytes_of(dtype, shape) == np.broadcast_to(np.zeros((), BY_CODE[dtype].numpy), shape).nbytes


@pytest.mark.parametrize(
    "plain",
    [
        [1, [-1], 0, 0],
        [1, [2], -8, 0],
        [1, [2], 0, -1],
        [1, [NBYTES_MAX + 1], 0, 0],
        [1, [2], NBYTES_MAX + 1, 0],
        [1, [1] * (RANK_MAX + 1), 0, 0],
        [1, [2.0], 0, 0],
        ["float32", [2], 0, 0],
        [1, 2, 0, 0],
        [True, [2], 0, 0],
        [1, [2]],
    ],
)
def test_a_descriptor_that_cannot_be_is_refused_before_our_code_sees_it(plain: list[object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(plain), type=Tensor)


def test_a_slot_that_cannot_be_is_refused_before_our_code_sees_it() -> None:
    for plain in ([-1, 4], [0, -4], [0, NBYTES_MAX + 1], [0], ["0", 4]):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(plain), type=Slot)


def test_a_spec_reads_as_a_person_would_write_it() -> None:
    assert str(TensorSpec("image", 1, ["batch", 3, 224, 224])) == "image: float32[batch, 3, 224, 224]"
    assert str(TensorSpec("n", 7, [])) == "n: int64[]"
