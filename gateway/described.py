"""What is said of models: metadata, configuration, statistics, as the protocol's messages spell them.

Pure: from the client's ModelInfo and the broker's counters to plain values, the same for REST and gRPC.
Counts stay integers here; JSON of 64-bit numbers is the senders' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import ModelInfo
from .datatypes import datatype_of

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = [
    "binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics",
]  # fmt: skip
SHARED_MEMORY = "system_shared_memory"
OUTCOMES_OK = "ok"


def server(version: str, shared_memory: bool) -> dict[str, Any]:
    """Server metadata."""
    extensions = sorted([*EXTENSIONS, SHARED_MEMORY] if shared_memory else EXTENSIONS)
    return {"name": "batchyard", "version": version, "extensions": extensions}


def metadata(info: ModelInfo) -> dict[str, Any]:
    """Model metadata: a free axis is -1. Raises Refusal for a type that the protocol cannot name."""
    return {
        "name": info.name,
        "versions": [str(info.revision)],
        "platform": PLATFORM,
        "inputs": [_tensor(spec, "input") for spec in info.inputs],
        "outputs": [_tensor(spec, "output") for spec in info.outputs],
    }


def config(info: ModelInfo) -> dict[str, Any]:
    """Model configuration: `dims` leave out the batch's axis where `max_batch_size` is above 0."""
    skip = 1 if info.batchable else 0
    on_cpu = all(worker.provider == "cpu" for worker in info.workers)
    described: dict[str, Any] = {
        "name": info.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": info.max_batch if info.batchable else 0,
        "input": [
            {
                "name": spec.name,
                "data_type": datatype_of(spec.dtype, f"input {spec.name!r}").config,
                "format": "FORMAT_NONE",
                "dims": _dims(spec.shape[skip:]),
            }
            for spec in info.inputs
        ],
        "output": [
            {
                "name": spec.name,
                "data_type": datatype_of(spec.dtype, f"output {spec.name!r}").config,
                "dims": _dims(spec.shape[skip:]),
            }
            for spec in info.outputs
        ],
        "instance_group": [
            {
                "name": info.name,
                "kind": "KIND_CPU" if on_cpu else "KIND_AUTO",
                "count": len(info.workers),
            }
        ],
    }
    if info.batchable:
        described["dynamic_batching"] = {"priority_levels": 4, "default_priority_level": 3}
    return described


def statistics(info: ModelInfo, snapshot: dict[str, Any], last_ms: int = 0) -> dict[str, Any]:
    """A model's statistics since the broker started.

    What a batch took is counted once, where Triton counts it for every request in it: divided by the
    requests, it is a request's share of the worker. (Batches times requests would be a mean that can
    fall, and readers take differences.) `last_ms`: its last answer by this gateway.
    """
    outcomes = [(what, n) for model, _, what, n in snapshot["requests"] if model == info.name]
    done = sum(n for what, n in outcomes if what == OUTCOMES_OK)
    failed = sum(n for what, n in outcomes if what != OUTCOMES_OK)
    requests = _sums([(stage, h) for model, _, stage, h in snapshot["stages"] if model == info.name])
    batches = _sums([(stage, h) for model, stage, h in snapshot["batch_stages"] if model == info.name])
    runs, rows = batches.get("rows", (0, 0))
    cached = sum(n for model, how, n in snapshot["identical"] if model == info.name and how == "cached")

    def share(stage: str) -> dict[str, int]:
        return {"count": done, "ns": batches.get(stage, (0, 0))[1]}

    return {
        "name": info.name,
        "version": str(info.revision),
        "last_inference": last_ms,
        "inference_count": rows,
        "execution_count": runs,
        "inference_stats": {
            "success": {"count": done, "ns": requests.get("total", (0, 0))[1]},
            "fail": {"count": failed, "ns": 0},
            "queue": {"count": done, "ns": requests.get("queue", (0, 0))[1]},
            "compute_input": share("gather"),
            "compute_infer": share("compute"),
            "compute_output": share("scatter"),
            "cache_hit": {"count": cached, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }


def index(infos: Sequence[ModelInfo]) -> list[dict[str, Any]]:
    """The repository's index."""
    states = {"LOADING": "LOADING", "READY": "READY", "FAILED": "UNAVAILABLE"}
    return [
        {
            "name": info.name,
            "version": str(info.revision),
            "state": states[info.state.name],
            "reason": info.reason,
        }
        for info in infos
    ]


def _tensor(spec: Any, role: str) -> dict[str, Any]:
    datatype = datatype_of(spec.dtype, f"{role} {spec.name!r}").name
    return {"name": spec.name, "datatype": datatype, "shape": _dims(spec.shape)}


def _dims(axes: Sequence[int | str]) -> list[int]:
    return [axis if isinstance(axis, int) else -1 for axis in axes]


def _sums(histograms: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, tuple[int, int]]:
    """Stage -> (count, sum) over all histograms of that stage."""
    sums: dict[str, tuple[int, int]] = {}
    for stage, histogram in histograms:
        count, total = sums.get(stage, (0, 0))
        sums[stage] = (count + sum(histogram["counts"].values()), total + histogram["sum"])
    return sums
