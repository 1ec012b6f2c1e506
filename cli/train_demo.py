"""`batchyard demo --train`: from data to a served model. Search, train, export, publish, serve, measure.

Owns the course of it and what is printed; the parts are examples/ (data and training), export/, and the
plain demo's clients. torch is needed up to the export, and by nothing that serves.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..client import serve
from ..examples.comparison import compare
from ..examples.datasets import NAMES, Dataset, named
from ..examples.search import search
from ..examples.training import Progress, Settings, Trained, judge, train
from ..export import Report, export_to_onnx
from ..export.publish import replace_file
from ..transport import extras
from ..transport.errors import BatchyardError, InvalidRequest
from ..transport.histograms import quantile
from .arguments import count, parser, seconds
from .demo import (
    CLIENTS_DEFAULT,
    CLIENTS_MAX,
    MAX_BATCH,
    SECONDS_DEFAULT,
    SECONDS_MAX,
    TOO_MUCH,
    direct,
    figures,
    findings,
    load,
    said,
    step,
    tell,
    verdict,
)
from .demo_tally import Array, Tally
from .next_steps import after_training
from .text import GAP, plural

TRIALS_DEFAULT = 12
EPOCHS_DEFAULT = 20  # of a trial
LONGER = 2  # times as many for the training that is exported
SERVED_ROWS = 450  # of the test rows: all of the digits', the first of CIFAR's
CALIBRATION_ROWS = 256
INPUT, OUTPUT = "image", "logits"
NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "sklearn", "optuna")
EXTRAS = "cpu,export,train"
EXAMPLES = """examples:
  batchyard demo --train
  batchyard demo --train --trials 4 --epochs 10 --out /tmp/digits
  batchyard demo --train --dataset cifar10 --data ~/data --trials 1 --epochs 5"""


def main(argv: list[str]) -> int:
    """0 when the served model answers as the exported file does; raises when something cannot be done."""
    arguments = parser("demo --train", "Train a model, export it, serve it, and measure it.", EXAMPLES)
    add = arguments.add_argument
    add("--trials", type=count, default=TRIALS_DEFAULT, metavar="N", help="of the search (%(default)s)")
    add("--epochs", type=count, default=EPOCHS_DEFAULT, metavar="N", help="of each trial (%(default)s)")
    add("--out", type=Path, default=Path("trained"), metavar="FOLDER", help="for the files (%(default)s)")
    add("--dataset", choices=NAMES, default=NAMES[0], help="(%(default)s)")
    add("--data", type=Path, default=Path("data"), metavar="FOLDER", help="for CIFAR's files (%(default)s)")
    add("--measure", type=seconds, default=1.0, metavar="S", help="of a variant, by the gate (%(default)g)")
    add("--seconds", type=seconds, default=SECONDS_DEFAULT, metavar="S", help="of load (%(default)g)")
    add("--clients", type=count, default=CLIENTS_DEFAULT, metavar="N", help="programs (%(default)s)")
    options = arguments.parse_args(argv)
    if options.seconds > SECONDS_MAX or options.clients > CLIENTS_MAX:
        arguments.error(TOO_MUCH)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidRequest(
            f"training needs {', '.join(missing)}: `python3 run demo --train` fetches it, or "
            f"{extras.install(EXTRAS)}. Serving needs no torch: `batchyard demo`"
        )
    began_s = time.monotonic()
    data = prepared(options.dataset, options.data)
    trained = learned(data, options.trials, options.epochs)
    report = exported(data, trained, options.out, options.measure)
    config = published(data, report, options.out)
    passed = served(data, report, options.seconds, options.clients)
    tell(f"\nThe whole took {time.monotonic() - began_s:.0f} s. Next:")
    tell("\n".join(GAP + line for line in after_training(config)))
    return 0 if passed else 1


def prepared(name: str, folder: Path) -> Dataset:
    """The data set, and a line on it."""
    tell("batchyard demo --train: data, search, training, export, a yard and its load\n")
    data = named(name, Settings.seed, folder, detail)
    shape = "x".join(map(str, data.shape))
    step("data", f"{data.name}: images of {shape}, {len(data.classes)} classes")
    rows = f"{len(data.train):,} to train on, {len(data.validation):,} to choose by"
    detail(f"{rows}, {len(data.test):,} held back for the report")
    return data


def learned(data: Dataset, trials: int, epochs: int) -> Trained:
    """A search, a longer training with its best settings, and what drawn digits would have done."""
    threads = 1 if data.name == NAMES[0] else os.cpu_count() or 1
    step("search", f"{plural(trials, 'trial')} of up to {epochs} epochs; the lowest validation loss wins")
    found = search(data, trials, Settings(epochs=epochs, threads=threads), detail)
    pruned = sum(trial.pruned for trial in found.trials)
    detail(f"best: trial {found.best.number}; {pruned} of {trials} were given up early")
    settings = replace(found.best.settings, epochs=LONGER * epochs)
    step("train", f"with these settings, up to {settings.epochs} epochs")
    trained = train(data.train, len(data.classes), settings, data.validation, Progress(settings, detail))
    accuracy = judge(trained.model, data.test).accuracy
    detail(
        f"kept epoch {trained.best.number} of {len(trained.epochs)}: {accuracy:.2%} of the held back right"
    )
    if data.name == NAMES[0]:
        step("compare", "the same settings on drawn digits, on real ones, and on both; tested on real ones")
        compare(data, replace(settings, epochs=epochs), (Settings.seed,), detail)
    return trained


def exported(data: Dataset, trained: Trained, out: Path, measure_s: float) -> Report:
    """Every variant tried, the best of those that pass the gate published in `out`."""
    step("export", "to ONNX; a variant is published if it is smaller, not slower and as good")
    report = export_to_onnx(
        trained.model,
        out / f"{data.name}.onnx",
        {INPUT: (1, *data.shape)},
        quantize=True,
        calibration=data.train.images[:CALIBRATION_ROWS],
        validation_data=data.validation.images,
        output_names=[OUTPUT],
        measure_s=measure_s,
        say=detail,
    )
    for line in report.lines():
        detail(line)
    return report


def published(data: Dataset, report: Report, out: Path) -> Path:
    """A yard's configuration beside the files, for the best of them."""
    assert report.best.path is not None  # published
    config = out / "yard.toml"
    text = f'[models.{data.name}]\nfile = "{report.best.path.name}"\nmax_batch = {MAX_BATCH}\n'
    replace_file(config, text.encode())
    step("publish", f"{report.best.path.name} ({report.best.name}) in {config}")
    return config


