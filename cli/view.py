"""The layout of `batchyard top`: an interval as rich renderables. Pure: opens no terminal.

Owns the layout and its colours. If there is no room, the busiest models are shown, with the number of the
others.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from io import StringIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from . import text
from .rates import Interval, Model, Run, Track, Worker

CURVE_WIDTH = 18  # intervals in a curve
BAR_WIDTH = 8
WIDE = 108  # columns from which everything has room
FRAME_LINES = 1 + 4 + 4 + 2  # title, tiles, the models' heading and space, the frame at the bottom
WORKERS_LINES = 8  # at most, on a screen
LANES_SHOWN = 3
MEMORY = ("arenas", "held", "as frames", "copied", "refused")
MEMORY_SHORT = ("arenas", "held", "refused")

BLOCKS = " ▁▂▃▄▅▆▇█"
BLOCKS_ASCII = " .:-=+*%#"
NOTHING = "–"
STYLES = {"URGENT": "bold red", "HIGH": "yellow", "NORMAL": "cyan", "LOW": "blue"}
STATES = {"ready": "green", "loading": "yellow", "failed": "bold red"}
DIM = "bright_black"


class Screen:
    """What is on the screen: the last interval, and curves of those before. `below`: a line under it;
    `is_stale`: it is not of now, and the line says why."""

    def __init__(self, seen: Interval, every_s: float) -> None:
        self.every_s = every_s
        self.below = ""
        self.is_stale = False
        self._seen = seen
        self._requests: deque[float] = deque(maxlen=CURVE_WIDTH)
        self._rows: deque[float] = deque(maxlen=CURVE_WIDTH)
        self._waiting: deque[float] = deque(maxlen=CURVE_WIDTH)

    def show(self, seen: Interval) -> None:
        """Show the next interval. One without rates adds nothing to the curves."""
        self._seen = seen
        if seen.requests_per_s is not None and seen.rows_per_s is not None:
            self._requests.append(seen.requests_per_s)
            self._rows.append(seen.rows_per_s)
            self._waiting.append(seen.rows_waiting)

    def svg(self, width: int) -> str:
        """A picture of it, `width` columns wide, that fetches nothing."""
        console = Console(
            record=True, width=width, force_terminal=True, color_system="truecolor", file=StringIO()
        )
        console.print(self)
        picture = console.export_svg(title="batchyard top")
        return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        seen = self._seen
        blocks = BLOCKS_ASCII if options.ascii_only else BLOCKS
        wide = options.max_width >= WIDE
        workers = max(len(seen.workers), len(MEMORY) if wide else 1)
        left = None  # as long as it gets
        if options.height is not None:
            workers = min(workers, WORKERS_LINES)
            left = max(1, options.height - FRAME_LINES - workers - (not wide) - bool(self.below))
        yield _title(seen, self.every_s, wide)
        yield self._tiles(blocks, wide)
        yield _models(seen.models, left, blocks, wide)
        yield _bottom(seen, workers, wide)
        if self.below:
            style = "bold yellow" if self.is_stale else DIM
            yield Text(f" {self.below}", style=style, no_wrap=True, overflow="ellipsis")

    def _tiles(self, blocks: str, wide: bool) -> RenderableType:
        seen = self._seen
        ended = Text("all ended well", "green") if seen.requests_per_s else Text("")
        failed = {name: rate for name, rate in seen.outcomes_per_s.items() if name != "ok"}
        if failed:
            ended = Text(_reasons(failed), "red")
        batch = NOTHING if seen.rows_per_batch is None else f"{seen.rows_per_batch:.1f}"
        tiles = [
            _tile("requests/s", _rate(seen.requests_per_s), _curve(self._requests, blocks, "cyan"), ended),
            _tile(
                "rows/s",
                _rate(seen.rows_per_s),
                _curve(self._rows, blocks, "green"),
                Text(f"{batch} in a batch" + f", {_rate(seen.batches_per_s)} batches/s" * wide, DIM),
            ),
            _tile(
                "rows waiting",
                f"{seen.rows_waiting:,}",
                _curve(self._waiting, blocks, "yellow"),
                Text(f"{seen.rows_under_way:,} under way" + f", credit {seen.credit}" * wide, DIM),
            ),
        ]
        grid = Table.grid(expand=True)
        for _ in tiles:
            grid.add_column(ratio=1)
        grid.add_row(*tiles)
        return grid


def _title(seen: Interval, every_s: float, wide: bool) -> RenderableType:
    line = Table.grid(expand=True)
    line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    line.add_column(justify="right", no_wrap=True)
    name = Text.assemble((" batchyard ", "bold black on cyan"), "  ", (seen.url, "bold"))
    broker = f"broker {seen.pid}, {seen.version}"
    if wide:
        name.append(f"  {broker}  {text.plural(seen.clients, 'client')}", DIM)
    clock = time.strftime("%H:%M:%S", time.localtime(seen.ended_s))
    line.add_row(name, Text(f"every {every_s:g} s  {clock} ", DIM))
    return line


def _tile(title: str, value: str, curve: Text, below: Text) -> Panel:
    top = Table.grid(expand=True)
    top.add_column(no_wrap=True)
    top.add_column(justify="right", no_wrap=True, overflow="crop", ratio=1)
    top.add_row(Text(value, "bold"), curve)
    below.no_wrap, below.overflow = True, "ellipsis"
    return Panel(Group(top, below), title=title, title_align="left", border_style=DIM, box=box.ROUNDED)


def _curve(values: Sequence[float], blocks: str, style: str) -> Text:
    """Each bar's height is its share of the greatest."""
    top = max(values, default=0.0)
    steps = len(blocks) - 1
    heights = (1 + int(value / top * (steps - 1) + 0.5) if value else 0 for value in values)
    return Text("".join(blocks[height] for height in heights), style)


