"""Handles of a batch in columns: what is of one shape is checked and copied at once, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from batchyard.gpuworker.handles import Columns, ItemRefused, Uniform, check, columns_of, decode
from batchyard.gpuworker.layout import Layout
from batchyard.tests.unit.gpuworker.backends.test_onnx import ARENA, ARENA_BYTES, Yard, folded
from batchyard.transport.messages import Item
from batchyard.transport.tensors import ABSENT, Slot, Tensor

FLOAT = 1
ROWS = 3


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.close()


def items_of(yard: Yard, count: int = 4) -> list[Item]:
    """Requests of [2, ROWS, 5] with a slot each, with gaps that are no two alike."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        x = rng.standard_normal((2, ROWS, 5)).astype(np.float32)
        items.append(Item(ARENA, [yard.put(x, FLOAT, 7 * number)], [Slot(yard.room(x.nbytes, 3), x.nbytes)]))
    return items


def test_columns_read_and_write_each_requests_own_bytes(yard: Yard) -> None:
    items = items_of(yard)
    columns = columns_of(items, yard.memory, 1)
    assert columns is not None
    layout = Layout(FLOAT, [2, 5], 1)
    blocks = columns.read(0, layout, ROWS)
    assert blocks.shape == (4, 2, ROWS * 20)
    columns.write(0, blocks)
    for item in items:
        sent = yard.read(Slot(item.inputs[0].offset, 120), np.float32, (2, ROWS, 5))
        np.testing.assert_array_equal(yard.read(item.outputs[0], np.float32, (2, ROWS, 5)), sent)


@pytest.mark.parametrize("place", [0, 2])
def test_a_handle_outside_of_its_arena_is_found_wherever_it_stands(yard: Yard, place: int) -> None:
    for what in ("input", "slot"):
        items = items_of(yard)
        if what == "input":
            items[place].inputs[0].offset = ARENA_BYTES - 119
        else:
            items[place].outputs[0].offset = ARENA_BYTES - 119
        assert columns_of(items, yard.memory, 1) is None
        for index in range(place):
            check(index, items[index], yard.memory, "net", 1)
        with pytest.raises(ItemRefused, match="outside its arena") as refused:
            check(place, items[place], yard.memory, "net", 1)
        assert refused.value.item == place


def test_what_ends_where_its_arena_ends_is_read(yard: Yard) -> None:
    items = items_of(yard)
    items[1].inputs[0].offset = ARENA_BYTES - 120
    columns = columns_of(items, yard.memory, 1)
    assert columns is not None
    columns.read(0, Layout(FLOAT, [2, 5], 1), ROWS)


def other_arena(item: Item) -> None:
    item.arena += 1


def other_shape(item: Item) -> None:
    item.inputs[0].shape = [2, ROWS + 1, 5]


def other_type(item: Item) -> None:
    item.inputs[0].dtype = 6


def left_out(item: Item) -> None:
    item.inputs[0] = Tensor(ABSENT, [], 0)


def no_slot(item: Item) -> None:
    item.outputs = []


def other_slot(item: Item) -> None:
    item.outputs[0].nbytes += 4


def a_part(item: Item) -> None:
    item.rows = 1


def wanted_by_others(item: Item) -> None:
    item.digest = b"x" * 16


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize(
    "differ", [other_arena, other_shape, other_type, left_out, no_slot, other_slot, a_part, wanted_by_others]
)
def test_requests_that_differ_in_more_than_their_offsets_are_in_no_columns(
    yard: Yard, differ: Any, place: int
) -> None:
    items = items_of(yard)
    differ(items[place])
    assert columns_of(items, yard.memory, 1) is None


def test_an_input_that_all_leave_out_has_no_column(yard: Yard) -> None:
    items = items_of(yard)
    for item in items:
        item.inputs.append(Tensor(ABSENT, [], 0))
    columns = columns_of(items, yard.memory, 2)
    assert columns is not None
    assert columns.inputs[1] is None
    assert columns.shared(1, 0) == b""


def test_an_input_is_shared_only_where_every_request_has_the_same_bytes(yard: Yard) -> None:
    rates = [yard.put(np.array([rate]), 7, 1) for rate in (8000, 8000, 8000)]
    columns = columns_of([Item(ARENA, [rate], []) for rate in rates], yard.memory, 1)
    assert columns is not None
    assert columns.shared(0, 8) == np.array([8000]).tobytes()
    yard.segment.buffer[rates[2].offset] ^= 1
    assert columns.shared(0, 8) is None


def test_requests_that_came_in_columns_are_read_as_those_that_did_not(yard: Yard) -> None:
    items = items_of(yard)
    came = decode(msgspec.msgpack.encode(folded(items)))
    assert isinstance(came, Uniform)
    assert len(came) == 4
    assert came[0] == items[0]
    columns, expected = columns_of(came, yard.memory, 1), columns_of(items, yard.memory, 1)
    assert columns is not None
    assert expected is not None
    for mine, other in zip(columns.inputs + columns.outputs, expected.inputs + expected.outputs, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert list(came) == items
    assert came[1:3] == items[1:3]
    mixed = decode(msgspec.msgpack.encode([*folded(items), Item(ARENA, [], [])]))
    assert list(mixed) == [*items, Item(ARENA, [], [])]


@pytest.mark.parametrize("place", [0, 2])
def test_of_columns_every_offset_is_looked_at(yard: Yard, place: int) -> None:
    for what in ("inputs", "outputs"):
        items = items_of(yard)
        getattr(items[place], what)[0].offset = ARENA_BYTES - 119
        came = decode(msgspec.msgpack.encode(folded(items)))
        assert columns_of(came, yard.memory, 1) is None
        with pytest.raises(ItemRefused, match="outside its arena") as refused:
            check(place, came[place], yard.memory, "net", 1)
        assert refused.value.item == place


def test_columns_of_a_length_that_fits_no_item_are_refused(yard: Yard) -> None:
    (item,) = folded(items_of(yard))
    item.more.append(0)
    with pytest.raises(ItemRefused, match="7 offsets for items of 2"):
        decode(msgspec.msgpack.encode([item]))


def test_what_lies_side_by_side_is_seen_in_columns(yard: Yard) -> None:
    offsets = np.array([0, 64, 128])
    columns = Columns(yard.memory.range(ARENA, 0, 0), [offsets, offsets[[0, 2, 1]], None], [offsets])
    assert [columns.inputs_touch(index, 64) for index in range(3)] == [True, False, False]
    assert (columns.inputs_touch(0, 63), columns.outputs_touch(0, 64), columns.outputs_touch(0, 32)) == (False, True, False)


def test_handles_that_are_none_are_nobodys_item() -> None:
    with pytest.raises(ItemRefused) as refused:
        decode(b"\xc1")
    assert refused.value.item == -1
