"""Shared parts of the command lines: parsed numbers, and the options that every process has. Pure."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

PORT_MAX = 65535
NOTICE_MAX_S = 600


def add_yard(parser: argparse.ArgumentParser, default: object = None) -> None:
    """Add --url and --keys, which name the yard. Pass argparse.SUPPRESS as `default` for a subcommand's
    parser, so that the options work both before and after the subcommand."""
    where = "the yard's address (default: $BATCHYARD_URL, else this user's yard)"
    parser.add_argument("--url", default=default, help=where)
    which = "CURVE keys, for a yard that has them"
    parser.add_argument("--keys", type=Path, metavar="FOLDER", default=default, help=which)


def add_process(parser: argparse.ArgumentParser) -> None:
    """Add --lifeline and --quiet, for a process that another one may start."""
    ends = "exit when stdin closes: the starting process died"
    parser.add_argument("--lifeline", action="store_true", help=ends)
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def whole(text: str, expected: str, least: int = 1, most: float = math.inf) -> int:
    """A whole number within bounds, which `expected` states."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, "a whole number of 1 or more")


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1, with commas between them."""
    return [count(part) for part in text.split(",")]


def port(text: str) -> int:
    """A TCP port."""
    return whole(text, f"a port, 1 to {PORT_MAX}", most=PORT_MAX)


def notice(text: str) -> int:
    """For how long what is stopped says that it is not ready before it refuses, in seconds."""
    return whole(text, f"whole seconds, 0 to {NOTICE_MAX_S}", least=0, most=NOTICE_MAX_S)


def number(text: str, expected: str = "a number above 0") -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e9:  # NaN fails both comparisons
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def seconds(text: str) -> float:
    """A duration above zero."""
    return number(text, "seconds above 0")
