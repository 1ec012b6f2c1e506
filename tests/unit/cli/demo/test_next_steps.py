"""Where a demo sends its reader next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from batchyard.cli.demo import next_steps

SOURCE = Path(__file__).resolve().parents[4]


@pytest.fixture
def activated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


@pytest.mark.usefixtures("activated")
def test_outside_of_the_repository_the_reader_is_sent_only_to_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_steps, "SOURCE", tmp_path)
    assert "FILE" in next_steps.after_demo()[0]


@pytest.mark.usefixtures("activated")
def test_in_the_repository_the_next_commands_can_be_typed_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(SOURCE)
    up, train, _ = next_steps.after_demo()
    assert up.startswith(f"batchyard up --config {next_steps.CONFIG} ")
    assert next_steps.CONFIG.is_file()
    assert train.startswith("python3 run demo --train ")


def test_without_an_activated_environment_the_command_has_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Path(next_steps.typed()).parent == Path(sys.executable).parent
    monkeypatch.chdir(Path(sys.executable).parents[1])
    assert Path(next_steps.typed()).parts[:-1] == (Path(sys.executable).parent.name,)