# ---- models -------------------------------------------------------------------------------------

COLUMNS = ("req/s", "rows/s", "batch", "run p50", "waiting", "p50", "p99", "queue p99")
NARROW = ("req/s", "rows/s", "waiting", "p50", "p99")


def _models(models: Sequence[Model], lines: int | None, blocks: str, wide: bool) -> RenderableType:
    """A line for each model, and below it one for each priority and each of several lanes; as many models
    as `lines` hold."""
    columns = COLUMNS if wide else NARROW
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, header_style=DIM, border_style=DIM)
    table.add_column(" model", ratio=1, no_wrap=True, overflow="ellipsis")
    for column in columns:
        bars = wide and column == "waiting"
        width = BAR_WIDTH + 6 if bars else None
        table.add_column(column, justify="left" if bars else "right", no_wrap=True, min_width=width)
    most = max((track.waiting_rows for model in models for track in model.tracks), default=0)
    rows: list[tuple[Text, dict[str, Text]]] = []
    for index, model in enumerate(models):
        its = [_model_row(model), *(_track_row(track, most, blocks, wide) for track in model.tracks)]
        its += _lane_rows(model, most, blocks, wide)
        more = len(models) - index
        if lines is not None and len(rows) + len(its) + (more > 1) > lines:
            # The first is shown as far as it fits: a screen that says nothing helps nobody.
            rows += [] if index else its[: max(0, lines - (more > 1))]
            if index or more > 1:
                rows.append((Text(f" … {text.plural(more - (not index), 'more model')}", DIM), {}))
            break
        rows += its
    for name, cells in rows or [(Text(" no models", DIM), {})]:
        table.add_row(name, *(cells.get(column, Text("")) for column in columns))
    return table


def _model_row(model: Model) -> tuple[Text, dict[str, Text]]:
    name = Text.assemble(" ", (model.name, "bold"), "  ", (model.state, STATES.get(model.state, "")))
    by = ", ".join(f"{count} {provider}" for provider, count in sorted(model.providers.items()))
    name.append(f"  {by or 'no worker'}", DIM if by else "red")
    if model.revision > 1:
        name.append(f"  rev {model.revision}", DIM)
    if model.padding_share is not None:
        name.append(f"  padding {model.padding_share:.0%}", DIM)
    style = "bold" if model.requests_per_s else DIM
    return name, {
        "req/s": Text(_rate(model.requests_per_s), style),
        "rows/s": Text(_rate(model.rows_per_s), style),
        "batch": Text(NOTHING, DIM) if model.rows_per_batch is None else Text(f"{model.rows_per_batch:.1f}"),
        "run p50": _took(model.compute.p50_ns if model.compute else None),
    }


def _track_row(track: Track, most: int, blocks: str, wide: bool) -> tuple[Text, dict[str, Text]]:
    style = STYLES[track.priority]
    name = Text.assemble("   ", (track.priority, style))
    if track.failed_per_s:
        name.append(f"  {_rate(track.failed_per_s)}/s failed", "red")
    latency, queue = track.latency, track.queue
    return name, {
        "req/s": Text(_rate(track.requests_per_s), "" if track.requests_per_s else DIM),
        "waiting": _bar(track.waiting_rows, most, blocks, style, wide),
        "p50": _took(latency.p50_ns if latency else None),
        "p99": _took(latency.p99_ns if latency else None),
        "queue p99": _took(queue.p99_ns if queue else None),
    }


