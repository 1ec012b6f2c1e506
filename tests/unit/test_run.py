"""`run` and what it installs: a sentence for old Pythons, every Python's releases fixed, every Python found."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = SourceFileLoader("batchyard_run", str(ROOT / "run"))
    spec = spec_from_loader("batchyard_run", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def direct(extras: set[str], minor: int) -> list[Requirement]:
    """What the project itself asks for on that Python, with these extras."""
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    found = []
    for requirement in map(Requirement, texts):
        if requirement.name == "batchyard":
            found += direct(requirement.extras, minor)
        elif requirement.marker is None or requirement.marker.evaluate({"python_version": f"3.{minor}"}):
            found.append(requirement)
    return found


def test_the_script_parses_on_the_oldest_python_that_gets_a_sentence() -> None:
    ast.parse((ROOT / "run").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("minor", range(11, 15))
def test_every_python_has_a_release_in_range_for_all_that_is_asked_for(minor: int, run: ModuleType) -> None:
    (path,) = run.constraints(minor)
    pins = dict(line.split("==") for line in path.read_text().splitlines() if not line.startswith("#"))
    extras = set(",".join(run.LOCKED).split(","))
    wrong = [
        f"{requirement}: {pins.get(canonicalize_name(requirement.name))}"
        for requirement in direct(extras, minor)
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]
    assert not wrong, f"{path.name}: {wrong}; python3 run lock resolves it anew"


def test_a_user_gets_ranges_and_any_python_from_3_11_on() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]]
    assert not [text for text in texts if re.search(r"[<~]|==", text.partition(";")[0])]


def test_a_python_counts_when_it_runs_and_is_what_its_name_says(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minors = [minor for minor in run.MINORS if minor != sys.version_info[1]]
    for minor, text in zip(
        minors, ("echo is not installed >&2; exit 127", "echo 7", f"echo {minors[2]}"), strict=True
    ):
        shim = tmp_path / f"python3.{minor}"
        shim.write_text(f"#!/bin/sh\n{text}\n")
        shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "none"))
    assert run.pythons() == {
        sys.version_info[1]: sys.executable,
        minors[2]: str(tmp_path / f"python3.{minors[2]}"),
    }


def test_too_few_pythons_fail_only_where_they_are_required(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("BATCHYARD_REQUIRE", "torch,pythons")
    assert run.every([]) == 1
    said = capsys.readouterr()
    assert f"testing on Python 3.{sys.version_info[1]} ({sys.executable})" in said.out
    assert "3 Pythons have to be here" in said.err


@pytest.mark.skipif(sys.platform == "win32", reason="runs the script by its first line")
def test_an_unknown_verb_and_help_of_lock_resolve_nothing() -> None:
    for arguments, status in ((["lock", "--help"], 0), (["lokc"], 2)):
        done = subprocess.run(
            [sys.executable, ROOT / "run", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == status
        assert "python3 run <verb>" in done.stdout + done.stderr


def test_a_package_index_that_is_out_of_reach_is_told_from_a_package_that_is_broken(
    run: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, why in (("NewConnectionError('...')", ": no network"), ("no matching wheel", " (status 1)")):
        with pytest.raises(SystemExit):
            run.checked([sys.executable, "-c", f"print({text!r}); raise SystemExit(1)"], "could not install x")
        assert f"run: could not install x{why}" in capsys.readouterr().err


def test_every_test_is_in_one_of_the_parts_that_run_at_one_time(run: ModuleType) -> None:
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    left_out = [
        [word.partition("=")[2] for word in command if word.startswith("--ignore-glob=")]
        for command in run.parts([])
    ]

    def is_run(name: str, patterns: list[str]) -> bool:
        paths = [name, *(str(folder) for folder in Path(name).parents)]
        return not any(fnmatch(path, pattern) for path in paths for pattern in patterns)

    assert [name for name in files if sum(is_run(name, patterns) for patterns in left_out) != 1] == []


@pytest.mark.parametrize(
    ("in_front", "beside", "status"),
    [(0, 0, 0), (0, 1, 1), (1, 0, 1), (0, 5, 0), (5, 0, 0), (5, 5, 5), (5, 1, 1)],
)
def test_any_part_of_the_tests_can_fail_it_and_some_may_have_nothing_to_do(
    in_front: int, beside: int, status: int, run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []

    def played(command: list[str], **options: Any) -> Any:
        made.append(command)
        return subprocess.CompletedProcess(command, in_front if "pytest" in command else 0)

    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            made.append(command)

        def wait(self) -> int:
            return beside

        def poll(self) -> int:
            return beside

    for name in ("MYPYPATH", "MYPY_CACHE_DIR", "PATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv(run.AGAIN_VARIABLE, raising=False)
    monkeypatch.setattr(run, "link_for_mypy", lambda: None)
    monkeypatch.setattr(run.subprocess, "run", played)
    monkeypatch.setattr(run.subprocess, "Popen", Process)
    monkeypatch.setattr(run.sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    assert run.test(["-k", "x"]) == status
    assert sum("pytest" in command for command in made) == len(run.PARTS)
    made.clear()
    run.test(["tests/unit/test_run.py"])
    assert sum("pytest" in command for command in made) == 1


@pytest.mark.parametrize(
    ("status", "wanted", "second", "found"),
    [(1, "1", 0, 0), (1, "1", 1, 1), (1, "", 0, 1), (0, "1", 1, 0), (2, "1", 0, 2), (5, "1", 0, 5)],
)
def test_what_failed_runs_once_more_only_where_that_is_wanted(
    status: int, wanted: str, second: int, found: int, run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def played(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, second)

    monkeypatch.setenv(run.AGAIN_VARIABLE, wanted)
    monkeypatch.setattr(run.subprocess, "run", played)
    assert run.again(["pytest", "tests"], status) == found
    assert bool(commands) is (status == 1 and bool(wanted))
    assert all("--last-failed" in command for command in commands)
