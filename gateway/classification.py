"""Triton's classification extension: the best classes of an output in place of its scores.

Owns the form, `score:index:label`, and where labels are found in what a model's file says of itself. Pure.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from .datatypes import Array, Datatype, check_count
from .errors import invalid

LABELS = ("labels", "names", "id2label", "classes")  # the first of the file's entries that has any
_NONE: Mapping[int, str] = MappingProxyType({})


def labels_of(metadata: Mapping[str, str]) -> Mapping[int, str]:
    """A class's name by its index: of a list or an object of them, as JSON or (Ultralytics) as Python writes
    it, or of one name a line."""
    for key in LABELS:
        if metadata.get(key):
            found = _labels(metadata[key])
            if found:
                return found
    return _NONE


@lru_cache(maxsize=64)
def _labels(text: str) -> Mapping[int, str]:
    parsed: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(text)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            pass
    if parsed is None and "\n" in text:
        parsed = text.splitlines()
    if isinstance(parsed, list | tuple):
        parsed = dict(enumerate(parsed))
    if not isinstance(parsed, dict):
        return _NONE
    try:
        return MappingProxyType({int(index): str(label) for index, label in parsed.items()})
    except (ValueError, TypeError, OverflowError):
        return _NONE


def classes(
    array: Array, datatype: Datatype, count: int, labels: Mapping[int, str], by_row: bool, what: str
) -> Array:
    """The best `count` of each row ([rows, count]), or of the whole tensor ([count]): fewer where there are
    fewer. Equal scores keep their order; NaN is the worst. Raises Refusal for what are no scores."""
    if datatype.name == "BF16":
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind not in "iuf":
        raise invalid(f"{what} is {datatype.name}, and classes are made of numbers; leave class_count out")
    if not array.size:
        raise invalid(f"{what} is empty: it has no best class")
    rows = array.reshape(len(array) if by_row else 1, -1)
    kept = min(count, rows.shape[1])
    check_count(len(rows) * kept, what)
    # Stable, and from the end: ascending would put NaN last, too, but equal scores in reverse.
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :kept]
    texts = [
        [_text(row[index], index, labels) for index in best.tolist()]
        for row, best in zip(rows, order, strict=True)
    ]
    found = np.array(texts, dtype=object)
    return found if by_row else found[0]


def _text(score: Any, index: int, labels: Mapping[int, str]) -> str:
    written = f"{score:f}" if score.dtype.kind == "f" else str(score)
    return f"{written}:{index}:{labels[index]}" if index in labels else f"{written}:{index}"
