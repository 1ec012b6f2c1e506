"""`python -m batchyard.tests.sim SEED...`: replay seeds, and say what happened in them."""

from __future__ import annotations

import sys

from .world import Violation, run


def main(arguments: list[str]) -> int:
    failed = 0
    for seed in map(int, arguments):
        try:
            result = run(seed)
        except Violation as violation:
            failed += 1
            cause = violation.__cause__
            at = cause.__traceback__ if cause is not None else None
            while at is not None and at.tb_next is not None:
                at = at.tb_next
            print(violation)
            if at is not None:
                print(f"  at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}")
        else:
            print(f"seed {seed}: {result.trace_hash} faults {result.faults} outcomes {result.outcomes}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
