"""The network that examples train: a small CNN for images of any even size. Needs torch."""

from __future__ import annotations

from typing import Any

WIDTH = 16  # channels of the first convolution
DROPOUT = 0.3
POOL_TWICE = 16  # images of this height or more


def cnn(shape: tuple[int, int, int], classes: int, width: int = WIDTH, dropout: float = DROPOUT) -> Any:
    """float32[batch, *shape] (channels, height, width) -> logits float32[batch, classes].

    8x8 pixels are halved once, larger images twice; height and width must divide by 2, or 4.
    """
    from torch import nn

    channels, height, breadth = shape
    halvings = 2 if height >= POOL_TWICE else 1
    layers = [
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 3 * width, 3, padding=1),
        nn.ReLU(),
    ]
    if halvings == 2:
        layers.append(nn.MaxPool2d(2))
    pixels = (height >> halvings) * (breadth >> halvings)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(3 * width * pixels, classes))
