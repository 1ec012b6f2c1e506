"""`batchyard top`: watch a yard: models, priorities, batches, workers, memory.

Takes a snapshot every interval, reports a missing broker, and decides when to end. `rates` turns two
snapshots into an interval, `view` draws it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..client import Operator
from ..transport import extras
from ..transport.arguments import add_yard, seconds
from ..transport.errors import BatchyardError, BrokerLost, DeadlineExceeded
from ..transport.snapshot import Snapshot, read
from .arguments import parser
from .keyboard import Keyboard
from .rates import Interval, between

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from .view import Screen

FIRST_ANSWER_S = 2.0  # for there to be a broker at all
ANSWER_S = 1.0  # for a broker to answer before it counts as gone
LOOK_S = 0.1  # how often the terminal's size is looked at
PLAIN_WIDTH = 110  # columns, where there is no terminal to ask
KEYS = "q ends it"
QUIT = ("q", "Q", "\x1b", "\x04")  # also Escape, Ctrl-D
EXAMPLES = """examples:
  batchyard top
  batchyard top --interval 0.5 --url tcp://127.0.0.1:5555
  batchyard top --once
  batchyard top --json | jq .requests_per_s"""


def main(argv: list[str]) -> int:
    """Return 0 after q or Ctrl-C, or once the requested output is printed; raises if there is no broker at
    the start."""
    options = _parser().parse_args(argv)
    source = _Source(Operator(options.url, options.keys))
    try:
        if options.json:
            _print_json(source, options.interval, options.once)
        else:
            _show(source, options.interval, options.once, options.svg)
    except KeyboardInterrupt:
        pass  # that is how it ends
    return 0


class _Source:
    """A yard's intervals, one after another."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._before: Snapshot | None = None
        self._before_s = 0.0

    @property
    def url(self) -> str:
        return self._operator.endpoint.url

    def first(self) -> Interval:
        """The present state, without rates. Raises like `Operator.snapshot`, also if there is no broker."""
        return self._take(read(self._operator.snapshot(FIRST_ANSWER_S)))

    def next(self) -> Interval | None:
        """The interval since the last call; None without a broker."""
        try:
            return self._take(read(self._operator.snapshot(ANSWER_S)))
        except (BrokerLost, DeadlineExceeded):
            return None

    def _take(self, after: Snapshot) -> Interval:
        now_s = time.monotonic()
        found = between(self._before, after, now_s - self._before_s, time.time(), self.url)
        self._before, self._before_s = after, now_s
        return found


def _print_json(source: _Source, every_s: float, once: bool) -> None:
    """A line for every interval that has rates."""
    encoder = msgspec.json.Encoder()
    source.first()
    for seen in _intervals(source, every_s):
        if seen.interval_s is not None:
            print(encoder.encode(seen).decode(), flush=True)
            if once:
                return


def _show(source: _Source, every_s: float, once: bool, svg: Path | None) -> None:
    """Draw, or print, and save the last view as a picture."""
    if importlib.util.find_spec("rich") is None:
        raise BatchyardError(f"{extras.missing('rich')}; --json does without")
    from rich.console import Console

    from .view import Screen

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows a ? here and there
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    screen = Screen(source.first(), every_s)
    try:
        if console.is_terminal and not once:
            _draw(source, screen, console)
        else:
            _print(source, screen, once, console)
    finally:
        if svg is not None:
            svg.write_text(screen.svg(console.width), encoding="utf-8")


def _print(source: _Source, screen: Screen, once: bool, console: Console) -> None:
    """Print a block for every interval to stdout."""
    for seen in _intervals(source, screen.every_s):
        screen.show(seen)
        if seen.interval_s is not None:
            console.print(screen, "")
            if once:
                return


def _intervals(source: _Source, every_s: float) -> Iterator[Interval]:
    """Each interval as it ends. A missing broker is reported once, on stderr."""
    is_waiting = False
    while True:
        time.sleep(every_s)
        seen = source.next()
        if seen is None and not is_waiting:
            print(f"waiting for the broker at {source.url}", file=sys.stderr, flush=True)
        is_waiting = seen is None
        if seen is not None:
            yield seen


def _draw(source: _Source, screen: Screen, console: Console) -> None:
    """The live view, until a key or Ctrl-C ends it."""
    from rich.live import Live

    lost_s = 0.0
    screen.below = KEYS
    with (
        _signals_noted() as came,
        Keyboard() as keyboard,
        Live(screen, console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.refresh()
            if _pause(screen.every_s, keyboard, live, came):
                return
            seen = source.next()
            if seen is None:
                lost_s = lost_s or time.monotonic()
                waited_s = time.monotonic() - lost_s
                screen.below = f"waiting for the broker… {waited_s:.0f} s; showing the last known state"
            else:
                lost_s = 0.0
                screen.below = KEYS
                screen.show(seen)
            screen.is_stale = seen is None


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """The signals that have come; they take effect at the end. One that was raised between two of rich's
    lines would leave the terminal in its alternate screen."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _pause(for_s: float, keyboard: Keyboard, live: Live, came: Sequence[int]) -> bool:
    """Wait, and redraw if the terminal is resized. True means: end."""
    until_s = time.monotonic() + for_s
    size = live.console.size
    while (left_s := until_s - time.monotonic()) > 0:
        if keyboard.pressed(min(left_s, LOOK_S)) in QUIT or came:
            return True
        if live.console.size != size:
            size = live.console.size
            live.refresh()
    return False


def _parser() -> argparse.ArgumentParser:
    arguments = parser("top", "Show what a yard is doing.", EXAMPLES)
    arguments.add_argument(
        "--interval", type=seconds, default=1.0, metavar="S", help="seconds between updates (%(default)g)"
    )
    arguments.add_argument("--once", action="store_true", help="print one interval and exit")
    form = arguments.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per interval and line")
    form.add_argument("--svg", type=Path, metavar="FILE", help="save the last view as a picture")
    add_yard(arguments)
    return arguments
