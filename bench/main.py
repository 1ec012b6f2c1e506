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
from .arguments import positive, positive_int, positive_ints
from .report import Finding, machine, machine_line, table, write_json

BENCHMARKS = ("tiny-latency", "tiny-throughput", "cnn", "frame", "idle")
MODELS = ("tiny", "cnn", "frame")
PRIORITIES = ("URGENT", "HIGH", "NORMAL", "LOW")
SUITE_EPILOG = """\
examples:
  batchyard bench                                        everything, about two minutes
  batchyard bench --only tiny-latency,frame --rounds 9   two of them, with more rounds to believe
  batchyard bench --only cnn --max-batch 8,16            two yards beside the runtime alone
  batchyard bench --json figures.json                    every figure, with the machine it holds on
  batchyard bench open --model cnn --rate 0.8x           what users feel at 80 % of capacity
  batchyard bench gateway                                what HTTP costs, beside the client and the runtime
  batchyard bench perf-analyzer --fetch                  NVIDIA's load generator against the gateway
  batchyard bench models ./models                        write the models, to serve them yourself
  batchyard bench reliability --quick                    kill and overload a yard; its own --help
  batchyard bench monitoring                             what a sidecar costs, scraped, stopped, or killed
  batchyard bench panels panels.png                      the dashboard's panels, drawn from a Prometheus
  batchyard bench --url tcp://127.0.0.1:5555             a yard that already serves those models
"""
MONITORING_EPILOG = """\
examples:
  batchyard bench monitoring
  batchyard bench monitoring --rounds 9 --seconds 6
"""
GATEWAY_EPILOG = """\
examples:
  batchyard bench gateway
  batchyard bench gateway --in-flight 1 --rounds 9
  batchyard bench gateway --model frame --in-flight 1
"""
OPEN_EPILOG = """\
examples:
  batchyard bench open --model cnn --rate 0.8x --seconds 10
  batchyard bench open --model tiny --rate 2000 --priorities URGENT,LOW
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `batchyard bench` with `argv` (without the verb), and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs: dict[str, Callable[[list[str]], int]] = {
        "open": _open,
        "models": _models,
        "gateway": _gateway,
        "perf-analyzer": _perf_analyzer,
        "monitoring": _monitoring,
        "panels": _panels,
        "reliability": _reliability,
    }
    verb = verbs.get(arguments[0]) if arguments else None
    try:
        return verb(arguments[1:]) if verb else _suite(arguments)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _suite(arguments: list[str]) -> int:
    parser = _parser("batchyard bench", "Compare a yard with what it's built from.", SUITE_EPILOG)
    parser.add_argument(
        "--only", type=_names(BENCHMARKS), default=BENCHMARKS, metavar="A,B", help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--rounds", type=positive_int, default=5, help="rounds of a comparison (%(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=1.0, help="of each contender in each round (%(default)s)"
    )
    parser.add_argument(
        "--max-batch", type=positive_ints, default=(8,), metavar="8,16", help="of the cnn's yards (8)"
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
        "idle": partial(suite.idle_cost, targets),
    }
    findings = []
    for name in options.only:
        _say(f"{name} ...")
        try:
            findings.append(runs[name](partial(_say_of, name)))
        except BatchyardError as error:  # the others may still have something to say
            findings.append(Finding(name, errors={type(error).__name__: str(error)}))
    return _finish(options, findings)


def _open(arguments: list[str]) -> int:
    from .arrivals import Rate, arrivals
    from .target import Targets

    def rate(text: str) -> Rate:
        try:
            return Rate.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = _parser("batchyard bench open", "Poisson arrivals that wait for nobody.", OPEN_EPILOG)
    parser.add_argument("--model", choices=MODELS, default="cnn", help="(%(default)s)")
    parser.add_argument(
        "--rate", type=rate, default=Rate(0.8, True), help="per second, or as a share of capacity: 0.8x"
    )
    parser.add_argument("--seconds", type=positive, default=10.0, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (%(default)s)")
    parser.add_argument(
        "--priorities",
        type=_names(PRIORITIES),
        default=("NORMAL",),
        metavar="A,B",
        help="drawn evenly (NORMAL)",
    )
    parser.add_argument("--max-batch", type=positive_int, default=8, help="(%(default)s)")
    options = parser.parse_args(arguments)
    targets = Targets(options.url, options.workers, options.threads)
    try:
        finding = arrivals(
            targets,
            options.model,
            options.rate,
            options.seconds,
            options.seed,
            options.priorities,
            options.max_batch,
            partial(_say_of, "open"),
        )
    except BatchyardError as error:
        finding = Finding("open-loop", errors={type(error).__name__: str(error)})
    return _finish(options, [finding])


def _monitoring(arguments: list[str]) -> int:
    from .monitoring import monitoring
    from .target import Targets

    parser = _parser("batchyard bench monitoring", "What a sidecar costs the requests.", MONITORING_EPILOG)
    parser.add_argument("--rounds", type=positive_int, default=5, help="(%(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=4.0, help="of each state in each round (%(default)s)"
    )
    options = parser.parse_args(arguments)
    targets = Targets(options.url, options.workers, options.threads)
    finding = monitoring(targets, options.rounds, options.seconds, partial(_say_of, "monitoring"))
    return _finish(options, [finding])


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


def _gateway(arguments: list[str]) -> int:
    from .gateway import over_http
    from .target import Targets

    parser = _parser("batchyard bench gateway", "A model over HTTP, with binary tensors.", GATEWAY_EPILOG)
    parser.add_argument("--model", choices=MODELS, default="cnn", help="(%(default)s)")
    parser.add_argument("--in-flight", type=positive_int, default=16, help="connections (%(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="(%(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=2.0, help="of each contender in each round (%(default)s)"
    )
    options = parser.parse_args(arguments)
    targets = Targets(options.url, options.workers, options.threads)
    try:
        finding = over_http(
            targets,
            options.model,
            options.in_flight,
            options.rounds,
            options.seconds,
            partial(_say_of, "gateway"),
        )
    except BatchyardError as error:
        finding = Finding("gateway", errors={type(error).__name__: str(error)})
    return _finish(options, [finding])


def _perf_analyzer(arguments: list[str]) -> int:
    from . import perf_analyzer

    return perf_analyzer.main(arguments, _finish, partial(_say_of, "perf-analyzer"))


def _reliability(arguments: list[str]) -> int:
    from .reliability.main import main as reliability

    return reliability(arguments)


def _panels(arguments: list[str]) -> int:
    from .panels import main as panels

    return panels(arguments)


def _finish(options: argparse.Namespace, findings: list[Finding]) -> int:
    facts = machine()
    print(machine_line(facts))
    print(table(findings))
    if options.json is not None:
        write_json(options.json, facts, vars(options), findings)
    return 1 if any(finding.errors for finding in findings) else 0


def _parser(name: str, purpose: str, epilog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        name, description=purpose, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="of a running yard that serves the models (else one is embedded)")
    parser.add_argument("--workers", type=positive_int, default=1, help="of an embedded yard (%(default)s)")
    parser.add_argument(
        "--threads", type=positive_int, default=1, help="of a worker and of the bare runtime (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser


def _names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}")
        return names

    return parse


def _say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def _say_of(name: str, line: str) -> None:
    _say(f"{name}: {line}")
