"""The gateway of `up`: its options from the command line and from [gateway] in batchyard.toml, checked before
anything starts, because a companion that can't run would be started again for ever."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..broker.config import ConfigError
from ..broker.toml_table import Table
from ..gateway import options
from ..gateway.options import OPTIONS, Option
from ..transport import extras
from ..transport.arguments import NOTICE_MAX_S, PORT_MAX, port

TABLE = "gateway"
PREFIX = "gateway-"


def add(parser: argparse.ArgumentParser) -> None:
    """--gateway [PORT], and each of its options as --gateway-OPTION."""
    text = f"serve HTTP at 127.0.0.1:PORT ({options.PORT}), gRPC at the port after it"
    parser.add_argument("--gateway", type=port, nargs="?", const=True, metavar="PORT", help=text)
    options.add_to(parser.add_argument_group("gateway"), PREFIX, without=("port",))


def gateway_of(
    given: argparse.Namespace, table: Mapping[str, Any] | None, source: Path
) -> tuple[list[str], argparse.Namespace] | None:
    """(the gateway's command line, its options), or None: none is wanted. The command line overrides `table`,
    [gateway] of `source`. Raises ConfigError, InvalidRequest, and OSError for the token's file."""
    flags = {option.name: getattr(given, f"gateway_{option.name}", None) for option in OPTIONS}
    if given.gateway is not True:
        flags["port"] = given.gateway
    asked = any(value is not None for value in flags.values())
    if given.gateway is None and table is None and not asked:
        return None
    extras.require("--gateway", "fastapi", "uvicorn", "grpc")
    values = _of_table(table or {}, source)
    values |= {name: value for name, value in flags.items() if value is not None}
    line = options.arguments(values)
    parsed = options.parser().parse_args(line)
    options.check(parsed, options.token_of(parsed.token_file))
    return line, parsed


def _of_table(content: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Values by the options' names; files and folders are relative to the configuration's own."""
    problems: list[str] = []
    table = Table(dict(content), TABLE, problems, tuple(option.toml for option in OPTIONS))
    values = {option.name: _value(table, option, source.absolute().parent) for option in OPTIONS}
    if problems:
        raise ConfigError(str(source), tuple(problems))
    return values


def _value(table: Table, option: Option, folder: Path) -> Any:
    """The value of a key; None if it is absent, or wrong (a problem is noted then)."""
    key = option.toml
    if key not in table.content:
        return None
    if option.kind == "flag":
        return table.boolean(key)
    if option.kind == "port":
        return table.integer(key, 0, 0 if option.name == "grpc_port" else 1, PORT_MAX)
    if option.kind == "notice":
        return table.integer(key, option.default, 0, NOTICE_MAX_S)
    if option.kind == "count":
        return table.integer(key, option.default, 1, options.COUNT_MAX)
    if option.kind == "folders":
        inner = Table(table.mapping(key), table.at(key), table.problems, tuple(table.mapping(key)))
        named = {name: inner.string(name, "a folder") for name in inner.content}
        return [(name, folder / text) for name, text in named.items() if text is not None]
    value = table.string(key, "a text")
    if option.choices and value is not None and value not in option.choices:
        table.wrong(key, " or ".join(f'"{choice}"' for choice in option.choices))
    return folder / value if option.kind == "file" and value is not None else value
