"""The data sets that examples train on, by name, split so that what is reported was never trained on.

`digits` comes with scikit-learn (1797 real scans of handwritten digits, 8x8 pixels, 17 grey levels) and
needs no network; `cifar10` and `cifar100` are fetched (cifar.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cifar import CIFAR10, CIFAR100, load
from .download import Say

Array = npt.NDArray[Any]

HELD_BACK = 0.25  # of the digits, for the test
VALIDATION = 0.2  # of what is left to train on
GREY_MAX = 16.0  # load_digits counts ink in 4x4 blocks: 0..16
NAMES = ("digits", "cifar10", "cifar100")


@dataclass(frozen=True)
class Labelled:
    """images: float32[n, channels, height, width] in 0..1; labels: int64[n]."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Array) -> Labelled:
        return Labelled(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """`train` to learn from, `validation` to choose by, `test` to report; they have no row in common."""

    name: str
    classes: tuple[str, ...]
    train: Labelled
    validation: Labelled
    test: Labelled

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def digits_split(seed: int) -> tuple[Labelled, Labelled]:
    """What may be trained on, and what is held back: float32[n, 1, 8, 8].

    Stratified: every digit is held back in the same proportion.
    """
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    images = (scans / GREY_MAX).astype(np.float32).reshape(-1, 1, 8, 8)
    return stratified(Labelled(images, labels.astype(np.int64)), HELD_BACK, seed)


def stratified(whole: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """(the rest, `share` of the rows), each class in the same proportion in both."""
    from sklearn.model_selection import train_test_split

    rest, taken = train_test_split(
        np.arange(len(whole)), test_size=share, stratify=whole.labels, random_state=seed
    )
    return whole.take(rest), whole.take(taken)


def digits(seed: int) -> Dataset:
    """1077 scans to train on, 270 to choose by, 450 to report."""
    learn, test = digits_split(seed)
    train, validation = stratified(learn, VALIDATION, seed)
    return Dataset("digits", tuple("0123456789"), train, validation, test)


def named(name: str, seed: int, folder: Path, say: Say = lambda line: None) -> Dataset:
    """The data set called `name`, one of NAMES; `folder` is where CIFAR's files lie, or are put.

    CIFAR as float32 takes about 0.8 GB. Raises Unavailable, Damaged, OSError; ModuleNotFoundError
    without scikit-learn.
    """
    if name == "digits":
        return digits(seed)
    cifar = load({"cifar10": CIFAR10, "cifar100": CIFAR100}[name], folder, say)
    train, validation = stratified(_labelled(cifar.train), VALIDATION, seed)
    return Dataset(name, cifar.names, train, validation, _labelled(cifar.test))


def _labelled(rows: Any) -> Labelled:
    return Labelled(rows.images.astype(np.float32) / np.float32(255), rows.labels.astype(np.int64))
