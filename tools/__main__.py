"""`python3 run measure`: what we measure batchyard itself with, from a checkout.

Exit codes as of `batchyard bench`: 0 all went well, 1 a request failed, 2 the arguments are wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from .. import BatchyardError
from ..bench import suite
from ..bench.main import MODELS, attempt, finish, say, yard_parser
from ..bench.target import Targets
from ..transport.arguments import count, number
from . import before, gateway, idle, lines, monitoring, panels, perf_analyzer
from .baselines import contenders
from .processes import is_supported

HELP = """\
usage: python3 run measure WHAT [arguments]

  before         the benchmarks of another revision and of this checkout, in turns
  relays         the yard beside a bare ZeroMQ relay, in C and in Python
  idle           what a yard uses that has no requests: CPU time, wake-ups, memory
  gateway        what HTTP costs, beside the client and the runtime alone
  perf-analyzer  NVIDIA's load generator against the gateway
  monitoring     what a sidecar costs, scraped, stopped, or killed
  panels         the dashboard's panels, drawn from a Prometheus
  lines          lines of Python in the wheel, by folder

examples:
  python3 run measure before HEAD~1
  python3 run measure relays --rounds 9
  python3 run measure gateway --model frame --in-flight 1
  python3 run measure gateway --help
"""
RELAYS_EPILOG = """\
examples:
  python3 run measure relays
  python3 run measure relays --rounds 9 --seconds 0.6 --json figures.json
"""
IDLE_EPILOG = """\
examples:
  python3 run measure idle
  python3 run measure idle --seconds 60
"""
MONITORING_EPILOG = """\
examples:
  python3 run measure monitoring
  python3 run measure monitoring --rounds 9 --seconds 6
"""
GATEWAY_EPILOG = """\
examples:
  python3 run measure gateway
  python3 run measure gateway --in-flight 1 --rounds 9
  python3 run measure gateway --model frame --in-flight 1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what `argv` names, and return the exit code."""
    what, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if what not in TOOLS:
        asked = what in ("-h", "--help")
        print(HELP if asked else f"measure: nothing is called {what!r}\n\n{HELP}", file=sys.stdout)
        return 0 if asked else 2
    try:
        return TOOLS[what](arguments)
    except BatchyardError as error:
        print(f"measure: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def _relays(arguments: list[str]) -> int:
    parser = yard_parser("measure relays", "A yard beside a bare ZeroMQ relay.", RELAYS_EPILOG)
    _timed(parser, seconds=1.0)
    options = parser.parse_args(arguments)
    targets = Targets(options.url, options.workers, options.threads)
    how = (targets, options.rounds, options.seconds)
    latency, throughput = contenders(1), contenders(suite.TINY_IN_FLIGHT)
    findings = [
        attempt("tiny-latency", partial(suite.tiny_latency, *how, others=latency)),
        attempt("tiny-throughput", partial(suite.tiny_throughput, *how, others=throughput)),
    ]
    return finish(options, findings)


def _idle(arguments: list[str]) -> int:
    parser = yard_parser("measure idle", "What a yard uses while it has no requests.", IDLE_EPILOG)
    parser.add_argument("--seconds", type=number, default=idle.IDLE_S, help="of nothing (%(default)s)")
    options = parser.parse_args(arguments)
    targets = Targets(options.url, options.workers, options.threads)
    findings = [attempt("idle", partial(idle.idle_cost, targets, idle_s=options.seconds))]
    if options.url is None and is_supported():
        findings.append(attempt("up", partial(idle.whole_cost, idle_s=options.seconds)))
    return finish(options, findings)


def _monitoring(arguments: list[str]) -> int:
    parser = yard_parser("measure monitoring", "What a sidecar costs the requests.", MONITORING_EPILOG)
    _timed(parser, seconds=4.0)
    options = parser.parse_args(arguments)
    targets = Targets(options.url, options.workers, options.threads)
    measure = partial(monitoring.monitoring, targets, options.rounds, options.seconds)
    return finish(options, [attempt("monitoring", measure)])


def _gateway(arguments: list[str]) -> int:
    parser = yard_parser("measure gateway", "A model over HTTP, with binary tensors.", GATEWAY_EPILOG)
    parser.add_argument("--model", choices=MODELS, default="cnn", help="(%(default)s)")
    parser.add_argument("--in-flight", type=count, default=16, help="connections (%(default)s)")
    _timed(parser, seconds=2.0)
    options = parser.parse_args(arguments)
    targets = Targets(options.url, options.workers, options.threads)
    what = (options.model, options.in_flight, options.rounds, options.seconds)
    return finish(options, [attempt("gateway", partial(gateway.over_http, targets, *what))])


def _timed(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument("--rounds", type=count, default=5, help="(%(default)s)")
    parser.add_argument(
        "--seconds", type=number, default=seconds, help="seconds per contender and round (%(default)s)"
    )


TOOLS: dict[str, Callable[[list[str]], int]] = {
    "before": before.main,
    "relays": _relays,
    "idle": _idle,
    "gateway": _gateway,
    "perf-analyzer": perf_analyzer.main,
    "monitoring": _monitoring,
    "panels": panels.main,
    "lines": lines.main,
}

if __name__ == "__main__":
    sys.exit(main())
