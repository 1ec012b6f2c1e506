"""Whether a candidate is still what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from batchyard.export.benchmark import record
from batchyard.export.lists import Entry, listed
from batchyard.transport.errors import InvalidRequest

KNOWN = {"name": "a", "fingerprint": "f", "export_error": None, "files": []}
LIST = """
[models.net]
source = "some_module:net"
input = "1,4"
calibration = "rows.npy"
grid = { width = [8, 16] }
"""


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "list.toml").write_text(LIST)
    (tmp_path / "some_module.py").write_text("raise RuntimeError('nobody may run this to look at it')")
    (tmp_path / "rows.npy").write_bytes(b"rows")
    return tmp_path


def entry(where: Path) -> Entry:
    first, second = listed(where / "list.toml")
    assert (first.name, second.name) == ("net-width8", "net-width16")
    assert record.fingerprint(first, {}) != record.fingerprint(second, {})
    return first


def test_a_candidate_is_another_when_anything_that_it_is_made_of_is(where: Path) -> None:
    seen = {record.fingerprint(entry(where), {})}
    assert record.fingerprint(entry(where), {}) in seen
    seen.add(record.fingerprint(entry(where), {"opset": 19}))
    (where / "some_module.py").write_text("x = 2")
    seen.add(record.fingerprint(entry(where), {}))
    (where / "rows.npy").write_bytes(b"other rows")
    seen.add(record.fingerprint(entry(where), {}))
    (where / "list.toml").write_text(LIST.replace("1,4", "1,5"))
    seen.add(record.fingerprint(entry(where), {}))
    assert len(seen) == 5


def test_a_candidate_is_whole_while_its_files_are_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")
    known = {"files": [{"file": "m.onnx", "sha256": record.file_digest(tmp_path / "m.onnx")}]}
    assert record.is_whole(tmp_path, known)
    (tmp_path / "m.onnx").write_bytes(b"other")
    assert not record.is_whole(tmp_path, known)
    (tmp_path / "m.onnx").unlink()
    assert not record.is_whole(tmp_path, known)
    assert not record.is_whole(tmp_path, {"files": []})


EDITED = [
    {},
    {"candidates": 3},
    {"candidates": [{"name": "a"}]},
    {"candidates": ["a"]},
    {"candidates": [{"name": "a", "fingerprint": "", "export_error": None, "files": None}]},
    {"candidates": [{"name": "a", "fingerprint": "", "export_error": None, "files": ["m.onnx"]}]},
    {"candidates": [], "baseline": "m"},
]


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "not json",
        '{"format": "other"}',
        *(json.dumps({"format": record.FORMAT, **one}) for one in EDITED),
    ],
)
def test_a_file_that_is_no_record_is_not_overwritten(content: str, tmp_path: Path) -> None:
    assert record.read(tmp_path) == {"candidates": []}
    (tmp_path / record.NAME).write_text(content)
    with pytest.raises(InvalidRequest, match="no record of an earlier benchmark"):
        record.read(tmp_path)


def test_what_is_written_is_what_is_read_and_is_json_for_everybody(tmp_path: Path) -> None:
    record.write(tmp_path, {"candidates": [KNOWN], "noise": float("nan")})
    assert record.read(tmp_path) == {"format": record.FORMAT, "candidates": [KNOWN], "noise": "nan"}
    json.loads((tmp_path / record.NAME).read_text(), parse_constant=pytest.fail)