def served(data: Dataset, report: Report, load_s: float, clients: int) -> bool:
    """Serve the published file in a yard, load it, and print what came of it. Whether all was right."""
    model = report.best.path
    assert model is not None
    images, labels = data.test.images[:SERVED_ROWS], data.test.labels[:SERVED_ROWS]
    expected = direct(model, images)
    right = float((expected.argmax(1) == labels).mean())
    with tempfile.TemporaryDirectory(prefix="batchyard-demo-") as folder, tempfile.TemporaryFile() as log:
        try:
            total, counters = loaded(
                data.name, model, Path(folder), log, images, expected, labels, load_s, clients
            )
        except BatchyardError as error:
            raise BatchyardError(f"{error}{said(log)}") from None
    tell("\n" + "\n".join(figures(total)) + "\n")
    tell("\n".join(findings(total, counters["rows"] / max(1, counters["batches"]))))
    tell(f"{GAP}batches     {batch_sizes(counters, data.name)}")
    tell(f"{GAP}alone       {right:.1%} of the same {len(labels)} by onnxruntime without a yard\n")
    tell(verdict(total))
    return total.passed


def loaded(
    name: str, model: Path, folder: Path, log: IO[bytes], images: Array, expected: Array, labels: Array,
    load_s: float, clients: int,
) -> tuple[Tally, dict[str, Any]]:  # fmt: skip
    """The clients' answers put together, and the broker's counters at the end."""
    np.savez(folder / "data.npz", images=images, expected=expected, labels=labels)
    step("serve", f"a broker and a worker, neither with torch, and {plural(clients, 'client program')}")
    with serve({name: model}, workers=1, max_batch=MAX_BATCH, log=log) as yard:
        total = Tally(expected, labels)
        for path in load(yard, name, folder, log, load_s, clients):
            total.merge(Tally.load(path, expected, labels))
        return total, yard.snapshot()


def batch_sizes(counters: dict[str, Any], model: str) -> str:
    """From the broker's histogram of rows: how many batches, and how full."""
    counts: dict[int, int] = {}
    for name, what, histogram in counters["batch_stages"]:
        if (name, what) == (model, "rows"):
            counts = histogram["counts"]
    half, most = (min(MAX_BATCH, int(quantile(counts, share) or 0)) for share in (0.5, 1.0))
    return f"{sum(counts.values()):,}: half of them of up to {plural(half, 'scan')}, the largest of {most}"


def detail(line: str) -> None:
    step("", line)
