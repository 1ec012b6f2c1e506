"""`python3 run demo --train`: from data to a served model. Search, train, export, publish, serve, measure.

Owns the course of it and what is printed; the parts are examples/ (data and training), export/, and the
plain demo's programs. torch is needed up to the export, and by nothing that serves.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...cli.arguments import parser
from ...cli.demo import programs
from ...cli.demo.next_steps import typed
from ...cli.demo.programs import Load, Scans
from ...cli.demo.report import figures, findings, step, tell, verdict
from ...cli.main import run
from ...cli.text import GAP, plural, table
from ...client import serve
from ...export import Report, export_to_onnx
from ...export.publish import replace_file
from ...transport import extras
from ...transport.arguments import count, seconds
from ...transport.errors import InvalidRequest
from ...transport.histograms import quantile
from .comparison import compare
from .datasets import NAMES, Dataset, named
from .fit import Progress, Settings, Trained, judge, train
from .search import search

TRIALS_DEFAULT = 12
EPOCHS_DEFAULT = 20  # of a trial
LONGER = 2  # times as many for the training that is exported
MAX_BATCH = 32  # rows
SERVED_ROWS = 450  # of the test rows: all of the digits', the first of CIFAR's
CALIBRATION_ROWS = 256
INPUT, OUTPUT = "image", "logits"
NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "sklearn", "optuna")
EXTRAS = "cpu,export,train"
EXAMPLES = """examples:
  python3 run demo --train
  python3 run demo --train --trials 4 --epochs 10 --out /tmp/digits
  python3 run demo --train --dataset cifar10 --data ~/data --trials 1 --epochs 5"""


def main(argv: list[str]) -> int:
    """0 when the served model answers as the exported file does; raises when something cannot be done."""
    arguments = parser("demo --train", "Train a model, export it, serve it, and measure it.", EXAMPLES)
    arguments.prog = "python3 run demo --train"
    add = arguments.add_argument
    add("--trials", type=count, default=TRIALS_DEFAULT, metavar="N", help="of the search (%(default)s)")
    add("--epochs", type=count, default=EPOCHS_DEFAULT, metavar="N", help="of each trial (%(default)s)")
    add("--out", type=Path, default=Path("trained"), metavar="FOLDER", help="for the files (%(default)s)")
    add("--dataset", choices=NAMES, default=NAMES[0], help="(%(default)s)")
    add("--data", type=Path, default=Path("data"), metavar="FOLDER", help="for CIFAR's files (%(default)s)")
    add("--measure", type=seconds, default=1.0, metavar="S", help="of a variant, by the gate (%(default)g)")
    Load.add_options(arguments)
    options = arguments.parse_args(argv)
    load = Load.of(arguments, options)
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
    passed = served(data, report, load)
    tell(f"\nThe whole took {time.monotonic() - began_s:.0f} s. Next:")
    tell("\n".join(GAP + line for line in next_steps(config)))
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


def served(data: Dataset, report: Report, load: Load) -> bool:
    """Serve the published file in a yard, load it, and print what came of it. Whether all was right."""
    model = report.best.path
    assert model is not None
    scans = Scans.answered(model, data.test.images[:SERVED_ROWS], data.test.labels[:SERVED_ROWS])
    step("serve", f"a broker and a worker, neither with torch, and {plural(load.clients, 'client program')}")
    with (
        programs.logged() as log,
        serve({data.name: model}, workers=1, max_batch=MAX_BATCH, log=log) as yard,
    ):
        total = programs.run(yard, data.name, scans, load, log)
        counters = yard.snapshot()
    tell("\n" + "\n".join(figures(total)) + "\n")
    tell("\n".join(findings(total, counters["rows"] / max(1, counters["batches"]))))
    tell(f"{GAP}batches     {batch_sizes(counters, data.name)}")
    tell(
        f"{GAP}alone       {scans.right:.1%} of the same {len(scans.labels)} by onnxruntime without a yard\n"
    )
    tell(verdict(total))
    return total.passed


def batch_sizes(counters: dict[str, Any], model: str) -> str:
    """From the broker's histogram of rows: how many batches, and how full."""
    counts: dict[int, int] = {}
    for name, what, histogram in counters["batch_stages"]:
        if (name, what) == (model, "rows"):
            counts = histogram["counts"]
    half, most = (min(MAX_BATCH, int(quantile(counts, share) or 0)) for share in (0.5, 1.0))
    return f"{sum(counts.values()):,}: half of them of up to {plural(half, 'scan')}, the largest of {most}"


def next_steps(config: Path) -> list[str]:
    """Aligned lines: a command and its purpose, for a model that `config` serves."""
    return table(
        [
            (f"{typed()} up --config {config} --metrics 9877", "serve it to your own programs"),
            (f"{typed()} top", "what it does now"),
            ("docker compose -f grafana/docker-compose.yml up -d", "and over time: Grafana at http://127.0.0.1:3000"),
        ]
    )


def detail(line: str) -> None:
    step("", line)


if __name__ == "__main__":
    sys.exit(run("batchyard.examples.training.demo", sys.argv[1:]))
