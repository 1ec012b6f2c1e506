"""`python -m batchyard.cli.demo.client`: one of the demo's clients, an ordinary user of `Client`.

Each priority has a thread of its own, so all four are in flight at once. A refused request is sent again
when the yard says. Every answer is checked as it arrives; the tally is written to a file at the end.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...client import Client, InferFuture, Priority
from ...transport import lifeline
from ...transport.errors import BatchyardError, DeadlineExceeded, Overloaded
from .tally import Array, Tally

DEADLINE_S = 10.0  # of every request: on a slow device the yard refuses what would come later


@dataclass(frozen=True)
class Stream:
    """The load of one priority: `under_way` requests at once, and a pause after each awaited one."""

    priority: Priority
    images: int  # of a request
    under_way: int
    pause_s: float


# Few and small where it is urgent, much where it is not: so there is a queue to be ahead of.
STREAMS = (
    Stream(Priority.URGENT, 1, 1, 0.005),
    Stream(Priority.HIGH, 2, 1, 0.005),
    Stream(Priority.NORMAL, 8, 1, 0.001),
    Stream(Priority.LOW, 64, 4, 0.0),
)


class Images:
    """The test images in order, over and over; each stream has its own position."""

    def __init__(self, images: Array, start: int) -> None:
        self._images = images
        self._start = start % len(images)

    def take(self, count: int) -> tuple[int, Array]:
        """(index of the first, the next `count` images, fewer at the end of the row)."""
        start, end = self._start, min(self._start + count, len(self._images))
        self._start = end % len(self._images)
        return start, self._images[start:end]

    def back_to(self, start: int) -> None:
        """Take the images from `start` on again: they got no answer."""
        self._start = start


def one_by_one(
    client: Client, model: str, stream: Stream, images: Images, tally: Tally, end_s: float
) -> None:
    """Ask, wait, pause."""
    while time.monotonic() < end_s:
        start, rows = images.take(stream.images)
        began_ns = time.perf_counter_ns()
        try:
            reply = client.request(model, rows, priority=stream.priority, deadline=DEADLINE_S)
        except Overloaded as full:
            _wait_for_room(full, stream, tally, end_s)
            images.back_to(start)
        except DeadlineExceeded:
            tally.late[stream.priority] += 1
        else:
            tally.add(stream.priority, start, reply.arrays[0], time.perf_counter_ns() - began_ns)
        if stream.pause_s:
            time.sleep(stream.pause_s)


def several_at_once(
    client: Client, model: str, stream: Stream, images: Images, tally: Tally, end_s: float
) -> None:
    """Keep `under_way` futures going; the next leaves when the oldest has come back."""
    under_way: deque[tuple[int, int, InferFuture, list[int]]] = deque()
    while True:
        while len(under_way) < stream.under_way and time.monotonic() < end_s:
            start, rows = images.take(stream.images)
            ended_ns: list[int] = []
            began_ns = time.perf_counter_ns()
            future = client.submit(model, rows, priority=stream.priority, deadline=DEADLINE_S)
            future.add_done_callback(partial(_note_end, ended_ns))
            under_way.append((start, began_ns, future, ended_ns))
        if not under_way:
            return
        start, began_ns, future, ended_ns = under_way.popleft()
        try:
            logits = future.result()
        except Overloaded as full:
            _wait_for_room(full, stream, tally, end_s)
            images.back_to(start)
            continue
        except DeadlineExceeded:
            tally.late[stream.priority] += 1
            continue
        # The callback may run a moment after result() returns.
        latency_ns = (ended_ns[0] if ended_ns else time.perf_counter_ns()) - began_ns
        tally.add(stream.priority, start, logits, latency_ns)


def _wait_for_room(full: Overloaded, stream: Stream, tally: Tally, end_s: float) -> None:
    """Wait as long as the yard said, but not past the end."""
    tally.refused[stream.priority] += 1
    time.sleep(max(0.0, min(full.retry_after_s, end_s - time.monotonic())))


def _note_end(ended_ns: list[int], future: object) -> None:
    ended_ns.append(time.perf_counter_ns())


def run(
    url: str,
    model: str,
    images: Array,
    expected: Array,
    labels: Array,
    seconds: float,
    number: int,
    keys: Path | None = None,
) -> Tally:
    """Run every stream for `seconds`. Raises the first error of any stream."""
    errors: list[Exception] = []
    total = Tally(expected, labels)
    tallies = [Tally(expected, labels) for _ in STREAMS]

    def guarded(work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception as error:  # carried to the main thread, which raises it
            errors.append(error)

    with Client(url, keys=keys) as client:
        client.wait_ready(model)
        total.began_s = time.monotonic()
        threads = []
        for stream, tally in zip(STREAMS, tallies, strict=True):
            walk = Images(images, number * len(images) // 4)  # clients are not in step
            work = one_by_one if stream.under_way == 1 else several_at_once
            arguments = (work, client, model, stream, walk, tally, total.began_s + seconds)
            threads.append(threading.Thread(target=guarded, args=arguments, name=stream.priority.name))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total.ended_s = time.monotonic()
    if errors:
        raise errors[0]
    for tally in tallies:
        total.merge(tally)
    return total


def main(argv: list[str] | None = None) -> int:
    """Return 0 if every request was answered, or refused for lack of time (see the tally); else 1."""
    parser = argparse.ArgumentParser(prog="python -m batchyard.cli.demo.client", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--model", required=True, help="its name")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--number", type=int, default=0, help="of this client among the demo's")
    parser.add_argument("--data", type=Path, required=True, help="npz: images, expected, labels")
    parser.add_argument("--tally", type=Path, required=True, help="npz to write")
    options = parser.parse_args(argv)
    lifeline.hold()
    try:
        with np.load(options.data, allow_pickle=False) as data:
            images, expected, labels = data["images"], data["expected"], data["labels"]
        load = (options.model, images, expected, labels, options.seconds, options.number)
        run(options.url, *load, options.keys).save(options.tally)
    except (BatchyardError, OSError) as error:
        print(f"client {options.number + 1}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
