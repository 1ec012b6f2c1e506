"""What somebody is told to type when a package is missing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from batchyard.transport import extras
from batchyard.transport.errors import BatchyardError

ROOT = Path(__file__).resolve().parents[3]


def test_every_package_is_said_to_come_by_an_extra_that_there_is() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = set(tomllib.load(file)["project"]["optional-dependencies"])
    assert set(extras.BROUGHT_BY.values()) <= declared


def test_the_command_names_this_python_and_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.chdir(tmp_path)
    assert extras.install("cpu,top") == f'{sys.executable} -m pip install -e "{ROOT}[cpu,top]"'
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "bin" / "python"))
    python = Path(".venv", "bin", "python")
    assert extras.install("cpu,top") == f'{python} -m pip install -e ".[cpu,top]"'


def test_an_activated_environment_is_told_of_its_own_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.chdir(ROOT)
    assert extras.missing("rich") == 'rich is not installed: pip install -e ".[top]"'


def test_an_installed_package_is_named_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "SOURCE", tmp_path)
    assert extras.missing("onnx.helper").endswith('pip install "batchyard[bench]"')
    assert extras.missing("nobody_knows") == "nobody_knows is not installed"


def test_what_somebody_asked_for_and_lacks_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    extras.require("pytest", "pytest")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BatchyardError, match=r"^--metrics needs a package: psutil is not installed: .*\[sidecar\]"):
        extras.require("--metrics", "psutil", "prometheus_client")


def test_a_verb_that_lacks_one_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from batchyard.cli.main import main; sys.exit(main(['bench', 'models', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("batchyard: onnx is not installed: ")
    assert "[bench]" in done.stderr
