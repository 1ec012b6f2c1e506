"""What is left of a runtime's text: the reason, in one line."""

from __future__ import annotations

import pytest
from batchyard.evidence.words import first_line, of_run

NODE = "Non-zero status code returned while running Expand node. Name:'up' Status Message: "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : {NODE}invalid expand shape",
            "invalid expand shape (in the operator Expand, node 'up')",
        ),
        (
            f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {NODE}/home/ci/core/reshape.h:39 "
            "onnxruntime::Helper(const Shape&, Vector&) size != 0 was false. The input cannot be reshaped",
            "The input cannot be reshaped (in the operator Expand, node 'up')",
        ),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the following "
            "indices\n index: 1 Got: 5 Expected: 4\n index: 2 Got: 7 Expected: 8\n Please fix either the "
            "inputs/outputs or the model.",
            "input x: axis 1 is 5, and has to be 4; axis 2 is 7, and has to be 8",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : out of luck", "out of luck"),
        ("a user's own words, of /data/table.csv", "a user's own words, of /data/table.csv"),
    ],
)
def test_neither_codes_nor_places_are_told(text: str, said: str) -> None:
    assert of_run(RuntimeError(text)) == first_line(RuntimeError(text)) == said


def test_it_is_one_line_even_of_nothing() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("")) == "ValueError"
