"""Train the digits model, export it with every variant, and count what each gets right.

    python -m batchyard.examples.training.export_digits --out out

The whole way on real data: calibration with scans that were trained on, accuracy on scans that were
held back. Variants that the gate refuses are not on the disk, so that they have no accuracy here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from batchyard.export import Report, export_to_onnx

from .datasets import digits_split
from .fit import Progress, Settings, train
from .train_digits import DIGITS

CALIBRATION_ROWS = 256
SEED = 20


def export(model: Any, images: Any, held_back: Any, out: Path) -> Report:
    """Every variant of `model`: float32[batch, 1, 8, 8] -> float32[batch, 10]."""
    return export_to_onnx(
        model,
        out / "digits.onnx",
        {"image": (1, 1, 8, 8)},
        optimize=True,
        quantize="all",
        calibration=images[:CALIBRATION_ROWS],
        validation_data=held_back,
        output_names=["logits"],
        say=tell,
    )


def accuracy(path: Path, images: Any, labels: Any) -> float:
    """The share of `images` that the file at `path` calls by their right digit."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return float(np.mean(logits.argmax(1) == labels))


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the digits model and export every variant of it.")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the files (default: out)")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training scans (default 30)")
    args = parser.parse_args()
    settings = Settings(epochs=args.epochs, seed=SEED)
    learn, test = digits_split(SEED)
    model = train(learn, DIGITS, settings, watch=Progress(settings, tell)).model
    report = export(model, learn.images, test.images, args.out)
    print("\n".join(report.lines()))
    for variant in report.published:
        if variant.path is not None:
            print(f"  {variant.name:<13} accuracy {accuracy(variant.path, test.images, test.labels):.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
