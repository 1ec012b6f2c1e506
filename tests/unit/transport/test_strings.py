"""Strings as bytes: lengths before texts, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.transport import strings
from batchyard.transport.errors import InvalidRequest
from hypothesis import given
from hypothesis import strategies as st


def test_each_text_is_its_length_and_its_utf8() -> None:
    assert strings.encode(["ab", "", "ä"]) == b"\2\0\0\0ab\0\0\0\0\2\0\0\0\xc3\xa4"
    assert strings.encode([b"\xc3\xa4"]) == strings.encode(["ä"])
    assert strings.encode([]) == b""


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=9))
def test_what_goes_in_comes_out(texts: list[str]) -> None:
    array = strings.decode(strings.encode(texts), [len(texts)])
    assert array.dtype == object
    assert array.tolist() == texts


@pytest.mark.parametrize("shape", [[], [2, 3], [0, 5], [1, 1, 6]])
def test_any_shape_is_kept(shape: list[int]) -> None:
    count = int(np.prod(shape))
    array = strings.decode(strings.encode([str(n) for n in range(count)]), shape)
    assert array.shape == tuple(shape)
    assert array.ravel().tolist() == [str(n) for n in range(count)]


@pytest.mark.parametrize("value", [None, 5, 1.5, ["a"], object(), bytearray(b"a")])
def test_an_element_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"holds str, not {type(value).__name__}"):
        strings.encode(["a", value])


def test_half_a_character_is_refused_before_a_model_has_it() -> None:
    """It came back as the model's failure: `'ids' failed: a string is not UTF-8`."""
    with pytest.raises(InvalidRequest, match=r"UTF-8 can hold, not 'b\\udcff'"):
        strings.encode(["a", "b\udcff"])


@pytest.mark.parametrize(
    ("data", "shape", "said"),
    [
        (b"", [1], "0 bytes are too few for 1 strings"),
        (b"\1\0\0\0", [1], "beyond its tensor's bytes"),
        (b"\xff\xff\xff\xff", [1], "beyond its tensor's bytes"),
        (b"\1\0\0\0a\1\0\0\0", [2], "beyond its tensor's bytes"),
        (b"\1\0\0\0a\0", [1], "1 bytes are left over behind 1 strings"),
        (b"\0\0\0\0", [0], "4 bytes are left over behind 0 strings"),
        (b"\1\0\0\0\xff", [1], "not UTF-8"),
        (b"\1\0\0\0a", [1 << 40], "too few for 1099511627776 strings"),
    ],
)
def test_bytes_that_are_not_exactly_these_strings_are_refused(data: bytes, shape: list[int], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        strings.decode(data, shape)


@given(st.binary(max_size=60), st.lists(st.integers(0, 4), max_size=3))
def test_no_bytes_do_anything_but_decode_or_be_refused(data: bytes, shape: list[int]) -> None:
    try:
        array = strings.decode(data, shape)
    except InvalidRequest:
        return
    assert array.shape == tuple(shape)
    assert strings.encode(array.ravel()) == data
