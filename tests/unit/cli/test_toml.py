"""A model's table is added to a batchyard.toml, and what is there stays as it is."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from batchyard.broker import config
from batchyard.cli import toml
from batchyard.transport.errors import InvalidRequest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "yard"
    (made / "files").mkdir(parents=True)
    for name in ("a.onnx", "b.onnx", "files/c.onnx", "../outside.onnx"):
        (made / name).write_bytes(b"")
    return made


def test_a_configuration_is_made_where_there_is_none(folder: Path) -> None:
    target = toml.add(folder / "batchyard.toml", "net", folder / "files" / "c.onnx", 16)
    assert target.read_text() == '[models.net]\nfile = "files/c.onnx"\nmax_batch = 16\n'
    assert config.read(target).models["net"].max_batch == 16
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_model_elsewhere_brings_its_folder_as_models_root(folder: Path) -> None:
    target = toml.add(folder / "batchyard.toml", "out", folder.parent / "outside.onnx", None)
    read = config.read(target)
    assert (read.models_root, read.models["out"].path) == (
        folder.parent.resolve(),
        folder.parent.resolve() / "outside.onnx",
    )


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_is_there_stays_to_the_byte(folder: Path, end: str, newline: str) -> None:
    target = folder / "yard.toml"
    text = f'# mine\n[models.a]\nfile = "a.onnx"  # why\n\n[limits]\nclients_max = 9{end}'
    before = text.replace("\n", newline).encode()
    target.write_bytes(before)
    target.chmod(0o600)
    toml.add(target, "b", folder / "b.onnx", 8)
    after = target.read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == after.count(newline.encode())
    read = config.read(target)
    assert (list(read.models), read.limits.clients_max, read.models["b"].max_batch) == (["a", "b"], 9, 8)
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_byte_order_mark_stays_in_front(folder: Path) -> None:
    target = folder / "yard.toml"
    target.write_bytes(b'\xef\xbb\xbf[models.a]\nfile = "a.onnx"\n')
    toml.add(target, "b", folder / "b.onnx", None)
    assert list(config.read(target).models) == ["a", "b"]


def test_the_file_behind_a_link_is_written_and_the_link_stays(folder: Path) -> None:
    (folder / "real.toml").write_text('[models.a]\nfile = "a.onnx"\n')
    (folder / "link.toml").symlink_to("real.toml")
    toml.add(folder / "link.toml", "b", folder / "b.onnx", None)
    assert (folder / "link.toml").is_symlink()
    assert list(config.read(folder / "real.toml").models) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "name", "file", "said"),
    [
        ('[models.b]\nfile = "a.onnx"\n', "b", "b.onnx", r"has a \[models\.b\] already"),
        ("[models.a\n", "b", "b.onnx", "is not TOML, and stays unchanged"),
        ('[models.a]\nfile = "gone.onnx"\n', "b", "b.onnx", "stays as it is, because then it would be wrong"),
        ('[models.a]\nfile = "a.onnx"\n', "b", "../outside.onnx", "lies outside the models_root"),
        ('models = { a = { file = "a.onnx" } }\n', "b", "b.onnx", "stays as it is"),
        ('[models.a]\nfile = "a.onnx"\n', "b/c", "b.onnx", "expected a name of 1 to 255 letters"),
        ('models_root = "files"\n[models.a]\nfile = "c.onnx"\n', "b", "b.onnx", "lies outside"),
        ("models = 3\n", "b", "b.onnx", "stays as it is"),
    ],
)
def test_where_it_cannot_be_added_nothing_changes(
    folder: Path, content: str, name: str, file: str, said: str
) -> None:
    target = folder / "yard.toml"
    target.write_text(content)
    with pytest.raises(InvalidRequest, match=said):
        toml.add(target, name, folder / file, None)
    assert target.read_text() == content
    assert sorted(os.listdir(folder)) == ["a.onnx", "b.onnx", "files", "yard.toml"]


def test_a_name_with_a_dot_is_one_name(folder: Path) -> None:
    target = toml.add(folder / "batchyard.toml", "net.v2", folder / "a.onnx", None)
    assert list(config.read(target).models) == ["net.v2"]


def test_axes_that_could_be_padded_are_offered_as_a_comment(folder: Path) -> None:
    pads = {"sequence": [16, 32], "p2o.0": [64]}
    target = toml.add(folder / "batchyard.toml", "net", folder / "a.onnx", 4, pads)
    assert '# pad = { sequence = { to = [16, 32] }, "p2o.0" = { to = [64] } }' in target.read_text()
    assert tomllib.loads(target.read_text().replace("# pad", "pad"))["models"]["net"]["pad"]["p2o.0"]


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no folder"):
        toml.add(folder / "gone" / "batchyard.toml", "a", folder / "a.onnx", None)
