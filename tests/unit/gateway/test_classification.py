"""The best classes of an output, as Triton writes them, and where their names are found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from batchyard.gateway.classification import classes, labels_of
from batchyard.gateway.datatypes import BY_NAME
from batchyard.gateway.errors import Refusal

LABELS = {0: "cat", 1: "dog"}


def test_the_best_of_each_row_come_first_with_their_index_and_label() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [3.0, np.nan, 3.0]], "f4")
    found = classes(scores, BY_NAME["FP32"], 2, LABELS, True, "y")
    assert found.tolist() == [["0.700000:1:dog", "0.200000:2"], ["3.000000:0:cat", "3.000000:2"]]
    whole = classes(scores[:1], BY_NAME["FP32"], 9, {}, False, "y")
    assert whole.tolist() == ["0.700000:1", "0.200000:2", "0.100000:0"]


def test_whole_numbers_and_bfloat16_are_scores_too() -> None:
    assert classes(np.array([[5, -7]], "i1"), BY_NAME["INT8"], 1, {}, True, "y").tolist() == [["5:0"]]
    bits = np.array([[0x3F80, 0x4000]], "u2")  # 1 and 2
    assert classes(bits, BY_NAME["BF16"], 1, {}, True, "y").tolist() == [["2.000000:1"]]


def test_what_are_no_scores_are_refused() -> None:
    for array, name in (
        (np.array([["a"]], object), "BYTES"),
        (np.array([True]), "BOOL"),
        (np.empty((0, 3), "f4"), "FP32"),
    ):
        with pytest.raises(Refusal):
            classes(array, BY_NAME[name], 1, {}, True, "y")


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": "{0: 'cat', 1: 'dog'}"},  # Ultralytics
        {"labels": json.dumps(["cat", "dog"])},
        {"id2label": json.dumps(LABELS), "names": "[" * 5000},
        {"labels": "cat\ndog\n"},
    ],
)
def test_labels_are_found_in_what_the_file_says(metadata: dict[str, str]) -> None:
    assert labels_of(metadata) == LABELS


@pytest.mark.parametrize("text", ["", "cat", "7", "[" * 100_000, "{'a': 1}", "__import__('os')", "{" * 99 + "1"])
def test_what_are_no_labels_are_none(text: str) -> None:
    assert labels_of({"names": text}) == {}
