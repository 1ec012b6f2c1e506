"""`batchyard demo`: a yard with a real model, clients of every priority, and every answer checked.

Owns the course of it and what is printed. The clients are processes of their own (`demo_client`),
so what they send goes through shared memory as any program's would.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import IO

import numpy as np

from ..client import Yard, serve
from ..transport import extras
from ..transport.errors import BatchyardError
from ..transport.processes import ChildProcess
from .arguments import PRIORITIES, count, parser, seconds
from .demo_client import DEADLINE_S, STREAMS
from .demo_tally import TOLERANCE, Array, Tally
from .next_steps import after_demo
from .text import GAP, plural, table

SECONDS_DEFAULT = 8.0
SECONDS_MAX = 45.0  # the whole demo ends in under a minute
CLIENTS_DEFAULT = 4
CLIENTS_MAX = 32
TOO_MUCH = f"at most {SECONDS_MAX:g} seconds and {CLIENTS_MAX} clients; `batchyard bench` does more"
MAX_BATCH = 32  # rows
MODEL = "digits"
GRACE_S = 10.0 + DEADLINE_S  # for a client to start, to end, and to write its tally
LOOK_S = 0.05
LOG_LINES = 20  # of what the processes said, when something failed
EXAMPLES = """examples:
  batchyard demo
  batchyard demo --seconds 3 --clients 2
  batchyard demo --train                   # search, train, export and serve a model of your own: --help"""


def main(argv: list[str]) -> int:
    """0 when every answer equals the direct run's, 1 when one does not; raises when it cannot run."""
    if "--train" in argv:
        from . import train_demo

        return train_demo.main([argument for argument in argv if argument != "--train"])
    arguments = parser("demo", "A yard on this machine, with a real model and four priorities.", EXAMPLES)
    arguments.add_argument(
        "--seconds", type=seconds, default=SECONDS_DEFAULT, metavar="S", help="of load (%(default)g)"
    )
    arguments.add_argument(
        "--clients", type=count, default=CLIENTS_DEFAULT, metavar="N", help="client processes (%(default)s)"
    )
    options = arguments.parse_args(argv)
    if options.seconds > SECONDS_MAX or options.clients > CLIENTS_MAX:
        arguments.error(TOO_MUCH)
    extras.require("the demo", "onnxruntime")
    with (
        resources.as_file(resources.files("batchyard.examples")) as examples,
        tempfile.TemporaryDirectory(prefix="batchyard-demo-") as folder,
        tempfile.TemporaryFile() as log,
    ):
        try:
            return show(examples, Path(folder), log, options.seconds, options.clients)
        except BatchyardError as error:
            raise BatchyardError(f"{error}{said(log)}") from None


def show(examples: Path, folder: Path, log: IO[bytes], load_s: float, clients: int) -> int:
    """The demo itself; what processes say goes to `log`."""
    with np.load(examples / f"{MODEL}_test.npz", allow_pickle=False) as data:
        images, labels = data["images"], data["labels"]
    tell(f"batchyard demo: about {load_s + 2:.0f} seconds\n")
    step("model", f"{MODEL}: a scan of a handwritten digit in, a score for each of 0..9 out")
    model = examples / f"{MODEL}.onnx"
    expected = direct(model, images)
    step(
        "direct",
        f"onnxruntime alone has answered {len(images)} test scans: every answer is compared to these",
    )
    np.savez(folder / "data.npz", images=images, expected=expected, labels=labels)

    began_s = time.monotonic()
    with serve(model, workers=1, max_batch=MAX_BATCH, log=log) as yard:
        ready_s = time.monotonic() - began_s
        step(
            "yard",
            f"a broker and a worker ({provider(yard)}), ready after {ready_s:.1f} s; "
            f"a batch has up to {MAX_BATCH} scans",
        )
        step("clients", f"{plural(clients, 'program')}, each with requests of all four priorities at once\n")
        total = Tally(expected, labels)
        for path in load(yard, MODEL, folder, log, load_s, clients):
            total.merge(Tally.load(path, expected, labels))
        counters = yard.snapshot()
    tell("\n" + "\n".join(figures(total)) + "\n")
    tell("\n".join(findings(total, counters["rows"] / max(1, counters["batches"]))) + "\n")
    tell(verdict(total))
    if total.passed:
        tell("Next:\n" + "\n".join(GAP + line for line in after_demo()))
    return 0 if total.passed else 1


def provider(yard: Yard) -> str:
    """What the yard's worker runs on: `cpu`, `webgpu`, ..."""
    with yard.client(segment="frames") as client:
        (model,) = client.models()
    return ", ".join(sorted({worker.provider for worker in model.workers}))


