"""The benchmark models load, and compute what their docstrings say: checked against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from batchyard.bench import models
from batchyard.bench.bare import Bare


@pytest.mark.parametrize("rows", [1, 3])
def test_tiny_is_the_mean_of_the_positive_part(tmp_path: Path, rows: int) -> None:
    x = models.sample("tiny", rows)
    y = Bare(models.write("tiny", tmp_path), x).run()
    np.testing.assert_allclose(y, np.maximum(x, 0).mean(axis=(2, 3)), rtol=1e-5)


def test_frame_is_the_mean_of_eight_by_eight_pixels(tmp_path: Path) -> None:
    x = models.sample("frame", 1)
    y = Bare(models.write("frame", tmp_path), x).run()
    expected = x.reshape(1, 3, 135, 8, 240, 8).mean(axis=(3, 5))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_cnn_scores_rows_independently_of_their_neighbours(tmp_path: Path) -> None:
    path = models.write("cnn", tmp_path)
    x = models.sample("cnn", 8)
    together = Bare(path, x).run()
    assert together.shape == (8, 10)
    assert np.std(together) > 0.01  # the weights are alive
    for row in range(8):
        alone = Bare(path, np.ascontiguousarray(x[row : row + 1])).run()
        np.testing.assert_allclose(alone[0], together[row], atol=1e-4)


def test_models_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in models.NAMES:
        first = models.write(name, tmp_path).read_bytes()
        assert models.write(name, tmp_path).read_bytes() == first


def test_bare_reads_the_tensor_where_it_lies(tmp_path: Path) -> None:
    x = models.sample("tiny", 1)
    bare = Bare(models.write("tiny", tmp_path), x)
    x[:] = 2.0
    assert bare.run() is bare.output
    np.testing.assert_allclose(bare.output, 2.0)


def test_bare_counts_rows_and_not_runs(tmp_path: Path) -> None:
    bare = Bare(models.write("tiny", tmp_path), models.sample("tiny", 8))
    measured = bare.slice(0.01, warm_up_s=0)
    assert measured.rows == 8
    assert len(measured.latencies_ns) > 1
