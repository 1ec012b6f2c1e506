"""How `batchyard top` is drawn: everything that matters is there, and it fits."""

from __future__ import annotations

import io

import msgspec
import pytest
from batchyard.cli.rates import Interval, Lane, Model, Run, Times, Track, Worker
from batchyard.cli.view import Screen
from rich.console import Console

MS = 1_000_000


def model(name: str, *, lanes: int = 1, rate: float = 1_000.0) -> Model:
    priorities = ("URGENT", "HIGH", "NORMAL", "LOW")
    return Model(
        name, 2, "ready", {"cpu": 2}, rate, rate * 8, 12.5, 16.0, 32.0, 0.0, None, Times(0.5 * MS, 2 * MS), None,
        [Track(priority, 40 * n, rate / 4, 1.5, Times(MS, 9 * MS), None) for n, priority in enumerate(priorities)],
        [Lane([[3, 64 << n, 64]] if lanes > 1 else [], n) for n in range(lanes)],
    )  # fmt: skip


def interval(models: list[Model], workers: int = 2) -> Interval:
    return Interval(
        1.8e9, 1.0, "ipc:///run/user/1000/batchyard", "0.1.0", 4711, 1, 3, 2, 120, 200, 1_234.0,
        {"ok": 1_200.0, "deadline_exceeded": 34.0}, {"overloaded": 3.0}, 9_876.0, 600.0, 16.5, 2e6, models,
        [Worker(n + 1, 5_000 + n, ["cpu"], Run("digits", 16), Run("digits", 8)) for n in range(workers)],
        3, 2, 1, 0, 0, 0, 3, 1 << 40, 3 << 26, 5 << 20, 0,
    )  # fmt: skip


def screen(seen: Interval, below: str = "") -> Screen:
    found = Screen(seen, 1.0)
    found.below = below
    for _ in range(100):
        found.show(seen)
    return found


def drawn(
    seen: Interval, width: int, height: int | None = None, *, encoding: str = "utf-8", below: str = ""
) -> list[str]:
    """The lines of a terminal of that size; height None: of a file."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    console = Console(
        file=file,
        width=width,
        height=height,
        force_terminal=height is not None,
        color_system=None,
        highlight=False,
    )
    view = screen(seen, below)
    if height is None:
        console.print(view)
    else:
        console.print(view, height=height)
    file.flush()
    return raw.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("width", [40, 79, 80, 107, 108, 120, 250])
@pytest.mark.parametrize("height", [22, 24, 30, 50, 100])
@pytest.mark.parametrize(("models", "workers"), [(0, 0), (1, 1), (3, 2), (40, 64)])
def test_it_fits_and_keeps_its_last_line(width: int, height: int, models: int, workers: int) -> None:
    seen = interval([model(f"model-{n}", lanes=n % 7) for n in range(models)], workers)
    lines = drawn(seen, width, height, below="q ends it")
    written = [line for line in lines if line.strip()]
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert written[-1].strip() == "q ends it"
    assert "batchyard" in lines[0]


def test_what_there_is_no_room_for_is_counted() -> None:
    text = "\n".join(drawn(interval([model(f"m{n}") for n in range(12)], 30), 120, 40))
    shown = sum(f" m{n} " in text for n in range(12))
    assert 0 < shown < 12
    assert f"… {12 - shown} more models" in text
    assert "… 23 more" in text  # workers: 7 and this line


def test_a_file_gets_all_of_it_without_a_single_escape_code() -> None:
    text = "\n".join(drawn(interval([model(f"m{n}") for n in range(40)], 30), 110))
    assert "\x1b" not in text
    assert all(f" m{n} " in text for n in range(40))
    assert "#30" in text
    assert "more" not in text


def test_every_figure_that_matters_is_there() -> None:
    text = "\n".join(drawn(interval([model("digits")]), 120, 40))
    for figure in (
        "ipc:///run/user/1000/batchyard", "broker 4711", "3 clients", "1,234", "9,876", "16.5 in a batch",
        "34/s deadline exceeded", "120", "credit 2", "URGENT", "HIGH", "NORMAL", "LOW", "1.5/s failed",
        "1 ms", "9 ms", "500 us", "rev 2", "2 cpu", "3 lost, 2 restarted, 1 hung", "digits × 16, then digits × 8",
        "3, 192 MB", "5 MB", "3.0/s overloaded",
    ):  # fmt: skip
        assert figure in text, figure


def test_a_narrow_terminal_still_says_what_memory_there_is() -> None:
    text = "\n".join(drawn(interval([model("digits")]), 80, 24))
    assert "arenas 3, 192 MB" in text
    assert "9 ms" in text


def test_lanes_are_told_where_there_are_several() -> None:
    text = "\n".join(drawn(interval([model("wide", lanes=5)]), 120, 40))
    assert "lane of 3×1024×64" in text
    assert "… 2 more lanes" in text
    many = msgspec.structs.replace(model("wide", lanes=5), lanes_omitted=9_000)
    assert "… 9,002 more lanes" in "\n".join(drawn(interval([many]), 120, 40))
    assert "lane" not in "\n".join(drawn(interval([model("digits")]), 120, 40))


def test_a_terminal_without_unicode_gets_none() -> None:
    lines = drawn(interval([model("m")]), 120, 40, encoding="ascii")
    assert any("#" * 8 in line for line in lines)


def test_a_picture_of_it_fetches_nothing() -> None:
    picture = screen(interval([model("digits")])).svg(120)
    assert picture.startswith("<svg")
    assert "URGENT" in picture
    assert "url(http" not in picture.replace('"', "")
