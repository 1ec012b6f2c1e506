"""Exports many models in turn. A model that fails does not stop the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .build import Say, export_to_onnx
from .lists import Entry
from .report import Report
from .sources import first_line


@dataclass(frozen=True)
class Outcome:
    """How one model ended: with a report, or with one sentence."""

    name: str
    took_s: float
    report: Report | None
    error: str | None

    @property
    def failed(self) -> bool:
        """Whether there is no file, or a variant that was requested by name is missing."""
        return self.report is None or bool(self.report.missing)


def export_many(
    entries: Sequence[Entry], out: Path, say: Say = lambda line: None, **common: Any
) -> list[Outcome]:
    """Export each to `out/NAME.onnx`. `common`: arguments for all, which an entry's own override."""
    outcomes = []
    for index, entry in enumerate(entries, 1):
        place = f"[{index}/{len(entries)}] {entry.name}"
        say(f"{place}: starting")
        began_s = time.perf_counter()
        report, error = None, None
        try:
            model, given = entry.load()
            report = export_to_onnx(model, out / f"{entry.name}.onnx", **{**common, **given})
        except Exception as failure:  # of whatever kind: the next model is exported
            error = first_line(failure)
        outcome = Outcome(entry.name, time.perf_counter() - began_s, report, error)
        say(f"{place}: {sentence(outcome)} ({outcome.took_s:.1f} s)")
        outcomes.append(outcome)
    return outcomes


def sentence(outcome: Outcome) -> str:
    """The outcome in a few words."""
    if outcome.report is None:
        return f"failed: {outcome.error}"
    if outcome.report.missing:
        first = outcome.report.missing[0]
        return f"{first.name} refused: {'; '.join(first.refused)}"
    return f"published, best is {outcome.report.best.name}"


@contextmanager
def importable(where: Path) -> Iterator[None]:
    """Let `module:factory` find modules in a folder, or beside a list, as `python -m` does with the
    current folder."""
    folder = str((where if where.is_dir() else where.parent).resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
