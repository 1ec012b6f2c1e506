"""Drawn digits look like scans: their values, their shapes, and that they differ."""

from __future__ import annotations

import numpy as np
from batchyard.examples.training import synthetic


def test_drawn_digits_have_the_scans_shape_range_and_steps() -> None:
    drawn = synthetic.digits(40, seed=3)
    assert (drawn.images.shape, drawn.images.dtype) == ((40, 1, 8, 8), np.float32)
    assert (drawn.labels.dtype, np.bincount(drawn.labels).tolist()) == (np.int64, [4] * 10)
    np.testing.assert_array_equal(drawn.images * 16, np.round(drawn.images * 16))
    assert drawn.images.min() == 0
    assert drawn.images.max() == 1
    ink = drawn.images.mean((1, 2, 3))
    assert ink.min() > 0.08
    assert ink.max() < 0.6


def test_a_seed_draws_the_same_again_and_another_does_not() -> None:
    first, again, other = (synthetic.digits(20, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.images != other.images).any()


def test_no_two_of_a_digit_are_alike() -> None:
    drawn = synthetic.digits(100, seed=4)
    assert len({image.tobytes() for image in drawn.images}) == 100


def test_a_digit_is_nearer_to_its_own_kind_than_to_others() -> None:
    known, new = synthetic.digits(300, seed=5), synthetic.digits(50, seed=6)
    means = np.stack([known.images[known.labels == digit].mean(0).ravel() for digit in range(10)])
    nearest = ((new.images.reshape(50, 1, 64) - means) ** 2).sum(2).argmin(1)
    assert (nearest == new.labels).mean() > 0.7


def test_none_are_drawn_where_none_are_asked_for() -> None:
    assert synthetic.digits(0, seed=1).images.shape == (0, 1, 8, 8)
