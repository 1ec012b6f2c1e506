"""Training, its early stop, and the search. Skipped without torch: pip install -e '.[cpu,export,train]'."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.examples.training import comparison, datasets
from batchyard.examples.training.cifar import CIFAR10
from batchyard.examples.training.datasets import Dataset, Labelled, digits
from batchyard.examples.training.fit import Epoch, Judged, Progress, Settings, judge, train
from batchyard.examples.training.networks import cnn
from batchyard.examples.training.search import Found, search

from ...required import module

torch: Any = module("torch")
module("sklearn")

QUICK = Settings(epochs=3, rows=64, width=8)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(seed=20)


def weights(model: Any) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


def test_the_splits_share_no_scan_and_hold_every_digit(data: Dataset) -> None:
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1077, 270, 450]
    assert all(set(part.labels.tolist()) == set(range(10)) for part in parts)
    scans = [{image.tobytes() for image in part.images} for part in parts]
    assert not any(one & other for one, other in itertools.combinations(scans, 2))
    assert data.shape == (1, 8, 8)


def test_cifar_is_scaled_and_split_as_the_digits_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    small = replace(CIFAR10, train={"data_batch_1.bin": 50}, test={"test_batch.bin": 10})
    folder = tmp_path / small.folder
    folder.mkdir()
    for name, count in (small.train | small.test).items():
        records = rng.integers(0, 256, (count, small.record_bytes), np.uint8)
        records[:, 0] = np.arange(count) % 10
        records.tofile(folder / name)
    (folder / small.names).write_text("\n".join(f"class_{label}" for label in range(10)))
    monkeypatch.setattr(datasets, "CIFAR10", small)
    data = datasets.named("cifar10", 20, tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [40, 10, 10]
    assert np.bincount(data.validation.labels).tolist() == [1] * 10
    raw = np.fromfile(folder / "test_batch.bin", np.uint8).reshape(10, -1)[:, 1:]
    np.testing.assert_allclose(data.test.images.reshape(10, -1), raw / 255, rtol=1e-6)
    assert (data.shape, data.classes[9]) == ((3, 32, 32), "class_9")


def test_a_training_learns_and_its_seed_repeats_it_bit_for_bit(data: Dataset) -> None:
    first = train(data.train, 10, QUICK)
    assert weights(train(data.train, 10, QUICK).model) == weights(first.model)
    assert weights(train(data.train, 10, replace(QUICK, seed=21)).model) != weights(first.model)
    assert first.epochs[0].training.loss > first.epochs[-1].training.loss
    assert judge(first.model, data.test).accuracy > 0.5
    assert not first.model.training


def test_a_training_leaves_torch_as_it_was(data: Dataset) -> None:
    few = data.train.take(np.arange(64))
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    train(few, 10, replace(QUICK, epochs=1))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_labels_that_cannot_be_learnt_end_the_training_early_at_its_best(data: Dataset) -> None:
    rng = np.random.default_rng(0)
    few = data.train.take(np.arange(128))
    noise = Labelled(few.images, rng.permutation(few.labels))
    settings = replace(QUICK, epochs=60, patience=3, learning_rate=1e-2)
    trained = train(noise, 10, settings, validation=data.validation)
    assert len(trained.epochs) == trained.best.number + 3 < 60
    assert trained.best.validation is not None
    assert judge(trained.model, data.validation) == trained.best.validation
    losses = [epoch.validation.loss for epoch in trained.epochs if epoch.validation]
    assert min(losses) == trained.best.validation.loss


def test_progress_has_loss_accuracy_and_the_time_left() -> None:
    said: list[str] = []
    progress = Progress(Settings(epochs=10), said.append)
    for number in range(1, 11):
        progress(Epoch(number, Judged(0.5, 0.9), Judged(0.25, 0.95), 0.4))
    assert said == [
        "epoch  1/10  loss 0.5000  accuracy  90.0%  validation 0.2500  95.0%  4 s left at most",
        "epoch  4/10  loss 0.5000  accuracy  90.0%  validation 0.2500  95.0%  2 s left at most",
        "epoch  7/10  loss 0.5000  accuracy  90.0%  validation 0.2500  95.0%  1 s left at most",
        "epoch 10/10  loss 0.5000  accuracy  90.0%  validation 0.2500  95.0%",
    ]


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 100)])
def test_the_network_takes_small_images_and_large_ones(shape: tuple[int, int, int], classes: int) -> None:
    logits = cnn(shape, classes, width=4)(torch.zeros(2, *shape))
    assert tuple(logits.shape) == (2, classes)


def found(data: Dataset, trials: int, said: list[str]) -> Found:
    module("optuna")
    small = replace(
        data, train=data.train.take(np.arange(200)), validation=data.validation.take(np.arange(100))
    )
    return search(small, trials, Settings(epochs=5), said.append)


def test_a_search_starts_with_the_defaults_prunes_and_repeats_itself(data: Dataset) -> None:
    said: list[str] = []
    first = found(data, 8, said)
    assert first.trials[0].settings == Settings(epochs=5)
    assert first.best.loss == min(trial.loss for trial in first.trials if not trial.pruned)
    assert any(trial.pruned and trial.epochs < 5 for trial in first.trials)
    assert [line.split()[1] for line in said] == [f"{number}/8" for number in range(1, 9)]
    again = found(data, 3, [])
    assert [(t.settings, t.loss) for t in again.trials] == [(t.settings, t.loss) for t in first.trials[:3]]


def test_synthetic_and_real_rows_are_compared_on_real_ones(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "DRAWN_ROWS", 200)
    few = replace(data, train=data.train.take(np.arange(300)))
    said: list[str] = []
    results = comparison.compare(few, replace(QUICK, rows=16), (1,), said.append)
    drawn_and_real = [(one.drawn, one.real) for one in results]
    assert drawn_and_real == [(200, 0), (0, 100), (200, 100), (0, 300), (200, 300)]
    assert all(one.mean > 0.2 for one in results)
    assert said[2].startswith("200 drawn and 100 real ")
