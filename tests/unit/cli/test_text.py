"""What people read: tables, units, models, and lines about arrays."""

from __future__ import annotations

import numpy as np
import pytest
from batchyard.cli.arrays import summary
from batchyard.cli.models import as_json, as_text, origin_lines
from batchyard.cli.text import duration, plural, size, table
from batchyard.cli.up import said_of
from batchyard.transport.messages import ModelInfo, ModelState, Provenance, WorkerInfo
from batchyard.transport.tensors import TensorSpec
from msgspec import structs

READY = ModelInfo(
    "digits",
    ModelState.READY,
    "",
    3,
    [TensorSpec("image", 1, ["batch", 1, 8, 8])],
    [TensorSpec("logits", 1, ["batch", 10])],
    True,
    "",
    32,
    [WorkerInfo(1, 4242, "cpu", "CPUExecutionProvider", {8: 106_000, 1: 67_000})],
)


@pytest.mark.parametrize(
    ("value_ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1 us"),
        (999_700, "1 ms"),
        (12_345_678, "12.3 ms"),
        (1.5e9, "1.5 s"),
    ],
)
def test_a_duration_has_three_digits_and_a_unit_that_fits(value_ns: float, text: str) -> None:
    assert duration(value_ns) == text


@pytest.mark.parametrize(
    ("value_bytes", "text"), [(12, "12 bytes"), (64 << 20, "64 MB"), (1 << 40, "1 TB"), (1536, "1.5 KB")]
)
def test_a_size_is_in_powers_of_1024(value_bytes: float, text: str) -> None:
    assert size(value_bytes) == text


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_stand_right() -> None:
    assert table([("name", "n"), ("a", "10"), ("long one", "2")], right=(1,)) == [
        "name       n",
        "a         10",
        "long one   2",
    ]


def test_a_plural_is_told_from_one() -> None:
    assert (plural(1, "row"), plural(1200, "row")) == ("1 row", "1,200 rows")


def test_models_are_shown_with_inputs_workers_and_times() -> None:
    assert as_text([READY]) == [
        "MODEL   STATE  REVISION  BATCHING       WORKERS",
        "digits  ready  3         up to 32 rows  1",
        "  input    image: float32[batch, 1, 8, 8]",
        "  output   logits: float32[batch, 10]",
        "  worker   1: process 4242, cpu (CPUExecutionProvider)",
        "    time of a run by rows  1: 67 us, 8: 106 us",
    ]


def test_why_a_worker_is_on_no_better_provider_stands_below_it() -> None:
    worker = WorkerInfo(1, 4242, "cpu", "CPUExecutionProvider", {}, "webgpu is in quarantine for 10 minutes")
    fallen = structs.replace(READY, workers=[worker])
    assert "    on no better provider  webgpu is in quarantine for 10 minutes" in as_text([fallen])
    assert as_json(fallen)["workers"][0]["fallback_reason"] == "webgpu is in quarantine for 10 minutes"


def test_a_failed_model_shows_its_reason_and_a_lone_one_says_why() -> None:
    failed = ModelInfo("m", ModelState.FAILED, "no such operator", 1, [], [], False, "", 1, [])
    assert "  reason   no such operator" in as_text([failed])
    alone = ModelInfo("m", ModelState.READY, "", 1, [], [], False, "axis 0 of x is 1", 1, [])
    assert "  alone    axis 0 of x is 1" in as_text([alone])


def test_models_for_programs_have_the_messages_names() -> None:
    found = as_json(READY)
    assert set(found) == set(ModelInfo.__struct_fields__)
    assert set(found["workers"][0]) == set(WorkerInfo.__struct_fields__)
    assert found["state"] == "ready"
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]


def test_up_says_of_each_model_whether_it_serves() -> None:
    assert said_of(READY, 1) == "digits: ready on 1 worker (cpu), up to 32 rows in a run"
    assert said_of(READY, 2) == "digits: ready on 1 of 2 workers (cpu), up to 32 rows in a run"
    failed = ModelInfo("m", ModelState.FAILED, "not a model", 1, [], [], False, "", 1, [])
    assert said_of(failed, 1) == "m: FAILED: not a model"


def test_scores_of_classes_show_the_largest_of_each_row() -> None:
    scores = np.eye(20, dtype=np.float32)
    assert summary("logits", scores) == [
        "logits  float32[20, 20]",
        "  min 0, mean 0.05, max 1",
        "  argmax  0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 ... (20 rows)",
    ]


def test_odd_arrays_have_a_line_too() -> None:
    assert summary("n", np.array(3, np.int64)) == ["n  int64[]", "  values  3"]
    assert summary("e", np.zeros((0, 4), np.float32)) == ["e  float32[0, 4]"]
    assert summary("b", np.ones((4, 4), bool)) == ["b  bool[4, 4]"]
    assert summary("c", np.ones(3, np.complex64))[0] == "c  complex64[3]"


def test_what_a_file_says_of_itself_is_told_as_its_claim() -> None:
    times = {"CPUExecutionProvider": {8: 2_000_000, 1: 500_000}}
    lines = origin_lines(
        Provenance("ab" * 32, "static", "zoo:cnn", {"size_ratio": 0.26, "rms": 0.0031}, times)
    )
    assert lines == [
        f"sha256   {'ab' * 32}",
        "variant  static, of zoo:cnn",
        "checked  size_ratio 0.26, rms 0.0031",
        "claimed  CPUExecutionProvider, time of a run by rows  1: 500 us, 8: 2 ms",
    ]
    assert "says nothing" in origin_lines(Provenance("ab" * 32))[1]
    assert origin_lines(Provenance("ab" * 32), is_function=True) == ["sha256   " + "ab" * 32]
    assert origin_lines(None) == []
