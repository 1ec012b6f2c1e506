"""Where a function is found: modules as Python does, files by themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from batchyard.gpuworker.imports import UserError, find, forget, place_of
from batchyard.transport.python_models import Function


@pytest.fixture(autouse=True)
def leaves_no_folder_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_module_is_imported_once_and_kept() -> None:
    found, own = find(Function("join", "os.path"), "")
    import os.path

    assert found is os.path.join
    assert own == ""


def test_a_file_is_a_module_of_its_own_that_is_not_main(tmp_path: Path) -> None:
    path = tmp_path / "a model.py"
    path.write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int\ndef f():\n    return __name__, __file__\n"
    )
    f, own = find(Function("f"), str(path))
    assert f() == (own, str(path))
    assert sys.modules[own].f is f
    again, other = find(Function("f"), str(path))
    assert again is not f
    for name in (own, other):
        forget(name)
        assert name not in sys.modules
    assert not (
        tmp_path / "__pycache__"
    ).exists()  # known by a time in seconds: too coarse for a new revision


def test_what_lies_beside_a_file_can_be_imported_and_hides_no_library(tmp_path: Path) -> None:
    (tmp_path / "beside_it_7f3.py").write_text("answer = 42\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong one')\n")
    path = tmp_path / "model.py"
    path.write_text("import json.tool\nfrom beside_it_7f3 import answer\n")
    try:
        found, own = find(Function("answer"), str(path))
    finally:
        sys.modules.pop("beside_it_7f3", None)
    assert found == 42
    forget(own)


def test_a_file_that_fails_leaves_no_half_module(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text("x = 1\nraise ValueError('half')\n")
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"half\.py:x cannot be imported: ValueError: half"):
        find(Function("x"), str(path))
    path.write_text("y = 1\n")
    with pytest.raises(UserError, match=r"half\.py:x: the module has no 'x'"):
        find(Function("x"), str(path))
    assert set(sys.modules) == before


@pytest.mark.parametrize("module", ["nowhere_7f3", "os.nowhere_7f3", "os.path.join"])
def test_a_module_that_is_not_there_is_told(module: str) -> None:
    with pytest.raises(UserError, match=r"cannot be imported: ModuleNotFoundError|no 'f'"):
        find(Function("f", module), "")


def test_messages_do_not_tell_the_folder() -> None:
    assert place_of(Function("f"), "/home/somebody/model.py") == "model.py:f"
    assert place_of(Function("f", "a.b"), "") == "a.b:f"


def test_a_program_that_starts_a_yard_when_it_is_imported_is_told_to_guard_it(tmp_path: Path) -> None:
    """Its workers would import it in turn, and start another, without end."""
    path = tmp_path / "script.py"
    path.write_text("import batchyard\ndef f(x): return x\nbatchyard.serve(__file__ + ':f')\n")
    with pytest.raises(
        UserError, match=r"InvalidRequest: this program is being imported by a worker.*__main__"
    ):
        find(Function("f"), str(path))
    path.write_text(
        "import asyncio, batchyard\nasyncio.run(batchyard.AsyncInferenceQueue(__file__ + ':f').start())\n"
    )
    with pytest.raises(UserError, match="InvalidRequest: this program is being imported by a worker"):
        find(Function("f"), str(path))
