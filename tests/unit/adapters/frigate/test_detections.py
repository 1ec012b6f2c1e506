from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.adapters.frigate import detections as d
from batchyard.transport.errors import InvalidRequest

Array = np.ndarray[Any, Any]


def yolo_output(*boxes: tuple[int, float, float, float, float, float], classes: int = 3, count: int = 50) -> Array:
    """float32[1, 4 + classes, count] with these (class, score, centre x, centre y, width, height)."""
    table = np.zeros((4 + classes, count), np.float32)
    for place, (kind, score, *box) in enumerate(boxes):
        table[:4, place] = box
        table[4 + kind, place] = score
    return table[None]


def seen(rows: Array) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in rows if row[1] > 0]


def test_a_box_is_class_score_and_corners_as_shares_of_the_image() -> None:
    rows = d.yolo([yolo_output((2, 0.9, 50, 20, 20, 10))], width=100, height=50)
    assert rows.shape == (20, 6)
    assert rows.dtype == np.float32
    assert seen(rows) == [[2, 0.9, 0.3, 0.4, 0.5, 0.6]]  # y1, x1, y2, x2


def test_the_axes_may_be_the_other_way_round() -> None:
    output = yolo_output((1, 0.8, 50, 50, 10, 10), (0, 0.7, 20, 20, 10, 10))
    assert np.array_equal(d.yolo([output], 100, 100), d.yolo([output.transpose(0, 2, 1)], 100, 100))


def test_the_most_certain_come_first_and_doubtful_ones_not_at_all() -> None:
    output = yolo_output((0, 0.5, 10, 10, 5, 5), (1, 0.4, 50, 50, 5, 5), (2, 0.95, 80, 80, 5, 5))
    assert [row[:2] for row in seen(d.yolo([output], 100, 100))] == [[2, 0.95], [0, 0.5]]


def test_what_overlaps_a_more_certain_box_is_left_out_whatever_its_class() -> None:
    output = yolo_output((0, 0.9, 50, 50, 20, 20), (1, 0.8, 52, 50, 20, 20), (1, 0.7, 65, 50, 20, 20))
    assert [row[:2] for row in seen(d.yolo([output], 100, 100))] == [[0, 0.9], [1, 0.7]]


def test_of_many_the_twenty_most_certain_remain() -> None:
    boxes = [(0, 0.5 + place / 100, 10 * (place % 6) + 5, 10 * (place // 6) + 5, 4, 4) for place in range(30)]
    rows = d.yolo([yolo_output(*boxes)], 100, 100)
    assert np.allclose(rows[:, 1], [0.79 - place / 100 for place in range(20)])


def test_nothing_seen_is_all_zeros() -> None:
    assert not d.yolo([yolo_output()], 100, 100).any()
    assert not d.dfine([np.zeros((1, 9), np.int64), np.zeros((1, 9, 4), np.float32), np.zeros((1, 9), np.float32)], 9, 9).any()


def test_the_greedy_choice_is_that_of_the_plain_loop() -> None:
    rng = np.random.default_rng(20261201)
    for _ in range(50):
        low = rng.random((40, 2), np.float32) * 0.7
        corners = np.concatenate([low, low + 0.05 + rng.random((40, 2), np.float32) * 0.3], axis=1)
        scores = rng.permutation(40).astype(np.float32) / 40
        assert numbers_kept(corners, scores) == plain_choice(corners, scores)


def test_boxes_past_the_first_block_are_compared_with_all_before_them() -> None:
    rng = np.random.default_rng(20261202)
    for places in (3, 9, 30):  # boxes gather around so few places: many blocks give few detections
        low = (rng.integers(0, 1000, (places, 2)) / 1000).astype(np.float32)[rng.integers(0, places, 900)]
        low += rng.random((900, 2), np.float32) * 0.02
        corners = np.concatenate([low, low + 0.1 + rng.random((900, 2), np.float32) * 0.02], axis=1)
        scores = (d.SCORE_MIN + 0.1 + rng.permutation(900) / 2000).astype(np.float32)
        kept = numbers_kept(corners, scores)
        assert kept == plain_choice(corners, scores)
        assert len(kept) == 20 or places < 20


def numbers_kept(corners: Array, scores: Array) -> list[int]:
    """Which boxes are left, by a model whose box has its number for a class."""
    outputs = [np.arange(len(scores)), corners[None], scores[None]]
    return [int(row[0]) for row in d.dfine(outputs, 1, 1) if row[1] > 0]


def plain_choice(corners: Array, scores: Array) -> list[int]:
    kept: list[int] = []
    for place in np.argsort(-scores):
        if scores[place] > d.SCORE_MIN and all(overlap(corners[place], corners[other]) <= d.OVERLAP_MAX for other in kept):
            kept.append(int(place))
    return kept[:20]


def overlap(one: Array, other: Array) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(width * height / (areas[0] + areas[1] - width * height))


def test_a_model_that_removes_overlaps_itself_has_six_columns() -> None:
    table = np.zeros((300, 6), np.float32)
    table[0] = [10, 20, 30, 40, 0.9, 5]
    assert seen(d.yolo([table[None]], 100, 100)) == [[5, 0.9, 0.2, 0.1, 0.4, 0.3]]


def test_yolonas_has_corners_in_pixels() -> None:
    assert seen(d.yolonas([np.array([[0, 10, 20, 30, 40, 0.9, 5]], np.float32)], 100, 200)) == [
        [5, 0.9, 0.1, 0.1, 0.2, 0.3]
    ]


def test_rfdetr_has_shares_and_logits_with_a_background() -> None:
    boxes = np.array([[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.1, 0.1]]], np.float32)
    logits = np.array([[[0, 0, 9, 0], [9, 0, 0, 0]]], np.float32)
    (row,) = seen(d.rfdetr([boxes, logits], 320, 320))
    assert row[0] == 1
    assert row[2:] == [0.3, 0.4, 0.7, 0.6]


def test_dfine_has_pixels_of_the_image_that_it_was_told() -> None:
    outputs = [np.array([[3, 4]]), np.array([[[10, 20, 30, 40], [1, 1, 2, 2]]], np.float32), np.array([[0.8, 0.3]], np.float32)]
    assert seen(d.dfine(outputs, 100, 100)) == [[3, 0.8, 0.2, 0.1, 0.4, 0.3]]


@pytest.mark.parametrize(
    ("kind", "outputs", "sentence"),
    [
        ("yologeneric", [np.zeros((2, 3, 4, 5), np.float32)], r"shape \[2, 3, 4, 5\], not \[1, 4"),
        ("yolonas", [np.zeros((1, 5, 6), np.float32)], "flat format"),
        ("rfdetr", [np.zeros((1, 5, 4), np.float32)], "has 2 outputs, and this one 1"),
        ("dfine", [np.zeros((1, 5), np.float32)] * 2, "has 3 outputs, and this one 2"),
    ],
)
def test_outputs_of_another_kind_of_model_are_refused_with_a_sentence(kind: str, outputs: list[Array], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        d.KINDS[kind](outputs, 320, 320)
