"""The mutation gate: sow one bug at a time into a copy of the package, and see who finds it.

`python -m batchyard.tests.sim.gate [--seeds N] [--only TEXT] [--skip N]`. The simulator goes first; a mutant that
survives its seeds goes on to the unit tests. Exit status 1 if one survives both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 400
SIM_LIMIT_S = 180  # a mutant may loop for ever: that counts as found
UNIT_LIMIT_S = 300  # of one folder's
ALL_UNITS_LIMIT_S = 1_200
SKIP = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "*.so", "*.pyd")  # sown into the source


def sow(mutant: Mutant, package: Path) -> None:
    """Replace the text; raises when it is not there exactly once."""
    path = package / mutant.file
    source = path.read_text(encoding="utf-8")
    found = source.count(mutant.old)
    if found != 1:
        raise ValueError(f"stale mutant {mutant.name!r}: its text occurs {found} times in {mutant.file}")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")


def judge(mutant: Mutant | None, seeds: int) -> str | None:
    """Who found it; None: nobody. Without a mutant: who finds fault with the code as it is."""
    with tempfile.TemporaryDirectory(prefix="batchyard-gate-") as folder:
        package = Path(folder) / "batchyard"
        shutil.copytree(ROOT, package, ignore=SKIP)
        if mutant is not None:
            sow(mutant, package)
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        sim = [sys.executable, "-m", "batchyard.tests.sim", "--first", str(seeds)]
        try:
            done = subprocess.run(
                sim, cwd=folder, env=environment, capture_output=True, text=True, timeout=SIM_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return "simulator: it hangs"
        if done.returncode:
            told = [line for line in done.stdout.splitlines() if line.startswith("broken at seed ")]
            return f"simulator, {told[0].split(':')[0].removeprefix('broken at ')}" if told else "simulator: it crashes"
        unit = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *_unit_tests(mutant)]
        try:
            limit_s = UNIT_LIMIT_S if mutant else ALL_UNITS_LIMIT_S
            tested = subprocess.run(
                unit, cwd=package, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return "unit tests: they hang"
        failed = [line for line in tested.stdout.splitlines() if line.startswith("FAILED ")]
        return f"unit test {failed[0].split('::')[-1].split(' - ')[0]}" if failed else None


def _unit_tests(mutant: Mutant | None) -> list[str]:
    """Where the tests of a mutant's file are: those called after it, then the deepest folder that mirrors its own."""
    found: dict[str, None] = {}  # in order, each once
    for one in [mutant] if mutant else MUTANTS:
        file = Path(one.file)
        folder = Path("tests/unit") / file.parent
        while not (ROOT / folder).is_dir():
            folder = folder.parent
        named = sorted((ROOT / folder).glob(f"test_{file.stem}*.py")) if mutant else []
        found |= dict.fromkeys([*(str(test.relative_to(ROOT)) for test in named), str(folder)])
    return list(found)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", default="", help="mutants whose name or file has this text")
    parser.add_argument("--skip", type=int, default=0, help="so many at the beginning: a run that was ended goes on")
    options = parser.parse_args(arguments)
    if found := judge(None, 20):
        print(f"the code as it is fails already: {found}")
        return 1
    chosen = [m for m in MUTANTS if options.only in m.name or options.only in m.file][options.skip :]
    started_s = time.monotonic()
    survivors = 0
    print("| bug | in | found by |\n|---|---|---|")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for mutant, found in zip(chosen, pool.map(lambda m: judge(m, options.seeds), chosen), strict=True):
            survivors += found is None
            print(f"| {mutant.name} | `{mutant.file}` | {found or '**nobody**'} |", flush=True)
    print(f"\n{len(chosen)} mutants, {survivors} survived, {time.monotonic() - started_s:.0f} s")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
