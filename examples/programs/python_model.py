"""A model that is a Python class: the nearest of some known scans says which digit a new one shows.

    python examples/programs/python_model.py        # or: python -m batchyard.examples.programs.python_model

Every worker makes one object, so what `__init__` reads is read once, and not for every request.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import batchyard
import numpy as np

SCANS = Path(__file__).parents[1] / "digits_test.npz"
KNOWN = 300  # of its 450 scans; the others are asked for

Array = np.ndarray[Any, Any]


@batchyard.model(
    inputs={"image": "float32[batch, 1, 8, 8]"},
    outputs={"digit": "int64[batch]", "distance": "float32[batch]"},
)
class NearestDigit:
    """Called with a dict of arrays for a whole batch, rows on axis 0."""

    def __init__(self) -> None:
        with np.load(SCANS) as scans:
            self.known = scans["images"][:KNOWN].reshape(KNOWN, -1)
            self.digits = scans["labels"][:KNOWN].astype(np.int64)

    def __call__(self, batch: dict[str, Array]) -> dict[str, Array]:
        image = batch["image"].reshape(-1, 1, 64)  # a view, and read-only
        distances = np.linalg.norm(image - self.known, axis=2)
        nearest = distances.argmin(1)
        return {"digit": self.digits[nearest], "distance": distances.min(1).astype(np.float32)}


async def main() -> None:
    """Ask for every scan that is not known, as a job of its own."""
    with np.load(SCANS) as scans:
        images, labels = scans["images"][KNOWN:], scans["labels"][KNOWN:]
    async with batchyard.AsyncInferenceQueue(NearestDigit, batch_size=16, num_workers=1) as queue:
        jobs = [await queue.submit(image, batchyard.JobPriority.HIGH) for image in images]
        found = [await queue.get_result(job, timeout=30) for job in jobs]
        right = sum(int(answer["digit"] == label) for answer, label in zip(found, labels, strict=True))
        figures = queue.statistics()
    print(f"{right} of {len(images)} digits are right")
    print(f"{figures.completed} jobs, {figures.batch_rows_mean:.1f} in a batch on average")


if __name__ == "__main__":
    asyncio.run(main())
