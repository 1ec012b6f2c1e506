"""`batchyard bench`: arguments in, a table out. Owns the command line and the exit code, nothing measured.

Exit codes: 0 all went well, 1 a request failed or a package isn't installed, 2 the arguments are wrong.
No time decides about the exit code: what is fast enough depends on the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .. import BatchyardError
from ..transport.arguments import count, counts, number
from .report import Finding, machine, machine_line, table, write_json

BENCHMARKS = ("tiny-latency", "tiny-throughput", "cnn", "frame")
MODELS = ("tiny", "cnn", "frame")
PRIORITIES = ("URGENT", "HIGH", "NORMAL", "LOW")
SUITE_EPILOG = """\
examples:
  batchyard bench                                        everything, about a minute
  batchyard bench --only tiny-latency,frame --rounds 9   two of them, with more rounds to believe
  batchyard bench --only cnn --max-batch 8,16            two yards beside the runtime alone
  batchyard bench --json figures.json                    every figure, with the machine it holds on
  batchyard bench open --model cnn --rate 0.8x           what users feel at 80 % of capacity
  batchyard bench load --processes 4 --out before        several clients, mixed classes, plots
  batchyard bench models ./models                        write the models, to serve them yourself
  batchyard bench --url tcp://127.0.0.1:5555             a yard that already serves those models
"""
OPEN_EPILOG = """\
examples:
  batchyard bench open --model cnn --rate 0.8x --seconds 10
  batchyard bench open --model tiny --rate 2000 --priorities URGENT,LOW
