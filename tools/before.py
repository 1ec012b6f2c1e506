"""`python3 run measure before REVISION`: `batchyard bench` of two revisions of this repository, in turns.

Both run in this environment, one short round after the other, and every second time in the other order. So a
slow minute of the machine meets both. A ratio is this checkout's figure divided by the revision's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import BatchyardError
from ..bench.main import say
from ..bench.statistics import quotient, spread
from ..transport.arguments import count, number

ROOT = Path(__file__).resolve().parents[1]
OURS = "batchyard"  # contenders whose names begin so
BY_LATENCY = ("tiny-latency", "frame")  # of the others, the rate
SIDES = ("before", "after")
EXAMPLES = """\
examples:
  python3 run measure before HEAD~1
  python3 run measure before v0.1 --rounds 9 --only cnn,frame
"""

Figures = dict[str, float]  # by benchmark and contender; ns, or 1/s


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "measure before",
        description="Run the benchmarks of another revision and of this checkout, in turns.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("revision", help="of git, to compare with")
    parser.add_argument("--rounds", type=count, default=5, help="of both, in turns (%(default)s)")
    parser.add_argument("--seconds", type=number, default=0.5, help="per contender and round (%(default)s)")
    parser.add_argument("--only", default="", metavar="A,B", help="as `batchyard bench` takes it")
    options = parser.parse_args(arguments)
    rounds: list[dict[str, Figures]] = []
    with tempfile.TemporaryDirectory(prefix="batchyard-before-") as name, _checkouts(
        Path(name), options.revision
    ):
        for index in range(options.rounds):
            order = SIDES if index % 2 == 0 else SIDES[::-1]
            rounds.append({side: _figures(Path(name), side, options) for side in order})
            say(f"round {index + 1} of {options.rounds}")
    print(table(rounds))
    return 0


def table(rounds: list[dict[str, Figures]]) -> str:
    """One line for each figure that both revisions have."""
    names = [name for name in rounds[0]["after"] if name in rounds[0]["before"]]
    width = max(map(len, names), default=0)
    lines = [f"{'':<{width}}  {'before':>12}  {'after':>12}  after / before: median (min-max) of rounds"]
    for name in names:
        figures = {side: spread(each[side].get(name, 0.0) for each in rounds).median for side in SIDES}
        pairs = [(each["after"].get(name, 0.0), each["before"].get(name, 0.0)) for each in rounds]
        ratio = spread(quotient(*pair) for pair in pairs)
        shown = [f"{_shown(name, figures[side]):>12}" for side in SIDES]
        text = f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
        lines.append(f"{name:<{width}}  {'  '.join(shown)}  {text}")
    return "\n".join(lines)


def figures_of(report: dict[str, Any]) -> Figures:
    """Of the JSON that `batchyard bench` writes."""
    found: Figures = {}
    for benchmark, entry in report["benchmarks"].items():
        for contender, summary in entry["figures"]["pooled"].items():
            if contender.startswith(OURS):
                key = "p50_ns" if benchmark in BY_LATENCY else "rate_per_s"
                kind = "p50" if benchmark in BY_LATENCY else "rate"
                found[f"{benchmark}, {contender}: {kind}"] = summary[key]
    return found


def _shown(name: str, figure: float) -> str:
    return f"{figure / 1e3:,.0f} us" if name.endswith("p50") else f"{figure:,.0f}/s"


@contextmanager
def _checkouts(folder: Path, revision: str) -> Iterator[None]:
    """Both as packages called `batchyard`, in a folder each."""
    before = folder / "before" / "batchyard"
    before.parent.mkdir()
    (folder / "after").mkdir()
    (folder / "after" / "batchyard").symlink_to(ROOT)
    _git("worktree", "add", "--quiet", "--detach", str(before), revision)
    try:
        yield
    finally:
        _git("worktree", "remove", "--force", str(before))


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise BatchyardError(f"git {arguments[0]}: {done.stderr.strip()}")


def _figures(folder: Path, side: str, options: argparse.Namespace) -> Figures:
    report = folder / "report.json"
    command = [sys.executable, "-m", "batchyard.cli.main", "bench", "--rounds", "1"]
    command += ["--seconds", str(options.seconds), "--json", str(report)]
    if options.only:
        command += ["--only", options.only]
    environment = os.environ | {"PYTHONPATH": str(folder / side)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BatchyardError(f"the benchmarks of the revision {side!r} failed: {done.stderr.strip()[-500:]}")
    return figures_of(json.loads(report.read_text(encoding="utf-8")))
