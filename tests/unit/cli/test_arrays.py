"""Arrays from and to files: what is read, and what a file that cannot be read is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batchyard.cli.arrays import load, save
from batchyard.cli.infer import read_inputs
from batchyard.transport.errors import InvalidRequest

SCANS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "scans.npy", SCANS)
    np.savez(tmp_path / "scans.npz", images=SCANS, labels=np.arange(3))
    (tmp_path / "text.txt").write_text("not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "short.npy").write_bytes((tmp_path / "scans.npy").read_bytes()[:-9])
    (tmp_path / "broken.npz").write_bytes((tmp_path / "scans.npz").read_bytes()[:99])
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", things=np.array([{}], dtype=object))
    return tmp_path


def test_an_array_and_one_of_an_archive_are_read(folder: Path) -> None:
    assert np.array_equal(load(str(folder / "scans.npy")), SCANS)
    assert np.array_equal(load(f"{folder / 'scans.npz'}:images"), SCANS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.npy", "there is no file"),
        (".", "cannot be read"),
        ("text.txt", "is no .npy file: write one with numpy.save"),
        ("empty.npy", "no readable .npy file"),
        ("short.npy", "no readable .npy file"),
        ("broken.npz", "no readable .npy file"),
        ("objects.npy", "holds pickled objects, which batchyard never loads"),
        ("objects.npz:things", "holds pickled objects"),
        ("scans.npz", "say which array, as in .*scans.npz:images; it holds images, labels"),
        ("scans.npz:image", "has no array 'image'; it holds images, labels"),
    ],
)
def test_a_file_that_is_no_array_is_called_what_it_is(folder: Path, name: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        load(f"{folder}/{name}")


def test_what_is_saved_is_read_back_under_the_name_that_was_given(tmp_path: Path) -> None:
    save(tmp_path / "logits", {"logits": SCANS})  # no suffix is added
    assert np.array_equal(load(str(tmp_path / "logits")), SCANS)
    save(tmp_path / "all.npz", {"file": SCANS, "b": SCANS[0]})  # a name that numpy.savez has for itself
    assert np.array_equal(load(f"{tmp_path / 'all.npz'}:file"), SCANS)


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be written: No such file"):
        save(tmp_path / "absent" / "y.npy", {"y": SCANS})


def test_inputs_are_one_file_or_named_ones(folder: Path) -> None:
    file = str(folder / "scans.npy")
    assert isinstance(read_inputs(file, []), np.ndarray)
    named = read_inputs(None, [f"a={file}", f"b={folder / 'scans.npz'}:labels"])
    assert isinstance(named, dict)
    assert list(named) == ["a", "b"]


@pytest.mark.parametrize(
    ("file", "named", "said"),
    [
        (None, [], "give one input file, or --input"),
        ("x.npy", ["a=x.npy"], "give one input file, or --input"),
        (None, ["x.npy"], "--input takes NAME=FILE"),
        (None, ["=x.npy"], "--input takes NAME=FILE"),
    ],
)
def test_inputs_that_are_neither_are_refused(file: str | None, named: list[str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_inputs(file, named)


def test_an_input_given_twice_is_refused(folder: Path) -> None:
    file = folder / "scans.npy"
    with pytest.raises(InvalidRequest, match="given twice"):
        read_inputs(None, [f"a={file}", f"a={file}"])
