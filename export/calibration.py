"""The data from which static quantization takes its ranges: real rows, from a file or a callable."""

from __future__ import annotations

import pkgutil
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..transport.errors import InvalidRequest
from .specs import Array, Feeds, InputSpec, numpy_dtype

# A file, `module:function`, an array (one input), arrays by name, or a callable that yields arrays or
# mappings of them.
Data = str | Path | Array | Mapping[str, Array] | Callable[[], Iterable[Any]]

LABELS = "labels"
ROWS_MAX = 512  # ranges settle long before; the histograms of Entropy and Percentile grow with every row
ROWS_AT_ONCE = 8


def rows_of(data: Data, specs: Sequence[InputSpec], rows_max: int = ROWS_MAX) -> Feeds:
    """Arrays by input name, at most `rows_max` rows of each, on the input's batch axis. If no input has one,
    the samples follow each other on axis 0, each as long as the input's own axis 0.

    Raises InvalidRequest where names, dtypes, shapes or counts of rows don't fit the inputs.
    """
    found = _read(data, specs)
    if set(found) != {spec.name for spec in specs}:
        wanted = ", ".join(spec.name for spec in specs)
        raise InvalidRequest(f"the data has arrays {', '.join(found) or 'none'}; the inputs are {wanted}")
    places = row_axes(specs)
    feeds: Feeds = {}
    for spec in specs:
        array, place = np.asarray(found[spec.name]), places[spec.name]
        names = spec.axes or ("",) * len(spec.shape)
        fits = array.ndim == len(spec.shape) and all(
            bool(name) or axis == place or got == own
            for axis, (got, own, name) in enumerate(zip(array.shape, spec.shape, names, strict=True))
        )
        if not fits:
            sizes = [name or str(own) for own, name in zip(spec.shape, names, strict=True)]
            if place is not None:
                sizes[place] = "rows"
            raise InvalidRequest(f"{spec.name}'s data has shape {array.shape}, and not ({', '.join(sizes)})")
        dtype = numpy_dtype(spec.dtype)
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise InvalidRequest(f"{spec.name}'s data is {array.dtype}, and not {spec.dtype}")
        feeds[spec.name] = np.ascontiguousarray(array, dtype=dtype)
    counts = {
        feeds[spec.name].shape[place] // _length(spec, specs)
        for spec in specs
        if (place := places[spec.name]) is not None
    }
    if counts == {0} and all(feeds[spec.name].size for spec in specs):
        raise InvalidRequest(f"the data have fewer rows than the model's fixed batch of {specs[0].shape[0]}")
    if len(counts) > 1 or 0 in counts:
        raise InvalidRequest(f"the inputs' data have {sorted(counts)} rows: give each as many, and some")
    most = _pieces(specs, rows_max)
    if max(counts, default=0) > most:
        feeds = {spec.name: _cut(feeds[spec.name], spec, specs, slice(most)) for spec in specs}
    return feeds


def row_axes(specs: Sequence[InputSpec]) -> dict[str, int | None]:
    """The axis of each input's rows in the data: its batch axis, or axis 0 if no input has one."""
    if any(spec.batch_axis is not None for spec in specs):
        return {spec.name: spec.batch_axis for spec in specs}
    return {spec.name: 0 for spec in specs}


def rows_in(feeds: Feeds, specs: Sequence[InputSpec]) -> int:
    """How many rows these arrays have: on the batch axis, or on axis 0 without one."""
    places = row_axes(specs)
    counted = next(spec.name for spec in specs if places[spec.name] is not None)
    return int(feeds[counted].shape[places[counted] or 0])


def _length(spec: InputSpec, specs: Sequence[InputSpec]) -> int:
    """How long one sample is on the axis on which the samples lie."""
    return 1 if any(one.batch_axis is not None for one in specs) else spec.shape[0]


def _pieces(specs: Sequence[InputSpec], rows_max: int) -> int:
    """How many samples `rows_max` rows hold."""
    return max(1, rows_max // max(_length(spec, specs) for spec in specs))


def _cut(array: Array, spec: InputSpec, specs: Sequence[InputSpec], pieces: slice) -> Array:
    """These samples of an input's data; all of the data if every row has the same value."""
    place, each = row_axes(specs)[spec.name], _length(spec, specs)
    if place is None:
        return array
    part = slice((pieces.start or 0) * each, pieces.stop * each)
    found: Array = array[(slice(None),) * place + (part,)]
    return found


def batches(feeds: Feeds, specs: Sequence[InputSpec], rows: int, rows_max: int = ROWS_MAX) -> list[Feeds]:
    """Equal batches of `rows`. A remainder is dropped, unless it is all there is. Without a batch axis, a
    batch is one sample."""
    places = row_axes(specs)
    has_batch = any(spec.batch_axis is not None for spec in specs)
    counted = next(spec for spec in specs if places[spec.name] is not None)
    total = feeds[counted.name].shape[places[counted.name] or 0] // _length(counted, specs)
    total = min(total, _pieces(specs, rows_max))
    step = min(rows, total) if has_batch else 1
    return [
        {spec.name: _cut(feeds[spec.name], spec, specs, slice(start, start + step)) for spec in specs}
        for start in range(0, total - step + 1, step)
    ]


def is_named(text: str) -> bool:
    """Whether `text` is `module:function` and not a file."""
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
    """An .npy holds the only input; an .npz holds arrays by input name, or one array of any name. Its
    `labels`, if there are any, are not an input."""
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
