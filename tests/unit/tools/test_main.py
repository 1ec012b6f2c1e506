"""`python3 run measure`: its help, its arguments, and what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from batchyard.tools import lines
from batchyard.tools.__main__ import TOOLS, main


@pytest.mark.parametrize("what", sorted(TOOLS))
def test_every_tools_help_has_an_example(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([what, "--help"])
    assert left.value.code == 0
    assert f"\n  python3 run measure {what}" in capsys.readouterr().out


def test_the_help_names_every_tool(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    named = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert named[: len(TOOLS)] == list(TOOLS)


def test_an_unknown_tool_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pigeons"]) == 2
    assert "nothing is called 'pigeons'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["relays", "--rounds", "0"], "expected a whole number of 1 or more, found '0'"),
        (["perf-analyzer", "--concurrency", "1,a"], "expected a whole number of 1 or more, found 'a'"),
        (["panels", "p.png", "--minutes", "nan"], "expected a number above 0, found 'nan'"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert text in capsys.readouterr().err


def test_lines_are_counted_by_folder_and_only_of_what_is_packed(tmp_path: Path) -> None:
    packages = '["batchyard", "batchyard.broker", "batchyard.broker.inner"]'
    (tmp_path / "pyproject.toml").write_text(f"[tool.setuptools]\npackages = {packages}\n")
    for name, count in (
        ("__init__", 1),
        ("broker/core", 3),
        ("broker/inner/part", 2),
        ("tests/test_core", 9),
    ):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n" * count)
    assert lines.counted(tmp_path) == {lines.FACE: 1, "broker": 5}
