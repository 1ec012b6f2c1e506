"""Four families of models to try `batchyard export` on, untrained, the same weights every time.

    batchyard export batchyard.examples.zoo:resnet18 resnet18.onnx --input 1,3,32,32 --quantize best
    batchyard export --all examples/zoo.toml out/

All take float32[batch, 3, 32, 32] and give float32[batch, 10], but `transformer`: int64[batch, 64] tokens
below 1000 to float32[batch, 10]. Needs torch (`pip install -e ".[cpu,export]"`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 10
TOKENS = 1000
LENGTH = 64
WIDTH = 256


def mlp() -> Any:
    """3.7 million weights, all in matrix products."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(3 * 32 * 32, 1024),
        nn.ReLU(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Linear(512, CLASSES),
    ]
    return settled(nn.Sequential(nn.Flatten(), *layers))


def cnn() -> Any:
    """Four convolutions with batch norm."""
    torch.manual_seed(0)
    layers: list[Any] = []
    for channels, out, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES)))


class Block(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Two convolutions and a way around them (He et al., 2015, "basic block")."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        around = [nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)]
        self.around = nn.Sequential(*around) if stride > 1 or channels != out else nn.Identity()

    def forward(self, image: Any) -> Any:
        return torch.relu(self.second(self.first(image)) + self.around(image))


def resnet18() -> Any:
    """ResNet-18 with its stem of 7x7 and pool: 11.2 million weights."""
    torch.manual_seed(0)
    layers: list[Any] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(channels, out, stride), Block(out, out, 1)]
        channels = out
    return settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)))


class Transformer(nn.Module):  # type: ignore[misc]
    """Tokens to classes: embedding, four encoder layers with four heads, mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.place = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.layers(self.embed(tokens) + self.place).mean(1))


def transformer() -> Any:
    """3.4 million weights: int64[batch, 64] -> float32[batch, 10]."""
    torch.manual_seed(0)
    return Transformer().eval()


def settled(model: Any) -> Any:
    """Batch norms that have seen a little data: with their first statistics they would do nothing."""
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(16, 3, 32, 32))
    return model.eval()


def images(seed: int = 20, rows: int = 64) -> Any:
    """Batches to calibrate with: noise, as nothing here is trained."""
    yield np.random.default_rng(seed).standard_normal((rows, 3, 32, 32)).astype(np.float32)


def images_held_back() -> Any:
    """Other noise, to be judged by."""
    return images(seed=21, rows=256)


def tokens(seed: int = 20, rows: int = 64) -> Any:
    """The same for `transformer`."""
    yield np.random.default_rng(seed).integers(0, TOKENS, (rows, LENGTH))


def tokens_held_back() -> Any:
    return tokens(seed=21, rows=256)
