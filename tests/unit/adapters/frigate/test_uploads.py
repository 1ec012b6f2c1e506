from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from batchyard.adapters.frigate.uploads import Uploads
from batchyard.transport.errors import InvalidRequest

CONTENT = b"a model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_named_digest_is_kept_and_found_again(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "models", [DIGEST.upper()])
    assert not uploads.holds("yolo.onnx")
    path = uploads.save("yolo.onnx", memoryview(CONTENT))
    assert path.read_bytes() == CONTENT
    assert uploads.holds("yolo.onnx")
    assert [entry.name for entry in path.parent.iterdir()] == ["yolo.onnx"]


def test_another_content_is_refused_with_how_to_accept_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"--accept {DIGEST}"):
        Uploads(tmp_path, ["0" * 64]).save("yolo.onnx", memoryview(CONTENT))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../yolo.onnx", "a/b.onnx", ".hidden", "a\0b", "x" * 121, "ä.onnx"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    uploads = Uploads(tmp_path, [DIGEST])
    with pytest.raises(InvalidRequest, match="can't be a file's name"):
        uploads.save(name, memoryview(CONTENT))
    assert not uploads.holds(name)


def test_a_file_that_was_changed_since_is_not_there_any_more(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, [DIGEST])
    uploads.save("yolo.onnx", memoryview(CONTENT)).write_bytes(b"another")
    assert not uploads.holds("yolo.onnx")


def test_a_digest_is_64_hexadecimal_digits(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is no SHA-256"):
        Uploads(tmp_path, ["md5"])
