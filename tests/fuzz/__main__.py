"""`python -m batchyard.tests.fuzz TARGET HEX` feeds one input again; `--chunk N` a chunk of them.
Without arguments: the whole campaign, as `python3 run soak --fuzz`."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback

from . import campaign, guided, live, targets

SHOWN_MAX = 5  # broken promises that are printed


def replay(name: str, payload: bytes) -> int:
    try:
        print(targets.target(name).check(payload))
    except Exception:
        traceback.print_exc(limit=-6)
        return 1
    return 0


def fuzz(seconds: float, first: int, cores: int) -> int:
    """A third of the time each: mutations, atheris where it is installed, a live broker."""
    share_s = seconds / 3
    began_s = time.monotonic()
    played = campaign.campaign(share_s, cores, first)
    total = sum(played.inputs.values())
    print(
        f"mutations   {total:,} inputs, {total / (time.monotonic() - began_s):,.0f} a second on {cores} cores"
    )
    for name in targets.NAMES:
        print(f"            {played.inputs[name]:>12,} {name}, {played.accepted[name]:,} accepted")
    print(f"            slowest {played.slowest_ns / 1e6:.1f} ms of CPU time; "
          f"most memory for {campaign.CHUNK:,} inputs {played.growth_bytes / 1e6:.1f} MB")  # fmt: skip
    broken = played.broken
    if guided.is_installed():
        inputs, said = guided.campaign(targets.NAMES, share_s, cores)
        broken += said
        print(
            f"atheris     {sum(inputs.values()):,} inputs: "
            + ", ".join(f"{n:,} {name}" for name, n in inputs.items())
        )
    else:
        print("atheris     skipped: it is not installed (.venv/bin/pip install -e '.[fuzz]')")
    met = live.campaign(share_s, first)
    broken += met.broken
    print("\n".join(f"{'live' if not n else '':<12}{line}" for n, line in enumerate(met.lines())))
    print(f"broken      {len(broken)}")
    for text in broken[:SHOWN_MAX]:
        print(f"\n{text}")
    return 1 if broken else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m batchyard.tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=targets.NAMES)
    parser.add_argument("hex", nargs="?", help="the input, as it was printed")
    parser.add_argument("--chunk", type=int, metavar="N", help="play this chunk of the target's")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, help="the first chunk, and the live campaign's seed")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.target is None:
        return fuzz(options.seconds, options.first, options.cores)
    if options.hex is not None:
        return replay(options.target, bytes.fromhex(options.hex))
    if options.chunk is None:
        parser.error("a target needs an input in hex, or --chunk N")
    broken = campaign.play(options.target, options.chunk).broken
    print("\n\n".join(broken) or "nothing broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
