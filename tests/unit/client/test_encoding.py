"""Tensors whose bytes are not their array's: half bytes, two to a byte, and strings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from batchyard.client.encoding import decode, encode, plain
from batchyard.transport.errors import InvalidRequest
from batchyard.transport.tensors import nbytes_of

STRING, UINT4, INT4 = 8, 21, 22


@pytest.mark.parametrize("count", range(6))
def test_half_bytes_come_back_as_they_went_of_any_count(count: int) -> None:
    for dtype, kind, low in ((UINT4, ml_dtypes.uint4, 0), (INT4, ml_dtypes.int4, -8)):
        array = (np.arange(count) * 5 % 16 + low).astype(kind)
        data = encode(dtype, array)
        assert data.nbytes == nbytes_of(dtype, [count])
        back = decode(dtype, data.tobytes(), [count])
        assert back.dtype == kind
        assert back.astype(int).tolist() == array.astype(int).tolist()


def test_the_first_element_is_in_the_low_half_and_negative_ones_are_twos_complement() -> None:
    assert encode(UINT4, np.array([1, 2, 3], ml_dtypes.uint4)).tobytes() == b"\x21\x03"
    assert encode(INT4, np.array([-1, -8, 7], ml_dtypes.int4)).tobytes() == b"\x8f\x07"
    assert decode(INT4, b"\x8f\x07", [3]).astype(int).tolist() == [-1, -8, 7]


def test_raw_bytes_stand_in_for_a_type_that_numpy_lacks() -> None:
    assert encode(INT4, np.array([-1, -8, 7], np.int8)).tobytes() == b"\x8f\x07"
    assert encode(UINT4, np.array([1, 15], np.uint8)).tobytes() == b"\xf1"


@pytest.mark.parametrize("shape", [(), (3, 3), (2, 0, 5), (1, 1)])
def test_shapes_are_kept(shape: tuple[int, ...]) -> None:
    array = np.ones(shape, ml_dtypes.int4)
    back = decode(INT4, encode(INT4, array).tobytes(), list(shape))
    assert back.shape == shape
    assert (back.astype(int) == 1).all()


def test_rows_of_a_view_are_those_that_it_shows() -> None:
    array = np.arange(12).reshape(3, 4).astype(ml_dtypes.int4)[:, ::2]
    assert decode(INT4, encode(INT4, array).tobytes(), [3, 2]).astype(int).tolist() == array.astype(int).tolist()


@pytest.mark.parametrize(("data", "shape"), [(b"", [1]), (b"\0\0", [1]), (b"\0", [3]), (b"\0", [0])])
def test_other_bytes_than_the_shape_says_are_refused(data: bytes, shape: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="bytes are not"):
        decode(UINT4, data, shape)


@pytest.mark.parametrize("texts", [[], ["a", "", "ä" * 40]])
def test_strings_go_and_come(texts: list[str]) -> None:
    array: Any = np.array(texts, object)
    data = encode(STRING, array)
    assert data.dtype == np.uint8
    assert decode(STRING, data.data, [len(texts)]).tolist() == texts


# ---- arrays of every make -------------------------------------------------------------------------


class Exported:
    """What exports its memory as PyTorch, JAX and CuPy do, and is no array itself."""

    def __init__(self, array: Any = None, refusal: Exception | None = None) -> None:
        self.array, self.refusal = array, refusal

    def __dlpack__(self, **options: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return (1, 0) if self.array is None else self.array.__dlpack_device__()


def test_a_masked_array_is_refused_and_its_mask_never_dropped_in_silence() -> None:
    with pytest.raises(InvalidRequest, match=r"x\.filled\(value\), or x\.data"):
        plain(np.ma.masked_array([1.0, 2.0], [True, False]))


def test_subclasses_and_exporters_are_read_where_they_lie(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert plain(x) is x
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=(2, 3))
    for given in (x.view(np.recarray), mapped, Exported(x), memoryview(x)):
        array = plain(given)
        assert type(array) is np.ndarray
        assert np.array_equal(array, x)
        assert np.shares_memory(array, mapped if given is mapped else x)


def test_what_cannot_be_read_says_why() -> None:
    for refusal in (RuntimeError("it requires grad: use detach()"), TypeError("it lies on cuda:0"), BufferError("gone")):
        with pytest.raises(InvalidRequest, match=f"Exported can't be read as an array: {re.escape(str(refusal))}"):
            plain(Exported(refusal=refusal))
    with pytest.raises(InvalidRequest, match="can't be read as an array"):
        plain([[1.0], [2.0, 3.0]])


def test_numbers_and_lists_get_the_type_that_is_wanted() -> None:
    assert plain([1, 2], np.float32).dtype == np.float32
    assert plain(1, np.int64).dtype == np.int64
    assert plain(np.float64(1), np.float32).dtype == np.float64
