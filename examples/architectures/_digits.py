"""The factories behind digits.toml. The underscore keeps this file from being taken for a candidate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..training.datasets import digits_split
from ..training.fit import Settings, deterministic, fit

CLASSES = 10
PIXELS = 64
SEED = 20
EPOCHS = 6


def mlp(width: int, depth: int, epochs: int = EPOCHS) -> Any:
    """`depth` hidden layers of `width`."""
    torch.manual_seed(SEED)
    layers: list[Any] = [nn.Flatten()]
    for index in range(depth):
        layers += [nn.Linear(PIXELS if index == 0 else width, width), nn.ReLU()]
    return trained(nn.Sequential(*layers, nn.Linear(width if depth else PIXELS, CLASSES)), epochs)


def cnn(width: int, depth: int, epochs: int = EPOCHS) -> Any:
    """`depth` convolutions, each of twice the channels and half the pixels of the one before."""
    torch.manual_seed(SEED)
    layers: list[Any] = []
    channels = 1
    for index in range(depth):
        out = width << index
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        channels = out
    side = 8 >> depth
    return trained(nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, CLASSES)), epochs)


def trained(model: Any, epochs: int) -> Any:
    """Fitted to the scans that are not held back; those in digits_test.npz are."""
    rows, _ = digits_split(SEED)
    settings = Settings(epochs=epochs, seed=SEED)
    if epochs:
        with deterministic(settings.seed, settings.threads):
            fit(model, rows, settings)
    return model.eval()
