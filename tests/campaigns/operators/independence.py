"""Whether a model's axis 0 counts rows that have nothing to do with each other: our own check.

In plain onnxruntime, apart from the product's: rows run alone, together, and in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...plain import Plain, difference
from .free_axis import Drawer

INDEPENDENT = "independent"  # every row's answer is its own, wherever it stands
DEPENDENT = "dependent"  # some row's answer changed with its neighbours, or its place
NO_ROWS = "no rows"  # one row alone does not run, or rows together don't
ROWS = 5
TRIES = 3


def judge(plain: Plain, drawer: Drawer, rng: np.random.Generator) -> tuple[str, str]:
    """(one of the three, why), from a few draws: one draw that shows dependence is enough."""
    found, why = NO_ROWS, "no drawn row runs"
    for _ in range(TRIES):
        verdict, text = _once(plain, drawer, rng)
        if verdict == DEPENDENT:
            return verdict, text
        if verdict == INDEPENDENT or found == NO_ROWS:
            found, why = verdict, text
    return found, why


def _once(plain: Plain, drawer: Drawer, rng: np.random.Generator) -> tuple[str, str]:
    rows = [drawer.request("together", 1) for _ in range(ROWS)]
    shared = [name for name, value in rows[0].items() if not value.ndim]
    try:
        alone = [plain.run(row) for row in rows]
    except Exception as error:
        return NO_ROWS, f"one row: {str(error)[:160]}"
    for order in (list(range(ROWS)), [int(index) for index in rng.permutation(ROWS)]):
        feeds = {
            name: rows[0][name] if name in shared else np.concatenate([rows[index][name] for index in order])
            for name in rows[0]
        }
        try:
            together = plain.run(feeds)
        except Exception as error:
            return NO_ROWS, f"{ROWS} rows: {str(error)[:160]}"
        for output, answer in enumerate(together):
            wants = [alone[index][output] for index in order]
            text = _cut_differs(answer, wants)
            if text:
                return DEPENDENT, f"output {plain.outputs[output]!r}: {text}"
    return INDEPENDENT, ""


def _cut_differs(answer: Any, wants: list[Any]) -> str:
    """What is wrong with an output that is cut into one row each; "" where each is that row's own."""
    if not isinstance(answer, np.ndarray) or not answer.ndim or answer.shape[0] != len(wants):
        return f"{len(wants)} rows give the shape {getattr(answer, 'shape', None)}"
    for index, want in enumerate(wants):
        text = difference(want, answer[index : index + 1])
        if text:
            return f"row {index}: {text}"
    return ""
