"""`demo --train` in short, with everything real: torch, the gate, a yard, programs that send requests."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from ...required import part

TRAIN = [sys.executable, "-m", "batchyard.examples.training.demo"]


def test_from_data_to_a_served_model_in_one_command(tmp_path: Path) -> None:
    for name in ("torch", "sklearn", "optuna"):
        part("torch", importlib.util.find_spec(name))
    short = ["--trials", "2", "--epochs", "3", "--measure", "0.1", "--seconds", "1", "--clients", "1"]
    command = [*TRAIN, *short, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for name in ("data", "search", "train", "compare", "export", "publish", "serve"):
        assert re.search(rf"^  {name:<9}\S", done.stdout, re.MULTILINE), done.stdout
    for priority in ("URGENT", "HIGH", "NORMAL", "LOW"):
        assert re.search(rf"^  {priority} +[\d,]+ +\d+ +[\d.]+ ms +[\d.]+ ms$", done.stdout, re.MULTILINE)
    same = re.search(r"equality +([\d,]+) of ([\d,]+) answers equal the direct run", done.stdout)
    assert same is not None
    assert same[1] == same[2]
    assert re.search(r"batches +[\d,]+: half of them of up to \d+ scans", done.stdout)
    # What it left is a yard that can be started.
    config = tmp_path / "yard.toml"
    model = tomllib.loads(config.read_text())["models"]["digits"]
    record = json.loads((tmp_path / "digits.json").read_text())
    assert model["file"] in {path.name for path in tmp_path.glob("digits*.onnx")}
    assert record["inputs"][0]["shape"] == ["batch", 1, 8, 8]
    assert f"batchyard up --config {config}" in done.stdout


def test_without_torch_it_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as util; real = util.find_spec\n"
        "util.find_spec = lambda name: None if name in ('torch', 'optuna') else real(name)\n"
        "from batchyard.cli.main import run; "
        "sys.exit(run('batchyard.examples.training.demo', ['--out', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("batchyard: training needs torch")
    assert "optuna" in done.stderr
    assert "python3 run demo --train" in done.stderr
    assert list(tmp_path.iterdir()) == []
