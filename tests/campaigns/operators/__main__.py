"""python -m batchyard.tests.campaigns.operators: every backend test of onnx that onnxruntime runs, served.

Each model as it is, with its test's inputs; and each with axis 0 made free, asked by eight clients at once
with 1 to 40 rows. Every answer is compared with plain onnxruntime's on that request alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import msgspec

from .beside import Beside
from .requests import VARIANTS
from .served import CLIENTS, GOOD, OUTCOMES, Stand, Verdict
from .spread import FIRST, spread


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="operators", description=__doc__)
    parser.add_argument("--variant", choices=(*VARIANTS, "both", "in turn"), default="both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shard", default="1/1", help="i/n: every n-th test, from the i-th on")
    parser.add_argument("--limit", type=int, default=0, help="so many tests, spread over the operators")
    parser.add_argument("--only", action="append", default=[], help="a test's name; may be given again")
    parser.add_argument("--each", type=int, default=3, help="requests of each of the eight clients")
    parser.add_argument("--json", type=Path, help="write every verdict here")
    parser.add_argument("--log", type=Path, help="what the yard's processes say (default: nowhere)")
    parser.add_argument("--quiet", action="store_true", help="only the counts")
    return parser.parse_args(given)


def run(options: argparse.Namespace) -> list[Verdict]:
    """Every wanted test through a yard, in order."""
    beside = Beside(options.seed, CLIENTS * options.each)
    verdicts: list[Verdict] = []
    unfit: Counter[str] = Counter()
    try:
        wanted = _wanted(options, beside.names)
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="op-"))
            log = stack.enter_context(open(options.log or os.devnull, "wb"))
            stand = Stand(Path(folder), log)
            stack.callback(stand.close)
            started_s = time.monotonic()
            for number, made in enumerate(beside.all(wanted), 1):
                if made.unfit:
                    unfit[made.variant] += 1
                    continue
                verdicts.append(verdict := stand.judge(made))
                if not options.quiet:
                    _tell(verdict, number, len(wanted), time.monotonic() - started_s, options.seed)
    finally:
        beside.close()
    report(verdicts, unfit, options)
    return verdicts


def _wanted(options: argparse.Namespace, names: list[str]) -> list[tuple[int, str]]:
    variants = VARIANTS if options.variant == "both" else (options.variant,)
    if options.only:
        unknown = sorted(set(options.only) - set(names))
        if unknown:
            sys.exit(f"operators: onnx has no test {unknown[0]!r}")
        indices = [names.index(name) for name in options.only]
    elif options.limit:
        indices = spread(names, options.limit)
    else:
        indices = list(range(len(names)))
    first, _, of = options.shard.partition("/")
    indices = indices[int(first) - 1 :: int(of)]
    if options.variant == "in turn":  # where there is no time for both: but those that stand for a kind
        both = {index for index in indices if names[index] in FIRST}
        wanted = {(index, VARIANTS[number % 2]) for number, index in enumerate(indices)}
        return sorted(wanted | {(index, variant) for index in both for variant in VARIANTS})
    return [(index, variant) for index in indices for variant in variants]


def _tell(verdict: Verdict, number: int, count: int, took_s: float, seed: int) -> None:
    if verdict.outcome not in GOOD:
        again = f"--seed {seed} --variant {verdict.variant} --only {verdict.name}"
        print(f"{verdict.outcome}: {again}\n    {verdict.text[:300]}", flush=True)
    if number % 100 == 0:
        print(f"... {number} of {count}, {took_s:.0f} s", flush=True)


def report(verdicts: list[Verdict], unfit: Counter[str], options: argparse.Namespace) -> None:
    """Counts by variant and outcome, and what our own check says of those that batch."""
    for variant in VARIANTS:
        of = [verdict for verdict in verdicts if verdict.variant == variant]
        if not of:
            continue
        counts = Counter(verdict.outcome for verdict in of)
        print(f"{variant}: {len(of)} tests, {sum(verdict.requests for verdict in of)} requests; ", end="")
        print(f"{unfit[variant]} more that onnxruntime alone does not run")
        for outcome in OUTCOMES:
            print(f"  {counts[outcome]:5} {outcome}")
        if variant == "free":
            pairs = Counter(
                (verdict.rows, verdict.batched)
                for verdict in of
                if verdict.outcome in GOOD or verdict.requests
            )
            for rows in ("independent", "dependent", "no rows"):
                print(f"  axis 0 {rows}: {pairs[rows, True]} batched, {pairs[rows, False]} alone")
    if options.json:
        options.json.write_text(json.dumps([msgspec.to_builtins(verdict) for verdict in verdicts], indent=1))


def main(given: list[str] | None = None) -> int:
    verdicts = run(arguments(given))
    return int(any(verdict.outcome not in GOOD for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
