"""Options of one model besides its file: in `batchyard.toml`, as `serve(options=...)`, and by
operators' orders.

Owns the keys and their allowed values; a new key is a line of `_OPTIONS` and a field of ModelConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..transport.messages import PAD_SIZES_MAX, PADDED_AXES_MAX, ROWS_MAX, RUN_SECONDS_MAX, Pad
from .toml_table import Table

MAX_BATCH_DEFAULT = 32  # rows
MAX_BATCH_MAX = ROWS_MAX
CACHE_BYTES_DEFAULT = 64 << 20
CACHE_BYTES_MAX = 1 << 48
CACHE_MS_MAX = 86_400_000
ELEMENTS_MAX = 1 << 40  # of a batch, along padded axes
PAD_TO_MAX = 1 << 24  # of one axis

_Read = Callable[[Table, str], Any]


def _flag(default: bool) -> _Read:
    def read(table: Table, key: str) -> bool:
        value = table.boolean(key)
        return default if value is None else value

    return read


def _pads(model: Table, key: str) -> dict[str, Pad]:
    names = tuple(model.mapping(key))
    if len(names) > PADDED_AXES_MAX:
        model.problems.append(
            f"{model.at(key)}: expected at most {PADDED_AXES_MAX} axes, found {len(names)}"
        )
    table = model.table(key, names)
    return {name: _pad(table.table(name, ("to", "fill"))) for name in names}


def _pad(table: Table) -> Pad:
    sizes = table.rising("to", PAD_SIZES_MAX, PAD_TO_MAX, "[16, 32, 64]")
    fill = table.mapping("fill")
    numbers = Table(fill, table.at("fill"), table.problems, tuple(fill))
    kept = {}
    for name, value in fill.items():
        # A truth value is a number to Python, and a good fill for a mask of truth values.
        if isinstance(value, int | float) and value == value:
            kept[name] = float(value)
        else:
            numbers.wrong(name, "a number")
    return Pad(list(sizes), kept)


# key -> (the field of ModelConfig, how its value is read)
_OPTIONS: dict[str, tuple[str, _Read]] = {
    "max_batch": ("max_batch", lambda table, key: table.integer(key, MAX_BATCH_DEFAULT, 1, MAX_BATCH_MAX)),
    "batchable": ("batchable", Table.boolean),
    "batch_axis": ("batch_axis", Table.axes),
    "trusted": ("trusted", _flag(False)),
    "warmup": ("warmup", _flag(True)),
    "idempotent": ("idempotent", _flag(True)),
    "join": ("join", _flag(False)),
    "cache_ms": ("cache_ns", lambda table, key: round(table.milliseconds(key, 0, CACHE_MS_MAX) * 1e6)),
    "cache_bytes": (
        "cache_bytes",
        lambda table, key: table.integer(key, CACHE_BYTES_DEFAULT, 1, CACHE_BYTES_MAX),
    ),
    "pad": ("pad", _pads),
    "batch_elements_max": (
        "batch_elements_max",
        lambda table, key: table.integer(key, 0, 1, ELEMENTS_MAX),
    ),
    "run_seconds_max": ("run_ns_max", lambda table, key: table.seconds_ns(key, RUN_SECONDS_MAX)),
}
KEYS = (*_OPTIONS, "buckets")  # which end at max_batch


def read(table: Table, max_batch: int = MAX_BATCH_DEFAULT, buckets: tuple[int, ...] = ()) -> dict[str, Any]:
    """The fields of a ModelConfig that a model's table sets. Mistakes are added to the table's problems.
    `max_batch`, `buckets`: the defaults."""
    fields = {field: value(table, key) for key, (field, value) in _OPTIONS.items() if key in table.content}
    rows = fields.get("max_batch", max_batch)
    if "buckets" in table.content:
        fields["buckets"] = table.buckets("buckets", rows)
    elif buckets and buckets[-1] != rows:
        table.problems.append(
            f"{table.at('max_batch')}: its buckets end at {buckets[-1]}: say buckets that end at {rows}, too"
        )
    return fields