"""
LOAD_EPILOG = """\
examples:
  batchyard bench load --rate 2000 --processes 4 --mix URGENT:1:0.05,NORMAL:8,LOW:1 --out before
  batchyard bench load --trace arrivals.csv --out after
  batchyard bench load --compare before after
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `batchyard bench` with `argv` (without the verb), and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs: dict[str, Callable[[list[str]], int]] = {"open": _open, "load": _load, "models": _models}
    verb = verbs.get(arguments[0]) if arguments else None
    try:
        return verb(arguments[1:]) if verb else _suite(arguments)
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def _suite(arguments: list[str]) -> int:
    parser = yard_parser("batchyard bench", "Compare a yard with onnxruntime alone.", SUITE_EPILOG)
    parser.add_argument(
        "--only", type=_names(BENCHMARKS), default=BENCHMARKS, metavar="A,B", help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--rounds", type=count, default=5, help="rounds per comparison (%(default)s)")
    parser.add_argument(
        "--seconds", type=number, default=1.0, help="seconds per contender and round (%(default)s)"
    )
    parser.add_argument(
        "--max-batch", type=counts, default=(8,), metavar="8,16", help="batch sizes for cnn (8)"
    )
    options = parser.parse_args(arguments)

    from . import suite
    from .target import Targets

    targets = Targets(options.url, options.workers, options.threads)
    runs: dict[str, Callable[[Callable[[str], None]], Finding]] = {
        "tiny-latency": partial(suite.tiny_latency, targets, options.rounds, options.seconds),
        "tiny-throughput": partial(suite.tiny_throughput, targets, options.rounds, options.seconds),
        "cnn": lambda say: suite.cnn(targets, options.rounds, options.seconds, say, options.max_batch),
        "frame": partial(suite.frame, targets, options.rounds, options.seconds),
    }
    findings = []
    for name in options.only:
        say(f"{name} ...")
        findings.append(attempt(name, runs[name]))
    return finish(options, findings)


def _open(arguments: list[str]) -> int:
    from .arrivals import Rate, arrivals
    from .target import Targets

    def rate(text: str) -> Rate:
        try:
            return Rate.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    purpose = "Send requests on a Poisson schedule, whatever the answers do."
    parser = yard_parser("batchyard bench open", purpose, OPEN_EPILOG)
    parser.add_argument("--model", choices=MODELS, default="cnn", help="the model to load (%(default)s)")
    parser.add_argument(
        "--rate", type=rate, default=Rate(0.8, True), help="requests/s, or a share of capacity (0.8x)"
    )
    parser.add_argument("--seconds", type=number, default=10.0, help="seconds of load (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the schedule (%(default)s)")
    parser.add_argument(
        "--priorities",
        type=_names(PRIORITIES),
        default=("NORMAL",),
        metavar="A,B",
        help="priorities to mix evenly (NORMAL)",
    )
    parser.add_argument("--max-batch", type=count, default=8, help="largest batch (%(default)s)")
    options = parser.parse_args(arguments)
    targets = Targets(options.url, options.workers, options.threads)
    finding = attempt(
        "open-loop",
        lambda say: arrivals(
            targets,
            options.model,
            options.rate,
            options.seconds,
            options.seed,
            options.priorities,
            options.max_batch,
            say,
        ),
    )
    return finish(options, [finding])


def _load(arguments: list[str]) -> int:
    from . import schedule

    def mix(text: str) -> list[schedule.Class]:
        try:
            return schedule.parse_mix(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    purpose = "Load a yard from several client processes, with mixed classes and deadlines."
    parser = yard_parser("batchyard bench load", purpose, LOAD_EPILOG)
    parser.add_argument("--model", choices=MODELS, default="cnn", help="the model to load (%(default)s)")
    parser.add_argument("--rate", type=number, default=1000.0, help="requests/s, Poisson (%(default)g)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="arrivals, as docs/benchmarks.md has them")
    parser.add_argument(
        "--mix",
        type=mix,
        default=mix("NORMAL"),
        metavar="MIX",
        help="class, share, and deadline in seconds: URGENT:1:0.05,NORMAL:8 (NORMAL)",
    )
    parser.add_argument("--processes", type=count, default=2, help="client processes (%(default)s)")
    parser.add_argument("--rounds", type=count, default=5, help="rounds of load (%(default)s)")
    parser.add_argument("--seconds", type=number, default=5.0, help="seconds of each round (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the schedule (%(default)s)")
    folder = "where figures and plots go (%(default)s)"
    parser.add_argument("--out", type=Path, default=Path("load"), metavar="FOLDER", help=folder)
    both = "compare the figures of two such folders, without a load"
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help=both)
    options = parser.parse_args(arguments)

    from .recorded import compare, load

    try:
        return compare(*options.compare) if options.compare else load(options)
    except (BatchyardError, OSError, ValueError) as error:
        say(f"load: {error}")
        return 1


def _models(arguments: list[str]) -> int:
    from . import models

    parser = argparse.ArgumentParser(
        "batchyard bench models",
        description="Write the benchmark models, to serve them yourself.",
        epilog="example:\n  batchyard bench models ./models",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in models.NAMES:
        print(models.write(name, folder))
    return 0


def attempt(name: str, measure: Callable[[Callable[[str], None]], Finding]) -> Finding:
    """What `measure` finds, or the finding that it failed: others may still have something to say."""
    try:
        return measure(partial(_say_of, name))
    except BatchyardError as error:
        return Finding(name, errors={type(error).__name__: str(error)})


def finish(options: argparse.Namespace, findings: list[Finding]) -> int:
    """Print the table, write the figures where `--json` says, and return the exit code."""
    facts = machine()
    print(machine_line(facts))
    print(table(findings))
    if options.json is not None:
        write_json(options.json, facts, vars(options), findings)
    return 1 if any(finding.errors for finding in findings) else 0


def yard_parser(name: str, purpose: str, epilog: str) -> argparse.ArgumentParser:
    """A command's parser with the options of a yard under test, and `--json`."""
    parser = argparse.ArgumentParser(
        name, description=purpose, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a running yard that serves the models (default: start one)")
    parser.add_argument(
        "--workers", type=count, default=1, help="workers of the yard that is started (%(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=count,
        default=1,
        help="threads per worker, and of the bare runtime (%(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    return parser


def _names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}")
        return names

    return parse


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def _say_of(name: str, line: str) -> None:
    say(f"{name}: {line}")
