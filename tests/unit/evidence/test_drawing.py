"""Inputs that are invented: what a tensor's name and type suggest, and what is tried when that does not run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.evidence import drawing as room
from batchyard.evidence.axes import SHARED
from batchyard.evidence.drawing import FEW, SEED, SIZES, VOCABULARIES, Drawing, TooLarge, find, ways
from batchyard.transport.dtypes import BY_CODE, BY_NAME
from batchyard.transport.tensors import TensorSpec

FLOAT, INT64, STRING, BOOL, UINT8, INT4 = 1, 7, 8, 9, 2, 22


def spec(name: str, dtype: int, *shape: int | str, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, dtype, list(shape), optional)


def drawn(one: TensorSpec, axis: int = 0, rows: int = 4, **how: Any) -> np.ndarray[Any, Any]:
    return Drawing([one], [axis], **how).feeds(rows, np.random.default_rng(SEED))[one.name]


def test_the_same_seed_draws_the_same() -> None:
    inputs = [spec("x", FLOAT, "n", 8), spec("ids", INT64, "n", "t")]
    one, other = (Drawing(inputs, [0, 0]).feeds(3, np.random.default_rng(SEED)) for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in ("x", "ids"))


@pytest.mark.parametrize("entry", BY_CODE.values(), ids=lambda entry: entry.name)
def test_every_element_type_can_be_drawn(entry: Any) -> None:
    array = drawn(spec("x", entry.code, "n", 5))
    assert array.shape == (4, 5)
    assert array.dtype == entry.numpy or (entry.name.startswith("float8") and array.dtype == np.uint8)  # its bits
    assert len({row.tobytes() if entry.kind != "s" else str(row) for row in array}) > 1, "rows that differ"


@pytest.mark.parametrize("entry", [BY_NAME["int4"], BY_NAME["uint4"], BY_NAME["int8"]], ids=lambda e: e.name)
def test_whole_numbers_stay_inside_their_type(entry: Any) -> None:
    array = drawn(spec("x", entry.code, "n", 500)).astype(np.int64)
    assert 0 <= array.min() <= array.max() < entry.top


def test_rows_lie_on_the_axis_that_is_said_and_a_shared_input_has_none() -> None:
    inputs = [spec("x", FLOAT, 2, "n", 3), spec("w", FLOAT, "k", 3)]
    feeds = Drawing(inputs, [1, SHARED]).feeds(4, np.random.default_rng(0))
    assert feeds["x"].shape == (2, 4, 3)
    assert feeds["w"].shape == (SIZES[0], 3)


def test_an_optional_input_is_left_out() -> None:
    inputs = [spec("x", FLOAT, "n", 2), spec("scale", FLOAT, 2, optional=True)]
    assert list(Drawing(inputs, [0, SHARED]).feeds(2, np.random.default_rng(0))) == ["x"]


@pytest.mark.parametrize(
    ("axis", "size"), [("height", 64), ("W", 64), ("audio_samples", 512), ("past_length", 2), ("tokens", SIZES[0])]
)
def test_the_size_of_a_free_axis_is_what_its_name_suggests(axis: str, size: int) -> None:
    assert drawn(spec("x", FLOAT, "n", axis)).shape == (4, size)
    assert drawn(spec("x", FLOAT, "n", axis), size=7).shape == (4, 7)


def test_the_sizes_that_are_asked_for_go_before_all() -> None:
    one = spec("x", FLOAT, "n", "height", "t")
    feeds = Drawing([one], [0]).feeds(2, np.random.default_rng(0), {"t": 11})
    assert feeds["x"].shape == (2, 64, 11)


def test_masks_are_ones_and_lengths_fit() -> None:
    assert (drawn(spec("attention_mask", INT64, "n", "t")) == 1).all()
    assert drawn(spec("mask", BOOL, "n", "t")).all()
    assert (drawn(spec("lengths", INT64, "n")) == SIZES[0]).all()
    assert (drawn(spec("lengths", INT64, "n"), size=64) == 64).all()
    assert (drawn(spec("lengths", INT64, "n"), size=64, vocabulary=(0, 3)) == 3).all()


def test_rows_first_differ_in_length_and_then_are_alike() -> None:
    """A model may cut all rows to the longest of them; another takes rows of one length alone."""
    inputs = [spec("ids", INT64, "n", "t"), spec("mask", INT64, "n", "t"), spec("lengths", INT64, "n")]
    drawings = ways(inputs, [0, 0, 0], 1 << 62)
    first, second = (next(drawings).feeds(5, np.random.default_rng(0)) for _ in range(2))
    assert list(first["lengths"]) == list(first["mask"].sum(1)) == [7, 6, 5, 4, 7]
    assert (first["mask"] == np.sort(first["mask"], 1)[:, ::-1]).all()
    assert list(second["lengths"]) == list(second["mask"].sum(1)) == [7] * 5
    moved = Drawing([spec("lens", INT64, 1, "n")], [1], varied=True).feeds(3, np.random.default_rng(0))
    assert moved["lens"].tolist() == [[7, 6, 5]]


def test_bytes_of_an_image_are_drawn_whole_and_other_indices_from_a_vocabulary() -> None:
    assert drawn(spec("image", UINT8, "n", 3, 20, 20)).max() > 200
    assert drawn(spec("codes", UINT8, "n", 900)).max() < 100
    assert drawn(spec("ids", INT64, "n", 900), vocabulary=(0, 3)).max() == 2
    assert drawn(spec("divisor", INT64, "n", 900), vocabulary=(1, 10)).min() == 1
    assert drawn(spec("token_type_ids", INT64, "n", 900)).max() == 1
    assert (drawn(spec("sr", INT64), axis=SHARED) == 16_000).all()


def test_a_switch_is_on_in_one_drawing_and_off_in_the_other() -> None:
    """Dropout draws its mask over the whole batch where `training` is true."""
    usual = Drawing([spec("x", FLOAT, "n"), spec("training", BOOL)], [0, SHARED])
    for how, on in ((usual, True), (usual.other_values(), False)):
        assert how.feeds(2, np.random.default_rng(0))["training"] == on


def test_other_values_are_few_whole_numbers_and_larger_fractions() -> None:
    inputs = [spec("x", FLOAT, "n", 400), spec("k", INT64, "n", 400)]
    usual = Drawing(inputs, [0, 0])
    one, other = (how.feeds(2, np.random.default_rng(0)) for how in (usual, usual.other_values()))
    assert set(np.unique(other["k"])) == set(range(*FEW))
    assert np.abs(other["x"]).max() > 5 * np.abs(one["x"]).max()


def test_strings_are_texts() -> None:
    assert all(isinstance(text, str) for text in drawn(spec("text", STRING, "n", 2)).ravel())


def test_a_tensor_that_is_too_large_to_be_tried_is_not_drawn() -> None:
    with pytest.raises(TooLarge, match="too large to be tried"):
        drawn(spec("x", FLOAT, "n", 1 << 30))


def test_a_large_tensor_repeats_what_is_drawn_and_its_rows_differ() -> None:
    array = drawn(spec("x", FLOAT, "n", 3, 1080, 1920), rows=2)
    assert array.shape == (2, 3, 1080, 1920)
    assert np.mean(array[0] == array[1]) < 0.01


# ---- what is tried ------------------------------------------------------------------------------


def answer(feeds: dict[str, Any]) -> list[Any]:
    return list(feeds.values())


def test_the_first_guess_is_kept_when_it_runs() -> None:
    ran: list[Any] = []
    found = find([spec("ids", INT64, "n", "t")], [0], lambda feeds: ran.append(feeds) or answer(feeds))
    assert found is not None
    assert len(ran) == 1
    assert found.feeds(500, np.random.default_rng(0))["ids"].max() == VOCABULARIES[0][1] - 1


def test_indices_are_drawn_smaller_until_they_are_in_the_table() -> None:
    table = np.zeros((4, 2))
    found = find([spec("ids", INT64, "n", 50)], [0], lambda feeds: [table[feeds["ids"]]])
    assert found is not None
    assert found.feeds(500, np.random.default_rng(0))["ids"].max() == 2


def test_sizes_are_tried_until_one_fits() -> None:
    def run(feeds: dict[str, Any]) -> list[Any]:
        return [feeds["x"].reshape(len(feeds["x"]), -1, 32)]

    found = find([spec("x", FLOAT, "n", "t")], [0], run)
    assert found is not None
    assert found.feeds(1, np.random.default_rng(0))["x"].shape[1] % 32 == 0


def test_where_nothing_that_is_drawn_runs_zeros_are_tried_and_then_it_is_given_up() -> None:
    def zeros_alone(feeds: dict[str, Any]) -> list[Any]:
        assert not feeds["x"].any()
        return answer(feeds)

    found = find([spec("x", FLOAT, "n", 2)], [0], zeros_alone)
    assert found is not None
    assert not found.feeds(2, np.random.default_rng(0))["x"].any()
    assert find([spec("x", FLOAT, "n", 2)], [0], lambda feeds: 1 / 0) is None  # type: ignore[arg-type,return-value]


def test_tries_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def run(feeds: dict[str, Any]) -> list[Any]:
        ran.append(feeds)
        raise RuntimeError("no")

    inputs = [spec("ids", INT64, "n", "t")]
    assert find(inputs, [0], run) is None
    assert len(ran) == len(VOCABULARIES) * (1 + len(SIZES)) + 1
    ran.clear()
    monkeypatch.setattr(room, "TRY_NS_MAX", -1)
    assert find(inputs, [0], run) is None
    assert len(ran) == 1, "one that takes long is not tried again and again"


def test_there_is_always_one_way_to_draw_and_few_where_nothing_is_free() -> None:
    assert len(list(ways([spec("x", FLOAT, "n", 3)], [0], -1))) == 1
    assert len(list(ways([spec("x", FLOAT, "n", 3)], [0], 1 << 62))) == 2  # and zeros


def test_a_single_whole_number_is_not_zero_where_there_is_a_choice() -> None:
    """It may be a step or a divisor: onnxruntime's STFT ends the process over a step of 0."""
    for vocabulary in VOCABULARIES:
        drawing = Drawing([spec("frame_step", INT64)], [SHARED], vocabulary=vocabulary)
        for each in (drawing, drawing.other_values()):
            values = {int(each.feeds(2, np.random.default_rng(seed))["frame_step"]) for seed in range(30)}
            assert 0 not in values or vocabulary[1] == 1
