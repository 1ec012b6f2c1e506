"""`python3 run measure panels`: the dashboard as a picture, drawn from a Prometheus' own answers.

Owns the drawing alone: which panels there are, where they lie, and what they ask is read from the
dashboard that Grafana reads. No Grafana is needed, and none is imitated: lines, areas, and a gauge.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import BatchyardError
from ..transport.arguments import number

DASHBOARD = Path("grafana/dashboards/batchyard.json")
RATE_INTERVAL = "20s"  # what Grafana makes of a scrape interval of 5 s
DEVICE = {"expr": "batchyard_device_info", "legendFormat": "{{device}}"}  # what the title's variable is
POINTS = 240
GRID_COLUMNS = 24
COLUMN_IN, LINE_IN = 0.62, 0.30  # of Grafana's grid, in inches
BYTES = ("bytes", "binBps")
WHOLE = ("short", "reqps")  # a scale that ends below 1 would make much of nothing
PAPER, PANE, INK, FAINT = "#111217", "#181b1f", "#ccccdc", "#8e8e9c"
COLOURS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#b877d9", "#56d9d9", "#ffa6b0", "#c8f2c2")
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}
EPILOG = """\
examples:
  python3 run measure panels panels.png
  python3 run measure panels panels.png --minutes 5 --rows Yard,Queues --prometheus http://127.0.0.1:9090
"""

Series = tuple[str, list[tuple[float, float]]]  # legend, (time, value)


def main(arguments: list[str]) -> int:
    """0, and the picture is there. Raises BatchyardError where Prometheus can't be asked."""
    parser = argparse.ArgumentParser(
        "measure panels",
        description="Draw the dashboard from a Prometheus' answers. Needs matplotlib (batchyard[plot]).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("picture", type=Path, help="a PNG to write")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL", help="(%(default)s)")
    parser.add_argument("--dashboard", type=Path, default=DASHBOARD, metavar="FILE", help="(%(default)s)")
    parser.add_argument("--minutes", type=number, default=15.0, help="up to now (%(default)s)")
    parser.add_argument("--rows", default="", metavar="A,B", help="rows of the dashboard (all)")
    options = parser.parse_args(arguments)
    panels = chosen(read(options.dashboard), options.rows.split(",") if options.rows else [])
    until_s = time.time()
    from_s = until_s - options.minutes * 60
    devices = ask(options.prometheus, DEVICE, from_s, until_s)
    device = devices[0][0] if devices else "GPU"
    panels = [{**panel, "title": panel["title"].replace("${device}", device)} for panel in panels]

    def answers(panel: dict[str, Any]) -> list[Series]:
        return [
            series
            for target in panel["targets"]
            for series in ask(options.prometheus, target, from_s, until_s)
        ]

    draw(panels, answers, (from_s, until_s), options.picture)
    print(f"{options.picture}: {options.picture.stat().st_size:,} bytes")
    return 0


def read(path: Path) -> dict[str, Any]:
    """Raises BatchyardError. The dashboard is in the repository alone, and in no wheel."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BatchyardError(
            f"{path} is no readable dashboard ({error}): start in the repository, or name it with --dashboard"
        ) from None


def chosen(dashboard: dict[str, Any], rows: list[str]) -> list[dict[str, Any]]:
    """The panels of these rows (none: of all), rows included, moved up where others are left out."""
    known = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    for row in rows:
        if row not in known:
            raise BatchyardError(f"the dashboard has no row {row!r}; there is: {', '.join(known)}")
    found = []
    left_out = 0
    row = ""
    top = 0
    for panel in [*dashboard["panels"], {"type": "row", "title": "", "gridPos": {"y": None}}]:
        if panel["type"] == "row":
            bottom = panel["gridPos"]["y"]
            if row and rows and row not in rows and bottom is not None:
                left_out += bottom - top
            row, top = panel["title"], bottom
        if row and (not rows or row in rows):
            grid = panel["gridPos"]
            found.append({**panel, "gridPos": {**grid, "y": grid["y"] - left_out}})
    return found


def ask(prometheus: str, target: dict[str, Any], from_s: float, until_s: float) -> list[Series]:
    """A target's series over that time; what is no number is left out of them."""
    expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
    for name in ("$job", "$instance", "$model"):
        expression = expression.replace(name, ".*")
    step = f"{step_s(from_s, until_s):.3f}"
    query = {"query": expression, "start": f"{from_s:.3f}", "end": f"{until_s:.3f}", "step": step}
    address = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            results = json.load(answer)["data"]["result"]
    except (OSError, ValueError, KeyError) as error:
        raise BatchyardError(f"Prometheus at {prometheus} does not answer: {error}") from None
    found = []
    for result in results:
        legend = target["legendFormat"]
        for label, value in result["metric"].items():
            legend = legend.replace(f"{{{{{label}}}}}", value)
        points = [(float(at), float(value)) for at, value in result["values"]]
        points = [point for point in points if math.isfinite(point[1])]
        # One of many that never was more than 0 would only fill the legend.
        if points and (len(results) == 1 or any(value for _, value in points)):
            found.append((legend, points))
    return found


