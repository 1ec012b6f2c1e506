"""Data that static quantization reads its ranges from: real rows, from a file or a callable."""

from __future__ import annotations

import pkgutil
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..transport.errors import InvalidRequest
from .specs import Array, Feeds, InputSpec

# A file, `module:function`, an array (one input), arrays by name, or a callable that yields arrays or
# mappings of them.
Data = str | Path | Array | Mapping[str, Array] | Callable[[], Iterable[Any]]

LABELS = "labels"
ROWS_MAX = 512  # ranges settle long before; the histograms of Entropy and Percentile grow with every row
ROWS_AT_ONCE = 8


def rows_of(data: Data, specs: Sequence[InputSpec], rows_max: int = ROWS_MAX) -> Feeds:
    """Arrays by input name, `dtype[rows, ...]`, at most `rows_max` rows.

    Raises InvalidRequest where names, dtypes, shapes or counts of rows don't fit the inputs.
    """
    found = _read(data, specs)
    if set(found) != {spec.name for spec in specs}:
        wanted = ", ".join(spec.name for spec in specs)
        raise InvalidRequest(f"the data has arrays {', '.join(found) or 'none'}; the inputs are {wanted}")
    feeds: Feeds = {}
    for spec in specs:
        array = np.asarray(found[spec.name])
        if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
            shape = ", ".join(("rows", *map(str, spec.shape[1:])))
            raise InvalidRequest(f"{spec.name}'s data has shape {array.shape}, and not ({shape})")
        if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise InvalidRequest(f"{spec.name}'s data is {array.dtype}, and not {spec.dtype}")
        feeds[spec.name] = np.ascontiguousarray(array[:rows_max], dtype=spec.dtype)
    counts = {len(array) for array in feeds.values()}
    if len(counts) > 1 or 0 in counts:
        raise InvalidRequest(f"the inputs' data have {sorted(counts)} rows: give each as many, and some")
    return feeds


def batches(feeds: Feeds, rows: int) -> list[Feeds]:
    """Equal batches of `rows`; what is left over is dropped, unless there is nothing else."""
    total = len(next(iter(feeds.values())))
    rows = min(rows, total)
    starts = range(0, total - rows + 1, rows)
    return [{name: array[start : start + rows] for name, array in feeds.items()} for start in starts]


def is_named(text: str) -> bool:
    """Whether `text` is `module:function`, and no file."""
    return re.fullmatch(r"[\w.]+:[\w.]+", text) is not None and not text.endswith((".npy", ".npz"))


def resolved(text: str) -> Callable[[], Iterable[Any]]:
    """The function that `module:function` names. Raises InvalidRequest."""
    try:
        found = pkgutil.resolve_name(text)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRequest(f"{text} cannot be imported: {error}") from error
    if not callable(found):
        raise InvalidRequest(f"{text} is no function that yields batches")
    return found  # type: ignore[no-any-return]


def _read(data: Data, specs: Sequence[InputSpec]) -> Mapping[str, Array]:
    lone = specs[0].name
    if isinstance(data, str | Path):
        if not is_named(str(data)):
            return _load(Path(data), lone)
        data = resolved(str(data))
    if isinstance(data, np.ndarray):
        return {lone: data}
    if isinstance(data, Mapping):
        return data
    gathered: dict[str, list[Array]] = {}
    rows = 0
    for item in data():
        part = item if isinstance(item, Mapping) else {lone: item}
        for name, array in part.items():
            gathered.setdefault(str(name), []).append(np.asarray(array))
        rows += len(next(iter(part.values())))
        if rows >= ROWS_MAX:
            break
    try:
        return {name: np.concatenate(parts) for name, parts in gathered.items()}
    except ValueError as error:
        raise InvalidRequest(f"the calibration batches don't fit together: {error}") from None


def _load(path: Path, lone: str) -> Mapping[str, Array]:
    """An .npy is the one input; an .npz holds arrays by input name, or one array of any name. Labels that
    lie beside them are for whoever counts right answers."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {lone: found}
        with found:
            arrays = {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"{path} is no readable .npy or .npz of numbers: {error}") from None
    if lone != LABELS:
        arrays.pop(LABELS, None)
    return {lone: next(iter(arrays.values()))} if len(arrays) == 1 else arrays
