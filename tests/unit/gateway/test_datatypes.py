"""Types and their JSON: what numpy would convert in silence is refused here."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from batchyard.client.remote.calls import bytes_of
from batchyard.gateway import datatypes
from batchyard.gateway.datatypes import (
    BY_NAME,
    NUMPY,
    check_shape,
    datatype_of,
    from_bytes,
    from_json,
    is_finite,
    to_json,
)
from batchyard.gateway.errors import Refusal


@pytest.mark.parametrize(
    ("data", "dtype", "said"),
    [
        ([1e300], "float32", "cannot hold"),
        ([70000.0], "float16", "cannot hold"),
        ([-1], "uint8", "cannot hold"),
        ([256], "uint8", "cannot hold"),
        ([2**63], "int64", "cannot hold"),
        ([2**64], "uint64", "more than 64 bits"),
        ([1.5], "int32", "fractions"),
        ([1], "bool", "must be bool"),
        ([True], "float32", "true and false"),
        ([True, 2], "float32", "true and false"),
        ([[3, 4], [1, False]], "int64", "true and false"),
        ([True, 2], "bool", "must be bool"),
        (["1"], "float32", "got `str`"),
        ([None], "float32", "got `null`"),
        ({"a": 1}, "float32", "got `object`"),
        ([[1, 2], [3]], "float32", "not a tensor"),
        ([1], "complex64", "send it as bytes"),
    ],
)
def test_json_that_a_type_cannot_hold_is_refused(data: object, dtype: str, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        from_json(json.dumps(data).encode(), np.dtype(dtype), "input 'x'")


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ([[1, 2], [3, 4]], "float32"),
        ([255, 0], "uint8"),
        ([2**64 - 1], "uint64"),
        ([-(2**63)], "int64"),
        ([True, False], "bool"),
        ([], "float32"),
        (3, "int64"),
        ([65504.0], "float16"),
    ],
)
def test_json_that_fits_keeps_its_values(data: object, dtype: str) -> None:
    array = from_json(json.dumps(data).encode(), np.dtype(dtype), "x")
    assert array.dtype == dtype
    assert array.tolist() == data


def test_lists_deeper_than_numpy_goes_are_refused() -> None:
    with pytest.raises(Refusal):
        from_json(b"[" * 80 + b"1" + b"]" * 80, np.dtype("float32"), "x")


def test_one_long_text_does_not_become_an_array_of_long_texts() -> None:
    """numpy would ask for 8 GB here, and get them."""
    data = b'["' + b"a" * 1_000_000 + b'",' + b'"",' * 2000 + b'""]'
    tracemalloc.start()
    try:
        with pytest.raises(Refusal, match="got `str`"):
            from_json(data, np.dtype("float32"), "x")
        assert tracemalloc.get_traced_memory()[1] < 10 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [[-1], [2**40, 2], [1] * 33, [2**62, 0], [2**40, 2**40, 0]])
def test_a_shape_that_no_tensor_has_is_refused(shape: list[int]) -> None:
    with pytest.raises(Refusal, match="impossible shape"):
        check_shape(shape, "x")


def test_bytes_must_be_just_as_many_as_the_shape_takes() -> None:
    array = from_bytes(bytes(range(16)), np.dtype("<f4"), [2, 2], "x")
    assert array.shape == (2, 2)
    assert from_bytes(b"", np.dtype("<f4"), [0, 3], "x").shape == (0, 3)
    with pytest.raises(Refusal, match="15 bytes"):
        from_bytes(bytes(15), np.dtype("<f4"), [2, 2], "x")


def test_the_bytes_of_an_array_are_in_c_order_whatever_its_own() -> None:
    array = np.arange(6, dtype="<i2").reshape(2, 3).T
    assert bytes(bytes_of(array)) == array.tobytes()
    assert bytes(bytes_of(np.array(7, "<i2"))) == b"\x07\x00"


def test_outputs_that_json_cannot_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_json(np.array([[1, 2]], "i4"), "y") == [[1, 2]]
    with pytest.raises(Refusal, match="no JSON form"):
        to_json(np.zeros(2, "c8"), "y")
    monkeypatch.setattr(datatypes, "JSON_ELEMENTS_MAX", 3)
    with pytest.raises(Refusal, match="4 elements"):
        to_json(np.zeros(4), "y")


TEXT = np.dtype(object)


def test_strings_are_read_and_written_with_their_lengths() -> None:
    raw = b"\x01\0\0\0a\0\0\0\0\x02\0\0\0\xc3\xa9"
    array = from_bytes(raw, TEXT, [3, 1], "x")
    assert array.tolist() == [["a"], [""], ["é"]]
    assert bytes(bytes_of(array)) == raw


@pytest.mark.parametrize(
    "raw", [b"\x05\0\0\0a", b"\x01\0", b"\xff\xff\xff\xff", b"\x01\0\0\0a", b"", b"\x01\0\0\0\xff\0\0\0\0"]
)
def test_strings_whose_lengths_lie_or_that_are_no_text_are_refused(raw: bytes) -> None:
    with pytest.raises(Refusal, match="input 'x': "):
        from_bytes(raw, TEXT, [2], "input 'x'")


def test_more_strings_than_may_keep_others_waiting_are_refused_before_they_are_read() -> None:
    """16 million empty ones fit a body, and took seconds in which nobody else was answered."""
    for shape in ([datatypes.STRINGS_MAX + 1], [1 << 24]):
        with pytest.raises(Refusal, match="fewer rows"):
            from_bytes(b"", TEXT, shape, "x")
    with pytest.raises(Refusal, match="fewer rows"):
        from_json(b"[" + b'"",' * datatypes.STRINGS_MAX + b'""]', TEXT, "x")


def test_json_of_strings_is_a_tensor_of_strings() -> None:
    assert from_json(b'[["a", ""], ["b", "c"]]', TEXT, "x").tolist() == [["a", ""], ["b", "c"]]
    for wrong in (b'["a", 1]', b'[["a"], ["b", "c"]]', b'["a", ["b"]]', b"{}"):
        with pytest.raises(Refusal, match="not a tensor"):
            from_json(wrong, TEXT, "x")


def test_words_for_numbers_that_json_has_not_are_read_where_they_may_stand() -> None:
    given = b'[["NaN", 1.5], ["-Infinity", 0.1]]'
    array = from_json(given, np.dtype("f8"), "x", words=True)
    assert np.array_equal(array, [[np.nan, 1.5], [-np.inf, 0.1]], equal_nan=True)
    for dtype, words in (("f8", False), ("i4", True)):
        with pytest.raises(Refusal, match="not a tensor"):
            from_json(given, np.dtype(dtype), "x", words)
    with pytest.raises(Refusal, match="cannot hold"):
        from_json(b'["NaN", 1e300]', np.dtype("f4"), "x", words=True)
    assert is_finite(np.ones(2, "f4"))
    assert not is_finite(np.array([np.inf], "f2"))


def test_a_type_without_a_name_in_the_protocol_says_what_to_use() -> None:
    assert datatype_of(16, "x") == BY_NAME["BF16"]
    assert "object" not in NUMPY
    with pytest.raises(Refusal, match="POST /predict"):
        datatype_of(14, "x")


def test_the_greatest_whole_numbers_come_whole() -> None:
    """Beside a small one numpy would make fractions of them."""
    uint64 = np.dtype(np.uint64)
    array = from_json(b"[[18446744073709551615, 1], [9223372036854775808, 0]]", uint64, "x")
    assert array.tolist() == [[2**64 - 1, 1], [2**63, 0]]
    for wrong in (
        b"[18446744073709551615, 1.5]",
        b"[18446744073709551615, -1]",
        b"[18446744073709551616, 1]",
    ):
        with pytest.raises(Refusal):
            from_json(wrong, uint64, "x")