def step_s(from_s: float, until_s: float) -> float:
    """Seconds from one point to the next."""
    return max(1.0, (until_s - from_s) / POINTS)


def draw(
    panels: list[dict[str, Any]],
    answers: Callable[[dict[str, Any]], list[Series]],
    span_s: tuple[float, float],
    picture: Path,
) -> None:
    """Each panel where the dashboard has it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plot

    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plot.figure(figsize=(GRID_COLUMNS * COLUMN_IN, height * LINE_IN), facecolor=PAPER)
    for panel in panels:
        grid = panel["gridPos"]
        left, width = grid["x"] / GRID_COLUMNS, grid["w"] / GRID_COLUMNS
        bottom, tall = 1 - (grid["y"] + grid["h"]) / height, grid["h"] / height
        if panel["type"] == "row":
            figure.text(
                left + 0.006,
                bottom + tall / 2,
                panel["title"],
                color=INK,
                size=11,
                weight="bold",
                va="center",
            )
            continue
        gap = 0.004
        pane = figure.add_axes((left + gap, bottom + gap, width - 2 * gap, tall - 2 * gap), facecolor=PANE)
        pane.set_xticks([])
        pane.set_yticks([])
        pane.spines[:].set_visible(False)
        inches = (width * GRID_COLUMNS * COLUMN_IN, tall * height * LINE_IN)
        pane.text(
            0.13 / inches[0],
            1 - 0.12 / inches[1],
            panel["title"],
            color=INK,
            size=9,
            va="top",
            transform=pane.transAxes,
        )
        series = answers(panel)
        inside = (
            left + 0.62 / inches[0] * width,
            bottom + 0.52 / inches[1] * tall,
            width * (1 - 0.80 / inches[0]),
            tall * (1 - 0.98 / inches[1]),
        )
        if panel["type"] == "stat":
            _stat(pane, series, panel)
        elif panel["type"] == "gauge":
            around = (left, bottom - 0.12 * tall, width, 0.94 * tall)
            _gauge(figure.add_axes(around, projection="polar"), series, panel)
        else:
            _lines(figure.add_axes(inside, facecolor=PANE), series, panel, span_s)
    figure.savefig(picture, dpi=100, facecolor=PAPER)
    plot.close(figure)


def _lines(axes: Any, series: list[Series], panel: dict[str, Any], span_s: tuple[float, float]) -> None:
    from matplotlib.ticker import FixedLocator

    unit = panel["fieldConfig"]["defaults"]["unit"]
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    floor: dict[float, float] = {}
    gap_s = 2 * step_s(*span_s)
    for (legend, points), other in zip(series, COLOURS * 4, strict=False):
        is_total = legend.endswith("total")
        colour = FAINT if is_total else fixed_colour(panel, legend) or other
        if panel["fieldConfig"]["defaults"]["custom"]["drawStyle"] == "bars":
            heights = [value for _, value in points]
            axes.bar([at for at, _ in points], heights, step_s(*span_s), color=colour, label=legend)
            continue
        times: list[float] = []
        values: list[float] = []
        for at, value in points:
            if times and at - times[-1] > gap_s:  # nothing was said meanwhile: no line across it
                times.append(at)
                values.append(math.nan)
            times.append(at)
            values.append(value)
        low = [floor.get(at, 0.0) for at in times]
        high = [value + below for value, below in zip(values, low, strict=True)]
        # Of a stack, what is 0 would be a line along its neighbour's edge.
        edge = [top if value or not stacked else math.nan for top, value in zip(high, values, strict=True)]
        axes.plot(
            times, edge, color=colour, linewidth=1.1, label=legend, linestyle="--" if is_total else "-"
        )
        alpha = 0.0 if is_total else 0.4 if stacked else 0.08
        axes.fill_between(times, low, high, color=colour, alpha=alpha, linewidth=0)
        if stacked:
            floor.update((at, top) for at, top in zip(times, high, strict=True) if not math.isnan(top))
    axes.set_xlim(*span_s)
    top = axes.get_ylim()[1]
    top = max(top, 1.0) if unit in WHOLE else top
    axes.set_ylim(0, top if series and top > 0 else 1)
    axes.yaxis.set_major_locator(FixedLocator(ticks(axes.get_ylim()[1], unit)))
    axes.grid(color="#2c3235", linewidth=0.6)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=FAINT, labelsize=7, length=0)
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    axes.xaxis.set_major_formatter(lambda value, _: time.strftime("%H:%M", time.localtime(value)))
    axes.xaxis.set_major_locator(_minutes(span_s))
    if series:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.12),
            ncols=6,
            fontsize=7,
            frameon=False,
            labelcolor=INK,
            handlelength=0.9,
            handletextpad=0.4,
            columnspacing=1.0,
            borderpad=0,
        )
    else:
        axes.text(0.5, 0.5, "no data", color=FAINT, size=8, ha="center", transform=axes.transAxes)


def fixed_colour(panel: dict[str, Any], legend: str) -> str | None:
    """The colour that the dashboard gives to this name."""
    for override in panel["fieldConfig"]["overrides"]:
        kind, name = override["matcher"]["id"], override["matcher"]["options"]
        if name == legend if kind == "byName" else re.search(name.strip("/"), legend):
            for each in override["properties"]:
                if each["id"] == "color":
                    return str(each["value"]["fixedColor"])
    return None


def _stat(axes: Any, series: list[Series], panel: dict[str, Any]) -> None:
    """The last value of each series, in the colour of its threshold."""
    defaults = panel["fieldConfig"]["defaults"]
    texts = defaults["mappings"][0]["options"] if "mappings" in defaults else {}
    for row, (legend, points) in enumerate(series):
        value = points[-1][1]
        steps = defaults["thresholds"]["steps"]
        colour = [step["color"] for step in steps if value >= (step["value"] or 0)][-1]
        text = texts.get(f"{value:g}", {"text": shown(value, defaults["unit"])})["text"]
        line = f"{text}   {legend}" if len(series) > 1 else text
        colour = NAMED.get(colour, colour)
        height = 0.42 - 0.22 * (row - (len(series) - 1) / 2)
        axes.text(0.5, height, line, color=colour, size=12, ha="center", va="center", weight="bold")


def _gauge(axes: Any, series: list[Series], panel: dict[str, Any]) -> None:
    """The last value on an arc that ends at the highest."""
    points = series[0][1] if series else []
    value = points[-1][1] if points else math.nan
    most = max((value for _, value in points), default=1.0) or 1.0
    axes.set_axis_off()
    axes.set_ylim(0, 1)
    turn = 1.25 * math.pi
    start = math.pi / 2 + turn / 2
    for share, colour in ((1.0, "#2c3235"), (0.0 if math.isnan(value) else value / most, COLOURS[0])):
        axes.barh(0.86, -turn * share, left=start, height=0.26, color=colour)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    text = "no data" if math.isnan(value) else shown(value, unit)
    axes.text(0, 0, text, color=COLOURS[0], size=15, ha="center", va="center", weight="bold")


def ticks(top: float, unit: str) -> list[float]:
    """Four to eight round values from 0 up to `top`; of bytes, round ones are powers of two."""
    if unit in BYTES:
        step = 2.0 ** math.ceil(math.log2(top / 6))
    else:
        size = 10 ** math.floor(math.log10(top / 6))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= top / 6)
    return [step * index for index in range(int(top / step) + 1)]


def _minutes(span_s: tuple[float, float]) -> Any:
    from matplotlib.ticker import FixedLocator

    every_s = 60 * max(1, round((span_s[1] - span_s[0]) / 60 / 5))
    first = math.ceil(span_s[0] / every_s) * every_s
    return FixedLocator(list(range(first, int(span_s[1]) + 1, every_s)))


def shown(value: float, unit: str) -> str:
    """A value as Grafana would write it, in three digits."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for factor, name in ((1e6, "µs"), (1e3, "ms")):
            if value * factor < 1000:
                return f"{value * factor:.3g} {name}"
        return f"{value:.3g} s"
    suffix = {"reqps": " req/s", "rpm": " /min", "celsius": " °C", "watt": " W"}.get(unit, "")
    if unit in BYTES:
        for name in ("B", "KiB", "MiB", "GiB"):
            if value < 1024 or name == "GiB":
                return f"{value:.3g} {name}{'/s' if unit == 'binBps' else ''}"
            value /= 1024
    if value >= 9_995:
        return f"{value / 1000:.3g}k{suffix}"
    return f"{value:.0f}{suffix}" if value >= 100 else f"{value:.3g}{suffix}"
