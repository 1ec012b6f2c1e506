"""Text for people: aligned tables, durations, sizes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of aligned columns, the first row being the heading; columns in `right` are numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        GAP.join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def duration(value_ns: float) -> str:
    """Nanoseconds as three digits and a fitting unit."""
    for unit, factor in (("ns", 1.0), ("us", 1e3), ("ms", 1e6)):
        if value_ns < 999.5 * factor:
            return f"{value_ns / factor:.3g} {unit}"
    return f"{value_ns / 1e9:,.3g} s" if value_ns < 999.5e9 else f"{value_ns / 1e9:,.0f} s"


def size(value_bytes: float) -> str:
    """Bytes in powers of 1024 with three digits."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if value_bytes < 999.5:
            return f"{value_bytes:.3g} {unit}"
        value_bytes /= 1024
    return f"{value_bytes:,.3g} TB" if value_bytes < 999.5 else f"{value_bytes:,.0f} TB"


def plural(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`, `12,000 images`; for nouns with a plural in s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
