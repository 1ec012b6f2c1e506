"""Where a lone request's time goes, hop by hop: `python -m batchyard.tests.campaigns.hops`.

Every process notes when its socket calls return (receiving) or begin (sending); their clock is the same. A hop
is from the call that sends to the return of the call that has received: two system calls, and the waking
of whoever waits. Its floor is measured in the same run: two bare Python processes that send the same
number of bytes to and fro.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import struct
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import batchyard

REQUESTS = 3_000
WARM_UP = 300
BYTES = 45  # of a Submit

# Notes: [when, kind] as int64 pairs, behind their number. Kind 1: received, 2: is about to send.
HOOK = '''
import mmap, os, socket, struct, sys, time
_folder = os.environ.get("BATCHYARD_HOPS")
_argv = " ".join(sys.orig_argv)
if _folder and ("batchyard.broker" in _argv or "gpuworker.child" in _argv):
    _name = "broker" if "batchyard.broker" in _argv else "worker"
    _size = 1 << 24
    with open(os.path.join(_folder, f"{_name}-{os.getpid()}"), "w+b") as _file:
        _file.truncate(_size)
        _map = mmap.mmap(_file.fileno(), _size)
    _at = 8
    _pack, _now = struct.Struct("qq").pack_into, time.monotonic_ns
    def _note(when, kind):
        global _at
        if _at + 16 <= _size:
            _pack(_map, _at, when, kind)
            _at += 16
            struct.pack_into("q", _map, 0, _at)
    def _receiving(name):
        plain = getattr(socket.socket, name)
        def call(*arguments):
            found = plain(*arguments)
            _note(_now(), 1)
            return found
        setattr(socket.socket, name, call)
    def _sending(name):
        plain = getattr(socket.socket, name)
        def call(*arguments):
            _note(_now(), 2)
            return plain(*arguments)
        setattr(socket.socket, name, call)
    for _each in ("recv", "recvmsg", "recv_into"):
        _receiving(_each)
    for _each in ("send", "sendmsg"):
        _sending(_each)
'''
STEPS = (
    "client: check, place, pack", "hop: client to broker", "broker: admit, form, lend", "hop: broker to worker",
    "worker: bind, run, scatter", "hop: worker to broker", "broker: settle", "hop: broker to client",
    "client: unpack, result",
)  # fmt: skip


def notes(folder: Path, name: str) -> list[tuple[int, int]]:
    """(when, kind) of every socket call of one kind of process."""
    found: list[tuple[int, int]] = []
    for path in folder.glob(f"{name}-*"):
        data = path.read_bytes()
        found += struct.iter_unpack("qq", data[8 : struct.unpack_from("q", data)[0]])  # type: ignore[arg-type]
    return sorted(found)


def steps(
    calls: list[tuple[int, int, int, int]], broker: list[tuple[int, int]], worker: list[tuple[int, int]]
) -> list[list[int]]:
    """ns of each step, for every request beside which nothing else was said. `calls`: when each began, sent,
    received, and ended."""
    found = []
    places = {"broker": 0, "worker": 0}
    for began, sent, received, ended in calls:
        inside: dict[str, list[tuple[int, int]]] = {}
        for name, every in (("broker", broker), ("worker", worker)):
            at = places[name]
            while at < len(every) and every[at][0] < began:
                at += 1
            start = at
            while at < len(every) and every[at][0] < ended:
                at += 1
            places[name] = at
            inside[name] = every[start:at]
        if [kind for _, kind in inside["broker"]] != [1, 2, 1, 2] or [kind for _, kind in inside["worker"]] != [1, 2]:
            continue
        (a, _), (b, _), (c, _), (d, _) = inside["broker"]
        (e, _), (f, _) = inside["worker"]
        times = [began, sent, a, b, e, f, c, d, received, ended]
        found.append([after - before for before, after in pairwise(times)])
    return found


class Client:
    """This process's own socket calls, noted the same way."""

    def __init__(self) -> None:
        self.sent = self.received = 0
        for name in ("recv", "recvmsg"):
            self._wrap(name, receives=True)
        self._wrap("send", receives=False)

    def _wrap(self, name: str, receives: bool) -> None:
        plain = getattr(socket.socket, name)

        def call(*arguments: Any) -> Any:
            if not receives:
                self.sent = time.monotonic_ns()
                return plain(*arguments)
            found = plain(*arguments)
            self.received = time.monotonic_ns()
            return found

        setattr(socket.socket, name, call)


def _echo(here: socket.socket, there: socket.socket) -> None:
    here.close()  # this process's copy: or its end would never come
    while data := there.recv(4096):
        there.send(data)


def floor_ns(count: int) -> float:
    """One hop between two bare processes: half of a round trip."""
    here, there = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=_echo, args=(here, there))
    child.start()
    there.close()
    data, times = bytes(BYTES), []
    for _ in range(count):
        began = time.monotonic_ns()
        here.send(data)
        here.recv(4096)
        times.append(time.monotonic_ns() - began)
    here.close()
    child.join()
    return median(times) / 2


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hops", description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args(arguments)
    from batchyard.bench import models

    floors = [floor_ns(options.requests)]
    runs: list[int] = []
    with tempfile.TemporaryDirectory(prefix="batchyard-hops-") as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        os.environ["BATCHYARD_HOPS"] = name
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (name, os.environ.get("PYTHONPATH", ""))))
        path, x = models.write("tiny", folder), models.sample("tiny")
        own = Client()
        with batchyard.serve({"tiny": path}, workers=1, threads=1) as yard, yard.client() as client:
            for _ in range(WARM_UP):
                client.infer("tiny", x)
            calls = []
            for _ in range(options.requests):
                began = time.monotonic_ns()
                reply = client.request("tiny", x)
                calls.append((began, own.sent, own.received, time.monotonic_ns()))
                runs.append(reply.receipt.compute_ns)
        rows = steps(calls, notes(folder, "broker"), notes(folder, "worker"))
    floors.append(floor_ns(options.requests))
    if len(rows) < options.requests / 2:
        print(f"only {len(rows)} of {options.requests} requests were alone", file=sys.stderr)
        return 1
    print("| step | us | floor |\n|---|---|---|")
    for step, column in zip(STEPS, zip(*rows, strict=True), strict=True):
        floor = f"{min(floors) / 1e3:.1f}" if step.startswith("hop") else ""
        floor = f"{median(runs) / 1e3:.1f} (the run)" if step.startswith("worker") else floor
        print(f"| {step} | {median(column) / 1e3:.1f} | {floor} |")
    print(f"| in all | {median(map(sum, rows)) / 1e3:.1f} | |")
    print(f"\n{len(rows)} of {options.requests} requests")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
