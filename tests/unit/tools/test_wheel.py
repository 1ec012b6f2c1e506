"""`python3 run wheel`: which rooms it compiles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from batchyard.tools import wheel

ROOMS = wheel.compiled(wheel.ROOT)


def test_every_room_is_there_and_in_a_package_of_the_wheel() -> None:
    assert [room for room in ROOMS if not (wheel.ROOT / room).is_file()] == []
    assert sorted(set(ROOMS)) == ROOMS
    assert {"broker/core.py", "broker/lanes.py", "broker/policy.py", "client/engine.py", "gpuworker/runner.py"} <= set(ROOMS)


def test_the_tests_that_it_runs_are_there() -> None:
    assert [path for path in wheel.TESTS if not (wheel.ROOT / "tests" / "unit" / path).exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_compares_no_tuple_by_identity(room: str) -> None:
    """A compiled tuple is no object: `is` would never be true of it."""
    tree = ast.parse((wheel.ROOT / room).read_text(encoding="utf-8"))
    constants = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
        and any(isinstance(right, ast.Name) and right.id.isupper() for right in node.comparators)
    ]
    assert constants == []


def test_without_a_compiler_nothing_can_be_tested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wheel, "lacking", lambda: "there is no C compiler (cc)")
    monkeypatch.setattr(wheel, "build", lambda *arguments: pytest.fail("it builds nothing"))
    assert wheel.main(["--test", "--out", str(tmp_path)]) == 1
