"""The command line's outer shell: verbs, exit codes, and sentences instead of tracebacks."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from batchyard.cli import main as shell
from batchyard.cli import models
from batchyard.client import ModelChanged
from batchyard.transport.errors import BrokerLost


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(argv) == 0
    said = capsys.readouterr().out
    assert [verb for verb in shell.VERBS if f"\n  {verb} " not in said] == []


def test_help_loads_neither_zmq_nor_numpy() -> None:
    code = (
        "import sys\nfrom batchyard.cli.main import main\nmain(['--help'])\n"
        "sys.exit(' '.join({'zmq', 'numpy', 'msgspec', 'argparse'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("batchyard 0.")


@pytest.mark.parametrize(
    ("verb", "hint"),
    [
        ("modles", "did you mean `batchyard models`?"),
        ("doktor", "`batchyard doctor`"),
        ("xyzzy", "there is: demo, "),
    ],
)
def test_an_unknown_verb_gets_a_suggestion(verb: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main([verb]) == 2
    assert hint in capsys.readouterr().err


ORDERS = [
    *(f"models {order}" for order in ("show", "load", "swap", "unload", "watch")),
    *(f"bench {verb}" for verb in ("open", "models")),
    "keys create",
]


@pytest.mark.parametrize("verb", [*sorted(shell.VERBS), *ORDERS])
def test_every_verbs_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        shell.main([*verb.split(), "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "example" in said
    assert f"\n  batchyard {verb}" in said


@pytest.mark.parametrize("order", sorted(models.ORDER_EXAMPLES))
def test_every_order_about_models_has_an_example(order: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        shell.main(["models", order, "--help"])
    assert end.value.code == 0
    assert f"example:\n  batchyard models {order} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (BrokerLost("no broker answers"), 1, "batchyard: no broker answers\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "batchyard: x: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
        (shell.Terminated(), 143, ""),
    ],
)
def test_an_error_is_a_sentence_and_a_status(
    error: BaseException,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(models, "main", fail)
    assert shell.main(["models"]) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("url", "said"),
    [("ftp://here", "has no scheme"), ("http://here", "is no gateway's address: write http://host:port")],
)
def test_a_wrong_url_is_a_sentence(url: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["models", "--url", url]) == 1
    assert capsys.readouterr().err.startswith(f"batchyard: {url!r} {said}")


def test_up_without_a_configuration_shows_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell.main(["up"]) == 1
    said = capsys.readouterr().err
    assert "there is no batchyard.toml" in said
    assert "[models.digits]" in said
    assert 'file = "digits.onnx"' in said


def test_up_with_a_wrong_configuration_starts_nothing_and_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "yard.toml"
    config.write_text('[models.digits]\nfil = "digits.onnx"\n')
    assert shell.main(["up", "--config", str(config), "--url", f"ipc://{tmp_path}/y"]) == 1
    assert 'models.digits.fil: unknown key, did you mean "file"?' in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["up", "--workers", "0"], "expected a whole number of 1 or more, found '0'"),
        (["up", "--workers", "two"], "found 'two'"),
        (["demo", "--seconds", "nan"], "expected seconds above 0, found 'nan'"),
        (["demo", "--seconds", "3600"], "at most 45 seconds"),
        (["demo", "--clients", "1000"], "at most 45 seconds and 32 clients"),
        (["infer"], "the following arguments are required: model"),
        (["infer", "digits", "x.npy", "--priority", "soon"], "expected one of urgent, high, normal, low"),
        (["keys"], "required: create"),
        (["models", "lod", "x"], "invalid choice: 'lod'"),
        (["models", "load", "net"], "the following arguments are required: FILE"),
        (["models", "load", "net", "net.onnx", "--max-batch", "0"], "expected a whole number of 1 or more"),
        (
            ["models", "load", "net", "net.onnx", "--run-seconds-max", "0"],
            "expected seconds above 0, found '0'",
        ),
        (["models", "swap", "net", "--run-seconds-max", "-1"], "expected seconds above 0, found '-1'"),
        (["models", "swap"], "the following arguments are required: NAME"),
        (["models", "swap", "net", "--tolerance", "-1"], "expected a number of 0 or more, found '-1'"),
        (["models", "swap", "net", "--tolerance", "nan"], "expected a number of 0 or more, found 'nan'"),
        (["models", "unload", "net", "--timeout", "0"], "expected seconds above 0, found '0'"),
        (["models", "watch"], "the following arguments are required: FOLDER"),
        (["models", "swap", "net", "--tol", "1"], "unrecognized arguments: --tol"),
    ],
)
def test_wrong_arguments_are_status_2_and_say_what_is_allowed(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        shell.main(argv)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


class RecordingOperator:
    """What `batchyard models` asks of an operator."""

    asked: ClassVar[list[Any]] = []

    def __init__(self, url: str | None, keys: Path | None) -> None:
        self.asked[:] = [url, keys]

    def load(self, *order: Any, run_seconds_max: float | None) -> ModelChanged:
        self.asked.append(("load", *order, run_seconds_max))
        return ModelChanged(order[0], 1)

    def swap(self, *order: Any, run_seconds_max: float | None) -> ModelChanged:
        self.asked.append(("swap", *order, run_seconds_max))
        return ModelChanged(order[0], 2, 0.25)

    def unload(self, *order: Any) -> ModelChanged:
        self.asked.append(("unload", *order))
        return ModelChanged(order[0], 2)


@pytest.mark.parametrize(
    ("argv", "order", "said"),
    [
        (["load", "net", "n.onnx"], ("load", "net", "n.onnx", None, 120.0, {}, None), "net: loaded, revision 1"),
        (
            ["load", "net", "n.onnx", "--max-batch", "4", "--timeout", "9", "--run-seconds-max", "2.5"],
            ("load", "net", "n.onnx", 4, 9.0, {}, 2.5), "net: loaded, revision 1",
        ),
        (
            ["swap", "net"], ("swap", "net", None, None, 120.0, {}, None),
            "net: swapped, revision 2; a canary's answers differ by up to 0.25",
        ),
        (
            ["swap", "net", "n.onnx", "--tolerance", "0.5", "--run-seconds-max", "0"],
            ("swap", "net", "n.onnx", 0.5, 120.0, {}, 0.0),
            "net: swapped, revision 2; a canary's answers differ by up to 0.25",
        ),
        (
            ["load", "net", "n.onnx", "--set", "batch_axis={x=0}", "--set", "warmup=false"],
            ("load", "net", "n.onnx", None, 120.0, {"batch_axis": {"x": 0}, "warmup": False}, None),
            "net: loaded, revision 1",
        ),
        (["unload", "net"], ("unload", "net", 120.0), "net: unloaded, revision 2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("behind", [False, True])
def test_an_order_is_given_and_its_end_is_told_in_one_line(
    argv: list[str], order: Any, said: str, behind: bool,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(models, "Operator", RecordingOperator)
    where = ["--url", "ipc:///y", "--keys", "keys"]
    assert shell.main(["models", *([*argv, *where] if behind else [*where, *argv])]) == 0
    assert RecordingOperator.asked == ["ipc:///y", Path("keys"), order]
    assert capsys.readouterr().out == f"{said}\n"


def test_keys_are_made_once_and_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    assert shell.main(["keys", "create", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "copy server.key, client.key and client.key_secret" in said
    secret = (folder / "server.key_secret").read_bytes()
    assert shell.main(["keys", "create", str(folder)]) == 1
    assert "holds keys already" in capsys.readouterr().err
    assert (folder / "server.key_secret").read_bytes() == secret


def test_keys_in_a_place_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert shell.main(["keys", "create", str(tmp_path / "file" / "keys")]) == 1
    assert "cannot hold the keys" in capsys.readouterr().err


def test_a_terminal_that_knows_no_such_letter_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check Größe.onnx` under `PYTHONIOENCODING=ascii`, or in Windows' code pages."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    monkeypatch.setitem(shell.VERBS, "speak", ("speaking", ""))
    monkeypatch.setitem(sys.modules, "speaking", SimpleNamespace(main=lambda _: print("Größe") or 0))
    assert shell.main(["speak"]) == 0
    assert raw.getvalue() == b"Gr\\xf6\\xdfe\n"
