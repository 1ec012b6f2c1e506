"""Accuracy over latency, with the Pareto front as a line. Needs matplotlib: the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DECADE = 10  # a range from which on the axis is logarithmic
NAMED_MAX = 24  # of the front; more names would hide the points


@dataclass(frozen=True)
class Point:
    name: str
    x: float
    y: float
    is_front: bool


def draw(path: Path, points: Sequence[Point], x_label: str, y_label: str, title: str) -> None:
    """Write a .png or .svg. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    front = sorted((point for point in points if point.is_front), key=lambda point: point.x)
    others = [point for point in points if not point.is_front]
    axes.scatter(
        [point.x for point in others], [point.y for point in others], color="tab:gray", label="beaten"
    )
    axes.plot(
        [point.x for point in front],
        [point.y for point in front],
        "o-",
        color="tab:blue",
        drawstyle="steps-post",  # nothing better is known until the next point
        label="Pareto front",
    )
    for point in front[:NAMED_MAX]:
        axes.annotate(point.name, (point.x, point.y), (5, -10), textcoords="offset points", fontsize=7)
    if max(point.x for point in points) > DECADE * min(point.x for point in points):
        axes.set_xscale("log")
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=150)
