"""Train the bundled digits model and write what `batchyard demo` serves.

Owns `digits.onnx`, `digits.json` and `digits_test.npz` beside it. The images are scikit-learn's
`load_digits`: 1797 real scans of handwritten digits, 8x8 pixels, 17 grey levels. A quarter is held
back from training; those scans are what the demo sends, so serving needs neither torch nor
scikit-learn. Nothing is written unless the exported file agrees with PyTorch and is good enough.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...transport import extras
from .datasets import digits_split
from .fit import Progress, Settings, train

HERE = Path(__file__).resolve().parents[1]
EPILOG = "example:\n  python -m batchyard.examples.training.train_digits --out examples --epochs 30"

DIGITS = 10
OPSET = 18
BATCH_MAX = 64  # the exported range of the symbolic axis 0
BATCHES_VERIFIED = (1, 2, 7, 64)
DIFFERENCE_MAX = 1e-4  # logits, ONNX Runtime against PyTorch
ACCURACY_MIN = 0.98  # on the held-back scans


class Refused(Exception):
    """The model isn't fit to be published; the message has the figures."""


def export(model: Any, path: Path) -> None:
    """Write `model` to `path`, weights inside, axis 0 symbolic from 1 to BATCH_MAX."""
    import onnx
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which we don't use
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")  # torch's own code
    # Traced with two rows: with one, the exporter takes the axis for a constant.
    traced_with = torch.zeros((2, 1, 8, 8), dtype=torch.float32)
    program = torch.onnx.export(
        model.eval(),
        (traced_with,),
        dynamo=True,
        opset_version=OPSET,
        optimize=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=BATCH_MAX)},),
        verbose=False,
    )
    program.optimize()
    program.save(str(path), external_data=False)

    # The exporter notes stack traces, with the paths of whoever trained. They are nobody's business
    # and would make the file differ from machine to machine.
    proto = onnx.load(str(path))
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, str(path), save_as_external_data=False)


def verify(model: Any, path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The largest difference to PyTorch over BATCHES_VERIFIED, and the file's own accuracy.

    Raises Refused where either is outside its bound, or the file's signature is not the promised one.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    signature = [
        (value.name, value.type, value.shape) for value in session.get_inputs() + session.get_outputs()
    ]
    promised = [
        ("image", "tensor(float)", ["batch", 1, 8, 8]),
        ("logits", "tensor(float)", ["batch", 10]),
    ]
    if signature != promised:
        raise Refused(f"the exported signature is {signature}, expected {promised}")

    difference = 0.0
    for batch in BATCHES_VERIFIED:
        rows = images[:batch]
        (got,) = session.run(["logits"], {"image": rows})
        with torch.no_grad():
            wanted = model(torch.from_numpy(rows)).numpy()
        difference = max(difference, float(np.abs(got - wanted).max()))
    if not difference <= DIFFERENCE_MAX:  # written so that NaN is refused too
        raise Refused(f"the ONNX file differs from PyTorch by {difference:.2e}, at most {DIFFERENCE_MAX:.0e}")

    right = 0
    for start in range(0, len(images), BATCH_MAX):
        (logits,) = session.run(["logits"], {"image": images[start : start + BATCH_MAX]})
        right += int((logits.argmax(1) == labels[start : start + BATCH_MAX]).sum())
    accuracy = right / len(images)
    if accuracy < ACCURACY_MIN:
        raise Refused(f"accuracy on held-back scans is {accuracy:.2%}, at least {ACCURACY_MIN:.0%}")
    return difference, accuracy


def describe(folder: Path, seed: int, epochs: int, rows: tuple[int, int], found: tuple[float, float]) -> str:
    """`digits.json`: what the model takes and gives, where it came from, how good it is."""
    difference, accuracy = found
    libraries = ("torch", "onnx", "onnxscript", "onnxruntime", "scikit-learn", "numpy")
    facts = {
        "name": "digits",
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8], "range": [0.0, 1.0]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "batch": {"min": 1, "max": BATCH_MAX, "verified": list(BATCHES_VERIFIED)},
        "opset": OPSET,
        "source": "examples/training/train_digits.py",
        "data": "scikit-learn load_digits (UCI optical recognition of handwritten digits, test part)",
        "seed": seed,
        "epochs": epochs,
        "train_rows": rows[0],
        "test_rows": rows[1],
        "test_accuracy": round(accuracy, 6),
        "pytorch_difference_max": float(f"{difference:.2e}"),
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: version(name) for name in libraries},
        },
        "sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in ("digits.onnx", "digits_test.npz")
        },
    }
    return json.dumps(facts, indent=2) + "\n"


def publish(out: Path, seed: int, epochs: int) -> None:
    """Train, check, and only then replace the three files in `out`."""
    settings = Settings(epochs=epochs, seed=seed)
    learn, test = digits_split(seed)
    print(f"{len(learn)} scans to train on, {len(test)} held back")
    model = train(learn, DIGITS, settings, watch=Progress(settings, tell)).model

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".train-") as work:
        folder = Path(work)
        print("exporting and comparing with PyTorch", flush=True)
        export(model, folder / "digits.onnx")
        found = verify(model, folder / "digits.onnx", test.images, test.labels)
        np.savez_compressed(folder / "digits_test.npz", images=test.images, labels=test.labels)
        text = describe(folder, seed, epochs, (len(learn), len(test)), found)
        (folder / "digits.json").write_text(text, encoding="utf-8", newline="\n")
        for name in ("digits.onnx", "digits_test.npz", "digits.json"):
            os.replace(folder / name, out / name)
    print(f"accuracy on held-back scans {found[1]:.2%}, largest difference to PyTorch {found[0]:.1e}")
    print(f"wrote digits.onnx, digits_test.npz, digits.json to {out}")


def tell(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Train the bundled digits model (under a minute on two cores) and export it to ONNX.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for the three files (default: this one)"
    )
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training scans (default 30)")
    parser.add_argument("--seed", type=int, default=20, help="of the split, the weights and the order")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    try:
        publish(args.out, args.seed, args.epochs)
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is not installed: {extras.install('cpu,export,train')}", file=sys.stderr)
        return 1
    except Refused as reason:
        print(f"refused, nothing written: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
