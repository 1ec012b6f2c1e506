"""`python -m batchyard.export.benchmark.exporter`: exports candidates, one at a time, on request.

JSON lines. In: {"where", "out", "common"} once, then {"export": name}, and {} as permission to measure.
Out: {"quiet": true} asks for permission, {"quiet": false} ends it, {"ended": name, "error": text or null}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..build import export_to_onnx
from ..lists import entries
from ..many import importable
from ..sources import first_line


class Exporter:
    """Reads requests from `orders`, writes results to `events`."""

    def __init__(self, orders: IO[str], events: IO[str]) -> None:
        self._orders = orders
        self._events = events

    def run(self) -> None:
        first = self._next()
        if first is None:
            return
        where, out = Path(first["where"]), Path(first["out"])
        with importable(where):
            found = {entry.name: entry for entry in entries(where)}
            while (order := self._next()) is not None:
                name, error = order["export"], None
                try:
                    model, given = found[name].load()
                    asked = {**first["common"], **given}
                    export_to_onnx(model, out / f"{name}.onnx", quiet=self._quiet, **asked)
                except Exception as failure:  # a candidate's end is not ours
                    error = first_line(failure)
                self._tell({"ended": name, "error": error})

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        self._tell({"quiet": True})
        if self._next() is None:
            sys.exit("nobody is left to export for")
        try:
            yield
        finally:
            self._tell({"quiet": False})

    def _next(self) -> Any:
        line = self._orders.readline()
        return json.loads(line) if line else None

    def _tell(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), file=self._events, flush=True)


def main() -> int:
    # A candidate may print, or read what it takes for a terminal: our pipes are not its business.
    orders = os.fdopen(os.dup(0), "r", encoding="utf-8")
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    Exporter(orders, events).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