def direct(model: Path, images: Array) -> Array:
    """Logits, float32[images, 10], of onnxruntime in this process with nothing of ours in between."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    logits: Array = np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
    return logits


def load(yard: Yard, model: str, folder: Path, log: IO[bytes], load_s: float, clients: int) -> list[Path]:
    """Run the client processes to their end, with a line each second; their tallies' files.

    `folder`/data.npz has what they send and expect: images, expected, labels.
    """
    tallies = [folder / f"tally-{number}.npz" for number in range(clients)]
    processes = []
    for number, tally in enumerate(tallies):
        command = [sys.executable, "-m", "batchyard.cli.demo_client", "--url", yard.url]
        command += ["--model", model, "--seconds", str(load_s), "--number", str(number)]
        command += ["--data", str(folder / "data.npz"), "--tally", str(tally)]
        processes.append(ChildProcess(command, name=f"client {number + 1}", stdout=log, stderr=log))
    try:
        for process in processes:
            process.start()
        _watch(yard, processes, load_s)
    finally:
        for process in processes:
            process.terminate()
    return tallies


def _watch(yard: Yard, processes: list[ChildProcess], load_s: float) -> None:
    began_s = time.monotonic()
    step("second", f"{'scans':>9}  {'per second':>10}  {'scans in a batch':>16}")
    second, rows_before, batches_before = 1, 0, 0
    while any(process.poll() is None for process in processes):
        for process in processes:
            if process.poll():
                raise BatchyardError(f"{process.name} ended with status {process.poll()}")
        now_s = time.monotonic() - began_s
        if now_s > load_s + GRACE_S:
            raise BatchyardError(f"the clients did not end within {now_s:.0f} s")
        if second <= now_s < load_s:
            counters = yard.snapshot()
            rows, batches = counters["rows"], counters["batches"]
            batch = (rows - rows_before) / max(1, batches - batches_before)
            step(str(second), f"{rows:>9,}  {rows - rows_before:>10,}  {batch:>16.1f}")
            second, rows_before, batches_before = second + 1, rows, batches
        time.sleep(LOOK_S)
    for process in processes:
        if process.poll():
            raise BatchyardError(f"{process.name} ended with status {process.poll()}")


def figures(total: Tally) -> list[str]:
    """The table of latencies, as the clients saw them, by priority."""
    rows: list[tuple[str, ...]] = [("priority", "requests", "scans in each", "p50", "p99")]
    for priority, name in enumerate(PRIORITIES):
        latencies_ms = np.array(total.latencies_ns[priority]) / 1e6
        quantiles = np.percentile(latencies_ms, (50, 99)) if len(latencies_ms) else ()
        shown = [f"{quantile:.2f} ms" for quantile in quantiles] or ["-", "-"]
        rows.append((name.upper(), f"{len(latencies_ms):,}", str(STREAMS[priority].images), *shown))
    return [GAP + line for line in table(rows, right=(1, 2, 3, 4))]


def findings(total: Tally, batch: float) -> list[str]:
    """Throughput, accuracy, and how the answers compare."""
    rows = max(1, total.rows_total)
    took_s = max(1e-9, total.ended_s - total.began_s)
    identical = f"{total.identical / rows:.4%}".replace(".0000%", "%")
    lines = [
        f"throughput  {rows / took_s:,.0f} scans and {total.requests / took_s:,.0f} requests per second; "
        f"{batch:.1f} scans in a batch on average",
        f"accuracy    {total.right / rows:.1%} of the answers are right "
        f"({int(total.seen.sum())} different scans)",
        f"equality    {rows - total.unequal:,} of {rows:,} answers equal the direct run, "
        f"{identical} bit for bit",
    ]
    if total.difference:
        lines.append(f"            largest difference {total.difference:.1e} of an answer's largest score")
    if any(total.refused):
        lines.append(
            f"refused     {by_priority(total.refused, 'time')}: there was more to do than time; "
            "the programs waited as long as the yard said, and asked again"
        )
    if any(total.late):
        lines.append(
            f"late        {by_priority(total.late, 'request')}: dropped at the deadline of {DEADLINE_S:g} s"
        )
    return [GAP + line for line in lines]


def by_priority(counts: list[int], noun: str) -> str:
    """`12 requests (NORMAL 2, LOW 10)`."""
    parts = (f"{name.upper()} {n:,}" for name, n in zip(PRIORITIES, counts, strict=True) if n)
    return f"{plural(sum(counts), noun)} ({', '.join(parts)})"


def verdict(total: Tally) -> str:
    """What it comes to."""
    if total.unequal:
        return (
            f"FAILED: {plural(total.unequal, 'answer')} differed from the direct run by more than "
            f"{TOLERANCE:g} of the answer's largest score."
        )
    if not total.seen.all():
        missing = plural(int((~total.seen).sum()), "scan")
        if not total.passed:
            return f"FAILED: {missing} never came back; try more --seconds."
        return (
            "Passed: every answer is the one that onnxruntime gives by itself; "
            f"{missing} had none (try more --seconds)."
        )
    return "Passed: every answer is the one that onnxruntime gives by itself."


def said(log: IO[bytes]) -> str:
    """The end of what the processes said."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    return "".join(f"\n  {line}" for line in lines)


def step(name: str, text: str) -> None:
    tell(f"{GAP}{name:<9}{text}")


def tell(text: str) -> None:
    print(text, flush=True)
