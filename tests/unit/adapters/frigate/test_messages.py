from __future__ import annotations

import json

import numpy as np
import pytest
from batchyard.adapters.frigate import messages as m
from batchyard.transport.errors import InvalidRequest


def parts(head: object, *content: bytes) -> list[memoryview]:
    return [memoryview(json.dumps(head).encode()), *(memoryview(part) for part in content)]


def test_a_frame_is_the_bytes_themselves() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    head = {"shape": [1, 3, 2, 2], "dtype": "uint8", "model_type": "yologeneric"}
    frame = m.parse(parts(head, pixels.tobytes()))
    assert isinstance(frame, m.Frame)
    assert frame.model_type == "yologeneric"
    assert np.array_equal(frame.pixels, pixels)
    assert not frame.pixels.flags.owndata


def test_questions_and_files_are_told_apart() -> None:
    assert m.parse(parts({"model_request": True, "model_name": "a.onnx"})) == m.ModelQuery("a.onnx")
    upload = m.parse(parts({"model_data": True, "model_name": "a.onnx"}, b"file"))
    assert isinstance(upload, m.ModelUpload)
    assert (upload.name, bytes(upload.content)) == ("a.onnx", b"file")


@pytest.mark.parametrize(
    ("request_parts", "sentence"),
    [
        ([], "begins with a JSON head"),
        ([memoryview(b"x" * 5000)], "begins with a JSON head"),
        ([memoryview(b"\x80\x04")], "is not the JSON"),
        (parts([1]), "is not the JSON"),
        (parts({"shape": [1, -3, 2]}, b""), "is not the JSON"),
        (parts({"shape": [1, 1.5]}, b""), "is not the JSON"),
        (parts({"shape": [1] * 9}, b"1"), "is not the JSON"),
        (parts({"shape": [4]}), "one part of bytes"),
        (parts({"shape": [4]}, b"1234", b"5"), "one part of bytes"),
        (parts({"shape": [4], "dtype": "O"}, b"1234"), "dtype is one of"),
        (parts({"shape": [4]}, b"123"), "has 4 bytes, and 3 came"),
        (parts({"shape": [1 << 40, 1 << 40]}, b"123"), "and 3 came"),
        (parts({"shape": []}, b"1"), "and 1 came"),
    ],
)
def test_what_is_no_request_is_refused_with_a_sentence(request_parts: list[memoryview], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        m.parse(request_parts)


def test_the_answers_are_as_the_plugin_reads_them() -> None:
    rows = np.zeros((20, 6), np.float32)
    head, content = m.detections(rows)
    assert json.loads(head) == {"shape": [20, 6], "dtype": "float32"}
    assert len(content) == 480
    assert json.loads(m.detections(rows, "why")[0])["error"] == "why"
    assert [json.loads(part) for part in m.availability(True, False)] == [
        {"model_available": True, "model_loaded": False}
    ]
    assert json.loads(m.upload(False, False, "no")[0]) == {"model_saved": False, "model_loaded": False, "error": "no"}