def _lane_rows(model: Model, most: int, blocks: str, wide: bool) -> list[tuple[Text, dict[str, Text]]]:
    """The fullest lanes, if requests of several shapes wait."""
    lanes = sorted((lane for lane in model.lanes if lane.shapes), key=lambda lane: -lane.waiting_rows)
    if len(lanes) < 2:
        return []
    rows = []
    for lane in lanes[:LANES_SHOWN]:
        shapes = ", ".join("×".join(map(str, shape)) or "scalar" for shape in lane.shapes)
        bar = _bar(lane.waiting_rows, most, blocks, DIM, wide)
        rows.append((Text(f"   lane of {shapes}", DIM), {"waiting": bar}))
    more = len(lanes) - LANES_SHOWN + model.lanes_omitted
    if more > 0:
        rows.append((Text(f"   … {text.plural(more, 'more lane')}", DIM), {}))
    return rows


def _bar(rows: int, most: int, blocks: str, style: str, wide: bool) -> Text:
    if not rows:
        return Text("")
    length = min(BAR_WIDTH, max(1, round(rows / most * BAR_WIDTH))) if wide and most else 0
    return Text.assemble((blocks[-1] * length, style), f"{' ' if length else ''}{rows:,}")


# ---- workers and memory -------------------------------------------------------------------------


def _bottom(seen: Interval, lines: int, wide: bool) -> RenderableType:
    if not wide:
        parts = (f"{name} {value}" for name, value in _memory(seen) if name in MEMORY_SHORT)
        line = Text(" " + "   ".join(parts), DIM, no_wrap=True, overflow="ellipsis")
        return Group(_workers(seen, lines), line)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=DIM, no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in _memory(seen):
        grid.add_row(name, Text(value, "red" if name == "refused" and seen.refused_per_s else ""))
    memory = Panel(grid, title="memory", title_align="left", border_style=DIM, height=lines + 2)
    both = Table.grid(expand=True)
    both.add_column(ratio=3)
    both.add_column(ratio=2)
    both.add_row(_workers(seen, lines), memory)
    return both


def _workers(seen: Interval, lines: int) -> Panel:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    shown = seen.workers if len(seen.workers) <= lines else seen.workers[: lines - 1]
    for worker in shown:
        grid.add_row(*_worker_cells(worker))
    body: RenderableType = grid
    if not seen.workers:
        body = Text("no worker: requests wait", "red")
    elif len(shown) < len(seen.workers):
        body = Group(grid, Text(f"… {len(seen.workers) - len(shown)} more", DIM))
    troubles = [
        f"{count} {what}"
        for count, what in (
            (seen.workers_lost, "lost"),
            (seen.workers_restarted, "restarted"),
            (seen.workers_hung, "hung"),
            (seen.workers_left, "left"),
        )
        if count
    ]
    title = f"workers  {len(seen.workers)} up" + (f", {', '.join(troubles)}" if troubles else "")
    style = "red" if seen.workers_lost > seen.workers_restarted else DIM
    return Panel(body, title=title, title_align="left", border_style=style, height=lines + 2)


def _worker_cells(worker: Worker) -> list[Text]:
    runs = Text("idle", DIM)
    if worker.runs is not None:
        runs = Text.assemble(("runs ", "green"), _run(worker.runs))
        if worker.follows is not None:
            runs.append(f", then {_run(worker.follows)}", DIM)
    provider = ", ".join(worker.providers) or "loading"
    on = Text(f"{provider} (fallen)", "yellow") if worker.fallback_reason else Text(provider)
    return [Text(f"#{worker.worker}", "bold"), Text(f"pid {worker.pid}", DIM), on, runs]


def _run(run: Run) -> str:
    return f"{run.model} × {run.rows}" if run.rows else run.model


def _memory(seen: Interval) -> list[tuple[str, str]]:
    copied = NOTHING if seen.copied_bytes_per_s is None else f"{text.size(seen.copied_bytes_per_s)}/s"
    values = (
        f"{seen.arenas}, {text.size(seen.arena_committed_bytes)}",
        text.size(seen.held_bytes),
        text.size(seen.inline_used_bytes),
        copied,
        _reasons(seen.refused_per_s) or "none",
    )
    return list(zip(MEMORY, values, strict=True))


# ---- figures ------------------------------------------------------------------------------------


def _rate(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 9.95 or not value else f"{value:.1f}"


def _reasons(rates: Mapping[str, float]) -> str:
    """`12/s overloaded, 0.5/s cancelled`."""
    return ", ".join(f"{_rate(rate)}/s {name.replace('_', ' ')}" for name, rate in rates.items())


def _took(value_ns: float | None) -> Text:
    return Text(NOTHING, DIM) if value_ns is None else Text(text.duration(value_ns))
