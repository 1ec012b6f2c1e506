"""What the verbs' command lines have in common: the parser's shape, and how values are read.

Pure: opens nothing and starts nothing.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

PORT_MAX = 65535
PRIORITIES = ("urgent", "high", "normal", "low")  # by transport.messages.Priority


def parser(verb: str, purpose: str, examples: str) -> argparse.ArgumentParser:
    """A verb's parser; `examples` are shown below its help, as they are written."""
    return argparse.ArgumentParser(prog=f"batchyard {verb}", description=purpose, **_shape(examples))


def order(orders: Any, name: str, does: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a word behind a verb; `orders`: what add_subparsers has given."""
    made: argparse.ArgumentParser = orders.add_parser(name, help=does, description=does, **_shape(examples))
    return made


def _shape(examples: str) -> dict[str, Any]:
    return {
        "epilog": examples,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,  # a script's --max would break with the next option that starts so
    }


def add_yard(parser: argparse.ArgumentParser, default: object = None) -> None:
    """--url and --keys: which yard is spoken to. `default` argparse.SUPPRESS: for the parser of a word
    behind the verb, so that both places will do."""
    where = "the yard's address (default: $BATCHYARD_URL, else this user's yard)"
    parser.add_argument("--url", default=default, help=where)
    which = "CURVE keys, for a yard that has them"
    parser.add_argument("--keys", type=Path, metavar="FOLDER", default=default, help=which)


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, math.inf, "a whole number of 1 or more")


def port(text: str) -> int:
    """A TCP port."""
    return _whole(text, PORT_MAX, f"a port, 1 to {PORT_MAX}")


def _whole(text: str, most: float, expected: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1, with commas between them."""
    return [count(part) for part in text.split(",")]


def seconds(text: str) -> float:
    """A duration above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e9:  # NaN fails both comparisons
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {text!r}")
    return value


def difference(text: str) -> float:
    """Zero or more."""
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


def priority(text: str) -> int:
    """The number of a priority class, by its name in any case."""
    try:
        return PRIORITIES.index(text.lower())
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PRIORITIES)}, found {text!r}") from None
