"""How many of our functions one request enters, in each process: `python -m batchyard.tests.campaigns.calls`.

Every process counts by `sys.setprofile`, which a `sitecustomize` of ours starts in it, into a file that this
one maps. A lone `infer` is counted from call to result; `submit` and `map` with 64 under way per request.
`--list` names the functions of the client's own lone `infer`.
"""

from __future__ import annotations

import argparse
import mmap
import os
import struct
import sys
import tempfile
import threading
from collections import Counter, deque
from pathlib import Path
from types import FrameType
from typing import Any

import batchyard
import numpy as np

ROOT = Path(batchyard.__file__).resolve().parent
REQUESTS = 2_000
WARM_UP = 200

# The path of a frame's file is compared without resolving links: that would cost more than the call.
HOOK = '''
import mmap, os, struct, sys, threading
_folder = os.environ.get("BATCHYARD_CALLS")
if _folder and "batchyard." in " ".join(getattr(sys, "orig_argv", sys.argv)):
    _name = "worker" if "gpuworker" in " ".join(sys.orig_argv) else "broker"
    with open(os.path.join(_folder, f"{_name}-{os.getpid()}"), "w+b") as _file:
        _file.truncate(8)
        _map = mmap.mmap(_file.fileno(), 8)
    _count = 0
    def _profile(frame, event, argument, pack=struct.Struct("q").pack_into):
        global _count
        if event == "call" and "/batchyard/" in frame.f_code.co_filename:
            _count += 1
            pack(_map, 0, _count)
    sys.setprofile(_profile)
    threading.setprofile(_profile)
'''


class Own:
    """Calls of this process, by function, while `counts` is true."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.counts = False

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and self.counts and "/batchyard/" in frame.f_code.co_filename:
            file = Path(frame.f_code.co_filename)
            self.calls[f"{file.parent.name}/{file.name} {frame.f_code.co_name}"] += 1


def read(folder: Path) -> dict[str, int]:
    """Calls so far by kind of process."""
    totals: Counter[str] = Counter()
    for path in folder.iterdir():
        if "-" in path.name and path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ) as mapped:
                totals[path.name.split("-")[0]] += struct.unpack("q", mapped[:8])[0]
    return totals


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="calls", description=__doc__)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args(arguments)
    x = np.load(ROOT / "examples" / "digits_test.npz")["images"][:1]
    own = Own()
    with tempfile.TemporaryDirectory(prefix="batchyard-calls-") as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        os.environ["BATCHYARD_CALLS"] = name
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (name, os.environ.get("PYTHONPATH", ""))))
        with batchyard.serve(ROOT / "examples" / "digits.onnx", threads=1) as yard, yard.client() as client:
            sys.setprofile(own.profile)
            threading.setprofile(own.profile)

            def lone(count: int) -> None:
                for _ in range(count):
                    client.infer("digits", x)

            def submit(count: int) -> None:
                under_way: deque[Any] = deque()
                for _ in range(count):
                    if len(under_way) >= 64:
                        under_way.popleft().result()
                    under_way.append(client.submit("digits", x))
                while under_way:
                    under_way.popleft().result()

            def mapped(count: int) -> None:
                for _ in client.map("digits", [x] * count):
                    pass

            print("| | client | broker | worker |\n|---|---|---|---|")
            ways = (("infer, 1 under way", lone), ("submit, 64", submit), ("map, 64", mapped))
            for title, run in ways:
                run(WARM_UP)
                before = read(folder)
                own.calls.clear()
                own.counts = True
                run(options.requests)
                own.counts = False
                after = read(folder)
                figures = [sum(own.calls.values()), *(after[kind] - before[kind] for kind in ("broker", "worker"))]
                print(f"| {title} | " + " | ".join(f"{figure / options.requests:.1f}" for figure in figures) + " |")
                if options.list and run is lone:
                    for function, count in own.calls.most_common():
                        if count >= options.requests // 2:
                            print(f"    {count / options.requests:.1f}  {function}")
            sys.setprofile(None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
