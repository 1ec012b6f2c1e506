"""One TOML table as an operator may have written it: every wrong value is noted with its key path, what
was found and what is allowed, and reading goes on.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re

from ..transport.tensors import RANK_MAX

BUCKETS_MAX = 64  # batch sizes of one model
FOUND_CHARS_MAX = 80  # of a wrong value, in an error


class Table:
    """One TOML table under its key path. Wrong values are noted in `problems` and replaced by the
    default, so that reading goes on and the operator sees everything at once."""

    def __init__(
        self, content: dict[str, object], path: str, problems: list[str], allowed: tuple[str, ...]
    ) -> None:
        self.content = content
        self.path = path
        self.problems = problems
        for key in content:
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f'did you mean "{near[0]}"? ' if near else ""
                problems.append(f"{self.at(key)}: unknown key, {hint}allowed here: {', '.join(allowed)}")

    def at(self, key: str) -> str:
        return dotted(self.path, key)

    def wrong(self, key: str, expected: str) -> None:
        self.problems.append(f"{self.at(key)}: expected {expected}, found {shown(self.content.get(key))}")

    def table(self, key: str, allowed: tuple[str, ...]) -> Table:
        return Table(self.mapping(key), self.at(key), self.problems, allowed)

    def mapping(self, key: str) -> dict[str, object]:
        value = self.content.get(key, {})
        if isinstance(value, dict):
            return value
        self.wrong(key, f"a table, [{self.at(key)}]")
        return {}

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        value = self.content.get(key, default)
        # bool is an int to Python, and `max_batch = true` isn't 1 to anybody
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.wrong(key, f"an integer from {least} to {most}")
        return default

    def milliseconds(self, key: str, default: int, most: int) -> float:
        value = self.content.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most:
            return value  # NaN fails both comparisons
        self.wrong(key, f"milliseconds, a number from 0 to {most}")
        return default

    def seconds_ns(self, key: str, most: int) -> int:
        """Seconds as nanoseconds; 0 where the key is absent."""
        value = self.content.get(key)
        if value is None:
            return 0
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most:
            return max(1, round(value * 1e9))
        self.wrong(key, f"seconds, a number above 0 and up to {most}")
        return 0

    def boolean(self, key: str) -> bool | None:
        """None where the key is absent or, which is a problem already, not a boolean."""
        value = self.content.get(key)
        if isinstance(value, bool):
            return value
        if value is not None:
            self.wrong(key, "true or false")
        return None

    def buckets(self, key: str, largest: int) -> tuple[int, ...]:
        """Batch sizes, rising, the last of them `largest`; empty where the key is absent."""
        value = self.content.get(key, [])
        if isinstance(value, list) and len(value) <= BUCKETS_MAX and value[-1:] in ([], [largest]):
            whole = all(isinstance(size, int) and not isinstance(size, bool) for size in value)
            if whole and all(before < size for before, size in itertools.pairwise([0, *value])):
                return tuple(value)
        self.problems.append(
            f"{self.at(key)}: expected rising batch sizes, at most {BUCKETS_MAX}, the last of them max_batch "
            f"= {largest}; found {str(value)[:FOUND_CHARS_MAX]}"
        )
        return ()

    def rising(self, key: str, count_max: int, most: int, example: str) -> tuple[int, ...]:
        """One or more rising whole numbers above 0."""
        value = self.content.get(key)
        if isinstance(value, list) and 0 < len(value) <= count_max:
            whole = all(type(size) is int and 0 < size <= most for size in value)
            if whole and all(before < size for before, size in itertools.pairwise(value)):
                return tuple(value)
        text = "nothing" if value is None else str(value)[:FOUND_CHARS_MAX]
        self.problems.append(
            f"{self.at(key)}: expected rising sizes such as {example}, 1 to {count_max} of them, none above "
            f"{most}; found {text}"
        )
        return ()

    def axes(self, key: str) -> int | dict[str, int] | None:
        """An axis, or a table of them by a tensor's name; None where the key is absent."""
        value = self.content.get(key)
        numbers = list(value.values()) if isinstance(value, dict) else [value]
        whole = all(type(axis) is int and 0 <= axis < RANK_MAX for axis in numbers)
        named = not isinstance(value, dict) or all(isinstance(name, str) for name in value)
        if value is None or (whole and named and numbers):
            return value  # type: ignore[return-value]
        self.wrong(key, "an axis, counted from 0, or a table such as { x = 0, state = 1 }")
        return None

    def string(self, key: str, expected: str) -> str | None:
        value = self.content.get(key)
        if isinstance(value, str) and value and "\0" not in value:
            return value
        self.wrong(key, expected)
        return None


def dotted(path: str, key: str) -> str:
    """A key path as TOML would write it."""
    bare = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
    return f"{path}.{bare}" if path else bare


def shown(value: object) -> str:
    """A wrong value as TOML would write it, shortened; tables and lists by their kind."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str | bool):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    return text if len(text) <= FOUND_CHARS_MAX else text[: FOUND_CHARS_MAX - 3] + "..."
