"""`batchyard export` before any model is touched: its help, its mistakes, and what it does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from batchyard.cli import export as cli_export
from batchyard.cli.main import main
from batchyard.transport.extras import install

HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript")


@pytest.mark.parametrize("verb", [["--help"], ["export", "--help"]])
def test_help_loads_nothing_heavy(verb: list[str]) -> None:
    code = (
        f"import sys, batchyard.cli.main as m\ntry: m.main({verb!r})\nexcept SystemExit: pass\n"
        f"sys.exit(str([n for n in {HEAVY!r} if n in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "example" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["zoo:cnn"], "give SOURCE and the file to write"),
        (["zoo:cnn", "cnn.onnx"], "give --input for every input"),
        (["zoo:cnn", "cnn.pt", "--input", "1,3"], "must end in .onnx"),
        (["zoo:cnn", "cnn.onnx", "--input", "1;3"], "an input is"),
        (["zoo:cnn", "cnn.onnx", "--input", "1,3", "--quantize", "static"], "needs calibration data"),
        (["zoo:cnn", "cnn.onnx", "--input", "1,3", "--quantize", "int4"], "no variant 'int4'"),
        (["--all", "no-such.toml", "out"], "there is no file"),
        (["--all", "no-such.toml", "out", "--input", "1,3"], "--input is for one model"),
        (["--all", "no-such.toml", "out", "--benchmark"], "there is no file"),
        (["--all", "no-such.toml", "out", "--benchmark", "--plot", "p.txt"], "must end in .png or .svg"),
        (["--all", "no-such.toml", "out", "--jobs", "2"], "--jobs goes with --benchmark"),
        (["zoo:cnn", "cnn.onnx", "--benchmark"], "--benchmark goes with --all"),
        (["plain.onnx", "out.onnx"], "there is no file"),
        (["plain.onnx", "out.onnx", "--provider", "npu"], "this onnxruntime has no npu"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_torch_a_folder_that_needs_it_ends_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(cli_export, "find_spec", lambda name: None)
    (tmp_path / "net.py").write_text("import no_such_torch\n")
    assert main(["export", "--all", str(tmp_path), str(tmp_path / "out")]) == 1
    assert (
        f"torch is not installed, which models from PyTorch need: {install('cpu,export')}"
        in capsys.readouterr().err
    )


def test_without_torch_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it raises ModuleNotFoundError
    assert main(["export", "zoo:cnn", str(tmp_path / "cnn.onnx"), "--input", "1,3"]) == 1
    assert f"torch is not installed: {install('cpu,export')}" in capsys.readouterr().err


def test_a_model_that_is_onnx_already_asks_for_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from batchyard.cli.main import main; sys.exit(main(['export', 'a.onnx', 'b.onnx']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = "batchyard: onnx is not installed: an .onnx source needs no torch: pip install onnx onnxscript\n"
    assert (done.returncode, done.stderr) == (1, said)
