"""The command line's outer shell: verbs, exit codes, and sentences instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from batchyard.cli import main as shell
from batchyard.cli import models
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


@pytest.mark.parametrize("verb", sorted(shell.VERBS))
def test_every_verbs_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        shell.main([verb, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "example" in said
    assert f"\n  batchyard {verb}" in said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (BrokerLost("no broker answers"), 1, "batchyard: no broker answers\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "batchyard: [Errno 13] Permission denied: 'x'\n"),
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


def test_a_wrong_url_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["models", "--url", "http://here"]) == 1
    assert capsys.readouterr().err.startswith("batchyard: 'http://here' has no scheme")


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
    ],
)
def test_wrong_arguments_are_status_2_and_say_what_is_allowed(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        shell.main(argv)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


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
