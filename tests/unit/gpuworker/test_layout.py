"""Where rows lie: layouts of any batch axis, and buffers that grow when something is gathered."""

from __future__ import annotations

import numpy as np
import pytest
from batchyard.gpuworker.layout import Buffer, Layout, is_neighbour, tail_of
from batchyard.transport.tensors import Tensor

FLOAT, INT4 = 1, 22


@pytest.mark.parametrize(
    ("shape", "axis", "tail"),
    [([5, 2, 3], 0, (2, 3)), ([2, 5, 3], 1, (2, 3)), ([2, 3, 5], 2, (2, 3)), ([2, 3], -1, (2, 3)), ([5], 0, ())],
)
def test_a_shape_is_taken_apart_and_put_together(shape: list[int], axis: int, tail: tuple[int, ...]) -> None:
    assert tail_of(shape, axis) == tail
    layout = Layout(FLOAT, tail, axis)
    assert layout.shape(5) == shape
    assert layout.nbytes(5) == int(np.prod(shape)) * 4
    assert layout.nbytes(0) == (0 if axis >= 0 else 24)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_rows_are_where_numpy_has_them(axis: int) -> None:
    shape = [2, 3, 4]
    shape.insert(axis, 5)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    layout = Layout(FLOAT, tail_of(shape, axis), axis)
    blocks = layout.blocks(array.tobytes(), 5)
    assert blocks.shape == (layout.outer, 5, layout.inner)
    for row in range(5):
        assert blocks[:, row].tobytes() == np.take(array, row, axis).tobytes()
    assert (layout.outer == 1) is (axis == 0)


def test_a_tensor_without_rows_is_one_block() -> None:
    layout = Layout(FLOAT, [2, 3], -1)
    assert (layout.outer, layout.inner, layout.row_nbytes) == (1, 24, 24)
    assert layout.shape(7) == [2, 3]


def test_tails_without_elements_have_no_bytes() -> None:
    layout = Layout(FLOAT, [0, 4], 1)
    assert (layout.nbytes(9), layout.shape(9)) == (0, [0, 9, 4])


def test_a_buffer_has_no_room_before_something_is_gathered_and_then_enough() -> None:
    """A model whose row is a gigabyte once had room for 32 of them made when it was loaded."""
    buffer = Buffer()
    assert (len(buffer.array), buffer.address) == (1, 0)
    buffer.hold(100, 10_000)
    assert len(buffer.view) == 100
    assert buffer.address == buffer.array.ctypes.data
    place = buffer.address
    buffer.hold(40, 10_000)
    assert buffer.address == place, "a binding names it"
    buffer.hold(101, 10_000)
    assert len(buffer.view) == 200
    buffer.hold(250, 300)
    assert len(buffer.view) == 300, "no more than the largest batch takes"
    buffer.hold(900, 300)
    assert len(buffer.view) == 900
    buffer.view[899] = 7
    assert buffer.array[899] == 7


def test_room_for_nothing_still_has_an_address() -> None:
    buffer = Buffer()
    buffer.hold(0, 0)
    assert buffer.address


def test_neighbours_touch() -> None:
    left = Tensor(FLOAT, [2, 3], 64)
    assert is_neighbour(left, Tensor(FLOAT, [1], 88))
    assert not is_neighbour(left, Tensor(FLOAT, [1], 96))
    assert is_neighbour(Tensor(INT4, [3], 0), Tensor(INT4, [1], 2))
