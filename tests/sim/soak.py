"""`python3 run soak`: the simulator's long campaign, on every core; with --fuzz, the fuzzers' instead."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count

from .world import Violation, run

CHUNK = 50  # seeds that a process plays in one go
PROGRESS_S = 5.0
SHOWN_MAX = 3  # violations that are printed in full

Played = tuple[int, Counter[str], Counter[str], list[tuple[int, str]]]


def play(seeds: range) -> Played:
    """(seeds played, what was injected, how requests ended, violations)."""
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    broken: list[tuple[int, str]] = []
    for seed in seeds:
        try:
            result = run(seed)
        except Violation as violation:
            broken.append((seed, str(violation)))
        else:
            faults.update(result.faults)
            outcomes.update(result.outcomes)
    return len(seeds), faults, outcomes, broken


def chunks(first: int, seeds: int | None) -> Iterator[range]:
    for start in count(first, CHUNK):
        stop = start + CHUNK if seeds is None else min(start + CHUNK, first + seeds)
        if start >= stop:
            return
        yield range(start, stop)


def campaign(first: int, seeds: int | None, seconds: float | None, cores: int) -> Played:
    """Play until the seeds or the time are used up, and say now and then how it goes."""
    started_s = time.monotonic()
    said_s = started_s
    todo = chunks(first, seeds)
    under_way: set[Future[Played]] = set()
    total: Played = (0, Counter(), Counter(), [])
    with ProcessPoolExecutor(cores) as pool:
        while True:
            now_s = time.monotonic()
            if seconds is None or now_s - started_s < seconds:
                while len(under_way) < 2 * cores and (seeds_next := next(todo, None)) is not None:
                    under_way.add(pool.submit(play, seeds_next))
            if not under_way:
                return total
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for played, faults, outcomes, broken in (future.result() for future in done):
                total = (total[0] + played, total[1] + faults, total[2] + outcomes, total[3] + broken)
            if time.monotonic() - said_s > PROGRESS_S:
                said_s = time.monotonic()
                rate = total[0] / (said_s - started_s)
                print(f"  {total[0]:,} seeds, {rate:.0f} a second, {len(total[3])} violations", flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 run soak", description=__doc__)
    parser.add_argument("--seconds", type=float, help="stop after so long (default: 60, unless --seeds)")
    parser.add_argument("--seeds", type=int, help="stop after so many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gate", action="store_true", help="then sow the bugs of the mutation gate")
    parser.add_argument("--fuzz", action="store_true", help="feed the decoders and a live broker instead")
    options = parser.parse_args(arguments)
    if options.fuzz:
        from ..fuzz.__main__ import fuzz

        return fuzz(options.seconds or 60.0, options.first, options.cores)
    seconds = options.seconds if options.seconds or options.seeds else 60.0
    started_s = time.monotonic()
    played, faults, outcomes, broken = campaign(options.first, options.seeds, seconds, options.cores)
    took_s = time.monotonic() - started_s
    requests = faults.pop("requests", 0)
    faults.pop("not_connected", 0)  # nobody was there to ask: no fault of ours
    print(f"seeds       {played:,} from {options.first}, {played / took_s:.0f} a second on {options.cores} cores")
    print(f"requests    {requests:,}: " + ", ".join(f"{n:,} {kind}" for kind, n in outcomes.most_common()))
    print("injected    " + ", ".join(f"{n:,} {kind}" for kind, n in sorted(faults.items())))
    print(f"violations  {len(broken)}")
    for _, text in sorted(broken)[:SHOWN_MAX]:
        print(f"\n{text}")
    if len(broken) > SHOWN_MAX:
        print("\nalso: seeds " + ", ".join(str(seed) for seed, _ in sorted(broken)[SHOWN_MAX:]))
    status = 1 if broken else 0
    if options.gate:
        from . import gate

        status = gate.main([]) or status
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
