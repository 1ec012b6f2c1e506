"""What the README says to type is typed: every Python block, and every command beside a running yard."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batchyard.tests.integration.gateways import gateway

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if "import" in block]
BESIDE_A_YARD = README.partition("\n## From a shell\n")[2].partition("\nand without one")[0]
COMMANDS = re.findall(r"^\| `batchyard ([^`]+)` \|", BESIDE_A_YARD, re.MULTILINE)
READY_WITHIN_S = 30.0
DIGIT = 8  # of examples/scan.json


@pytest.fixture(scope="module")
def yard(run_folder: Path) -> Iterator[str]:
    """The README's own yard, at a place of the test's own."""
    url = f"ipc://{run_folder}/readme"
    command = [sys.executable, "-m", "batchyard.cli.main", "up", "--config", "examples/batchyard.toml"]
    with subprocess.Popen([*command, "--url", url], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("listening at" in line for line in process.stdout)
        yield url
        process.terminate()
        process.stdout.read()
        assert process.wait(READY_WITHIN_S) == 0


def typed(url: str, *command: str) -> str:
    environment = {**os.environ, "BATCHYARD_URL": url}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_readme_has_programs_and_commands_to_try() -> None:
    assert len(PROGRAMS) == 3
    assert [command.split()[0] for command in COMMANDS] == ["models", "models", "models", "infer", "top"]


@pytest.mark.parametrize(("number", "says"), [(0, "[8 4 0 0 2 7 2 2]"), (1, "[8 4 0 0 2 7 2 2]"), (2, "4.0")])
def test_a_program_of_the_readme_runs_as_it_stands_there(
    number: int, says: str, yard: str, tmp_path: Path
) -> None:
    program = tmp_path / "try.py"
    program.write_text(PROGRAMS[number], encoding="utf-8")
    assert says in typed(yard, str(program))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_succeeds(command: str, yard: str) -> None:
    once = ["--once"] if command == "top" else []
    if once:
        pytest.importorskip("rich")
    assert typed(yard, "-m", "batchyard.cli.main", *command.split(), *once)


def test_the_scan_that_is_sent_to_the_gateway_is_answered(yard: str, tools: Any) -> None:
    pytest.importorskip("fastapi")
    with gateway(yard, tools.free_port()) as served:
        status, answer, _ = served.ask(
            "POST", "/predict", json.loads((ROOT / "examples" / "scan.json").read_bytes())
        )
    assert status == 200
    (scores,) = answer["outputs"]["logits"]["data"]
    assert max(range(10), key=scores.__getitem__) == DIGIT
