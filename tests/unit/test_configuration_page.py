"""docs/configuration.md and examples/batchyard.toml name the keys that are read, with the defaults that they
have: neither fewer nor more."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from batchyard.broker import config
from batchyard.gateway.options import OPTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "examples" / "batchyard.toml").read_text(encoding="utf-8")

MODEL = config.ModelConfig("m", Path())
LIMITS = config.Limits()
# Each key's default by table; None: the page says in words what happens without it.
DEFAULTS: dict[str, dict[str, Any]] = {
    "models.NAME": {
        **dict.fromkeys(config.MODEL_KEYS),
        "max_batch": MODEL.max_batch,
        "trusted": MODEL.trusted,
        "warmup": MODEL.warmup,
        "idempotent": MODEL.idempotent,
        "join": MODEL.join,
        "cache_ms": MODEL.cache_ns // 1_000_000,
        "cache_bytes": MODEL.cache_bytes,
    },
    "limits": {key: getattr(LIMITS, key) for key in config.LIMITS_ALLOWED},
    "priorities": {
        f"{name}_ms": budget_ns // 1_000_000
        for name, budget_ns in zip(config.CLASSES, config.BUDGETS_NS_DEFAULT, strict=True)
    },
    "broker": {
        **dict.fromkeys(config.BROKER_KEYS, False),
        "spin_us": config.SPIN_US_DEFAULT,
        "stop_seconds": config.STOP_SECONDS_DEFAULT,
    },
    "gateway": {option.toml: option.default for option in OPTIONS},
}
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def rows(table: str) -> dict[str, str]:
    """Each key of a table on the page, and its default as it is written there."""
    section = PAGE.partition(f"## `[{table}]`")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        keys = re.findall(r"`(\w+)`", cells[0])
        if line.startswith("| `") and keys:
            values = re.split(r", | and ", cells[1]) if len(keys) > 1 else [cells[1]]
            found |= dict(zip(keys, values if len(values) == len(keys) else [""] * len(keys), strict=True))
    return found


def value_of(text: str) -> Any:
    """`4 GiB`, `65,536`, `false`, `"all"`."""
    number = re.fullmatch(r"([\d,.]+) ?(KiB|MiB|GiB|)", text)
    if number:
        return float(number[1].replace(",", "")) * UNITS[number[2]]
    return {"true": True, "false": False}.get(text, text.strip('"'))


@pytest.mark.parametrize("table", DEFAULTS)
def test_the_page_has_every_key_of_a_table_and_its_default(table: str) -> None:
    written = rows(table)
    assert list(written) == list(dict.fromkeys(written))
    assert set(written) == set(DEFAULTS[table])
    for key, default in DEFAULTS[table].items():
        if default is not None:
            assert value_of(written[key]) == default, key


@pytest.mark.parametrize("table", ["limits", "priorities", "broker", "gateway"])
def test_the_example_has_every_key_of_a_table_and_its_default(table: str) -> None:
    section = EXAMPLE.partition(f"# [{table}]")[2].partition("# [")[0]
    written = tomllib.loads("\n".join(re.findall(r"^# (\w+ = .*)$", section, re.M)))
    assert set(written) == set(DEFAULTS[table])
    for key, default in DEFAULTS[table].items():
        if default is not None:
            assert written[key] == default, key


def test_the_example_has_every_key_of_a_model() -> None:
    models = EXAMPLE.partition("[models.digits]")[2].partition("# [limits]")[0]
    assert set(re.findall(r"^(?:# )?(\w+) = ", models, re.M)) == set(config.MODEL_KEYS)


def test_nothing_stands_above_or_beside_the_tables_but_what_is_read() -> None:
    head = PAGE.partition("Above the tables:")[2].partition("\n## ")[0]
    above = set(re.findall(r"^\| `(\w+)` \|", head, re.M))
    tables = {name.partition(".")[0] for name in re.findall(r"^## `\[([\w.]+)\]`", PAGE, re.M)}
    assert above | tables == set(config.TABLES)
    assert above == set(re.findall(r"^# (\w+) = ", EXAMPLE.partition("[models.")[0], re.M))
