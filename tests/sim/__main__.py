"""`python -m batchyard.tests.sim SEED...` replays seeds and says what happened in them;
`--first N` plays 0 to N - 1 and stops at the first that breaks a promise."""

from __future__ import annotations

import argparse
import sys
import traceback

from .world import Violation, run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m batchyard.tests.sim", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="*")
    parser.add_argument("--first", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    for seed in range(options.first):
        try:
            run(seed)
        except Violation as violation:
            print(f"broken at seed {seed}: {violation.__cause__!r}\n{violation}")
            return 1
    status = 0
    for seed in options.seeds:
        try:
            result = run(seed)
        except Violation as violation:
            status = 1
            traceback.print_exception(violation.__cause__, limit=-4, file=sys.stdout)
            print(violation)
        else:
            print(f"seed {seed}: trace {result.trace_hash}, {result.steps} events")
            print(f"  injected: {result.faults}\n  outcomes: {result.outcomes}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
