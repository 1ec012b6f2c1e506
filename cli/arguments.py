"""Shared parts of the verbs' command lines: the parser's shape, and how values are parsed.

Pure: opens nothing and starts nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from typing import Any

from ..transport.arguments import seconds

PRIORITIES = ("urgent", "high", "normal", "low")  # by transport.messages.Priority


def parser(verb: str, purpose: str, examples: str) -> argparse.ArgumentParser:
    """A verb's parser. `examples` are printed verbatim below the help."""
    return argparse.ArgumentParser(prog=f"batchyard {verb}", description=purpose, **_shape(examples))


def order(orders: Any, name: str, does: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a subcommand; `orders` is the result of add_subparsers."""
    made: argparse.ArgumentParser = orders.add_parser(name, help=does, description=does, **_shape(examples))
    return made


def _shape(examples: str) -> dict[str, Any]:
    return {
        "epilog": examples,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,  # a script's --max would break with the next option that starts so
    }


def seconds_or_none(text: str) -> float:
    """A duration; zero means none."""
    return 0.0 if text.strip() == "0" else seconds(text)


def difference(text: str) -> float:
    """A number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, found {text!r}")
    return value


def pair(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text!r}")
    return key, value


def setting(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` of a model's table. The value is written as in batchyard.toml; a bare word is text."""
    key, value = pair(text)
    for written in (value, json.dumps(value)):
        try:
            (found,) = tomllib.loads(f"_ = {written}").values()
        except (ValueError, RecursionError):  # no TOML, or more than one value
            continue
        return key, found
    raise argparse.ArgumentTypeError(f"expected KEY=VALUE as in batchyard.toml, found {text!r}")


def priority(text: str) -> int:
    """The number of a priority class, by its name in any case."""
    try:
        return PRIORITIES.index(text.lower())
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PRIORITIES)}, found {text!r}") from None
