"""A PyTorch DataLoader whose worker processes ask a yard: what a frozen model says of each sample is computed
by the yard's workers, once for all of them, and not by a copy of the model in every process.

    python examples/programs/dataloader.py        # needs torch

Here, a small network learns from what `digits.onnx` says of scans, with no label: distillation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

EXAMPLES = Path(__file__).parents[1]
WORKERS, BATCH, EPOCHS = 2, 32, 8


class Taught(Dataset[tuple[Any, Any]]):  # type: ignore[misc]  # torch is not here where types are checked
    """Scans, each with the logits of the teacher."""

    def __init__(self, url: str) -> None:
        with np.load(EXAMPLES / "digits_test.npz") as scans:
            self.images = scans["images"]
        # Every process of the loader has its own: forked, or sent there by name and connected anew.
        self.url = url
        self._client: batchyard.Client | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, Any]]:
        """A whole batch at once: one request, and what other processes ask meanwhile shares its run."""
        if self._client is None:
            self._client = batchyard.Client(self.url)
        images = self.images[indices]
        logits = self._client.infer("digits", images, priority="low")
        # Rows of the answer are views of shared memory; torch wants arrays of its own to send on.
        return [(torch.from_numpy(x), torch.tensor(y)) for x, y in zip(images, logits, strict=True)]


def learn(url: str, epochs: int, workers: int) -> list[float]:
    """The mean loss of each epoch."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    loader = DataLoader(
        Taught(url), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    losses = []
    for _ in range(epochs):
        sums = []
        for images, logits in loader:
            loss = nn.functional.cross_entropy(student(images), logits.softmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums.append(loss.item())
        losses.append(float(np.mean(sums)))
    return losses


def main() -> None:
    with batchyard.serve(EXAMPLES / "digits.onnx") as yard:
        for epoch, loss in enumerate(learn(yard.url, EPOCHS, WORKERS), 1):
            print(f"epoch {epoch}: cross-entropy to the teacher {loss:.2f}")


if __name__ == "__main__":
    main()
