"""Parameters of a request, and what is said of models."""

from __future__ import annotations

import time

import msgspec
import pytest
from batchyard import ModelInfo
from batchyard.gateway import described
from batchyard.gateway.errors import Refusal
from batchyard.gateway.inference import (
    TIMEOUT_MAX_S,
    TIMEOUT_S,
    Asked,
    deadline_s_of,
    declared,
    options_of,
    place_of,
    priority_of,
    until_s_of,
    wanted_of,
)
from batchyard.transport.messages import ModelState
from batchyard.transport.tensors import TensorSpec

INFO = ModelInfo(
    "m", ModelState.READY, "", 3, [TensorSpec("x", 1, ["n", 3, "w"])], [TensorSpec("y", 16, ["n", 2])],
    True, "", 8, [],
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "priority"), [(0, 2), (1, 0), (2, 1), (3, 2), (4, 3), ("high", 1), ("URGENT", 0)]
)
def test_priorities_are_names_or_tritons_numbers(given: object, priority: int) -> None:
    assert priority_of(given) == priority


@pytest.mark.parametrize("given", [5, -1, True, 1.0, "highest", None, [], 10**400])
def test_what_is_no_priority_is_refused(given: object) -> None:
    with pytest.raises(Refusal, match="priority is"):
        priority_of(given)


@pytest.mark.parametrize("given", [0, -1, float("inf"), float("nan"), 1e9, True, "5"])
def test_what_is_no_deadline_is_refused(given: object) -> None:
    with pytest.raises(Refusal, match="deadline_ms"):
        deadline_s_of(given)


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "", "3600001", "9" * 5000, "1e3", " 5"])
def test_what_is_no_rest_of_a_deadline_is_refused(given: str) -> None:
    with pytest.raises(Refusal, match="Batchyard-Timeout-Ms is a whole number of milliseconds, 1 to 3600000"):
        until_s_of(given)


def test_the_shorter_of_a_timeout_and_what_its_sender_waits_for_counts() -> None:
    def asked(header: str | None) -> float:
        made = Asked(INFO, {}, 2, 5.0, None)
        made.end_by(until_s_of(header))
        return made.timeout_s

    assert asked(None) == asked("60000") == 5.0
    assert 1.0 < asked("2000") <= 2.0
    made = Asked(INFO, {}, 2, 5.0, None)
    made.end_by(time.monotonic() - 1)  # it has waited too long already
    assert 0 < made.timeout_s < 0.01


def test_a_timeout_counts_microseconds() -> None:
    assert options_of({"timeout": 1500, "priority": 1, "anything": [1]}) == (0, 0.0015)
    assert options_of({}) == (2, TIMEOUT_S)
    assert options_of({"timeout": 10**400})[1] == TIMEOUT_MAX_S
    for timeout in (-1, 1.5, "1", True):
        with pytest.raises(Refusal, match="microseconds"):
            options_of({"timeout": timeout})


def test_what_is_not_offered_is_refused_by_name() -> None:
    with pytest.raises(Refusal, match=r"sequence_id: .*docs/sequences\.md"):
        options_of({"sequence_id": 5})
    for count in (-1, True, "3", 1.5):
        with pytest.raises(Refusal, match="how many classes"):
            wanted_of("y", {"classification": count}, True, None)
    assert wanted_of("y", {"classification": 3}, True, None).classes == 3
    with pytest.raises(Refusal, match="--shared-memory"):
        place_of({"shared_memory_region": "r", "shared_memory_byte_size": 1}, None, "input 'x'")


def test_an_input_is_checked_before_its_bytes_are_read() -> None:
    assert declared(INFO, "x", "FP32", [1, 3, 5]).name == "FP32"
    for name, datatype, said in (
        ("x", "INT32", "takes FP32"),
        ("z", "FP32", "no input 'z'"),
        ("x", "BYTES", "takes FP32"),
    ):
        with pytest.raises(Refusal, match=said):
            declared(INFO, name, datatype, [1, 3, 5])


def test_metadata_and_configuration_speak_of_the_batch_as_triton_does() -> None:
    metadata, config = described.metadata(INFO), described.config(INFO)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, -1]}]
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [3, -1])
    assert (config["output"][0]["data_type"], config["output"][0]["dims"]) == ("TYPE_BF16", [2])
    assert metadata["versions"] == ["3"]


def test_a_batch_that_triton_has_no_word_for_is_none_in_its_configuration() -> None:
    """Its rows are on axis 0 of every tensor, or there are none; the reason is told as a parameter."""
    state = TensorSpec("h", 1, [2, "n", 3])
    info = msgspec.structs.replace(
        INFO, inputs=[*INFO.inputs, state], batch_axes=[0, 1, 0], evidence="6 rows differ by 0"
    )
    config = described.config(info)
    assert config["max_batch_size"] == 0
    assert "dynamic_batching" not in config
    assert [entry["dims"] for entry in config["input"]] == [[-1, 3, -1], [2, -1, 3]]
    assert config["parameters"]["batching"] == {"string_value": "6 rows differ by 0"}
    assert msgspec.json.decode(config["parameters"]["batchyard"]["string_value"], type=type(info)) == info
    assert described.config(msgspec.structs.replace(INFO, batch_axes=[0, 0]))["max_batch_size"] == 8
    anything = TensorSpec("x", 1, None)
    alone = msgspec.structs.replace(INFO, inputs=[anything], batchable=False, alone_reason="it has no axis")
    assert described.metadata(alone)["inputs"][0]["shape"] == [-1]
    assert described.config(alone)["parameters"]["batching"] == {"string_value": "it has no axis"}


def test_statistics_are_sums_of_the_brokers_histograms() -> None:
    def histogram(count: int, total: int) -> dict[str, object]:
        return {"counts": {5: count}, "sum": total}

    snapshot = {
        "requests": [["m", 1, "ok", 5], ["m", 2, "ok", 1], ["m", 2, "expired", 2], ["n", 2, "ok", 9]],
        "stages": [["m", 1, "total", histogram(5, 50)], ["m", 2, "total", histogram(1, 7)]],
        "batch_stages": [["m", "rows", histogram(2, 12)], ["m", "compute", histogram(2, 30)]],
        "identical": [["m", "cached", 4], ["m", "joined", 1]],
        "batch_sizes": [["m", 8, 1, 1, 20, 3], ["n", 1, 9, 9, 9, 9], ["m", 4, 1, 2, 10, 4]],
    }
    said = described.statistics(INFO, snapshot, 77)
    assert (said["inference_count"], said["execution_count"], said["last_inference"]) == (12, 2, 77)
    assert said["inference_stats"]["success"] == {"count": 6, "ns": 57}
    assert said["inference_stats"]["fail"]["count"] == 2
    assert said["inference_stats"]["compute_infer"] == {"count": 6, "ns": 30}
    assert said["inference_stats"]["cache_hit"]["count"] == 4
    assert [(one["batch_size"], one["compute_infer"]) for one in said["batch_stats"]] == [
        (4, {"count": 1, "ns": 10}),
        (8, {"count": 1, "ns": 20}),
    ]
