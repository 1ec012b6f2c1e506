"""Descriptions of models: metadata, configuration, statistics, as the protocol's messages spell them.

Pure: from the client's ModelInfo and the broker's counters to plain values, the same for REST and gRPC.
Counts stay integers here; JSON of 64-bit numbers is the senders' business.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from .. import ModelInfo
from .classification import labels_of
from .datatypes import datatype_of

PLATFORM = "onnxruntime_onnx"
# By Triton's names, and only those of which everything is here: not trace and logging, whose settings can
# only be read, nor sequence, generate and cuda_shared_memory.
EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "parameters", "schedule_policy",
    "statistics",
)  # fmt: skip
SHARED_MEMORY = "system_shared_memory"
MODEL_CONTROL = "model_repository"
OK = "ok"  # the outcome of a request that got its result


def server(version: str, shared_memory: bool, model_control: bool) -> dict[str, Any]:
    optional = {SHARED_MEMORY: shared_memory, MODEL_CONTROL: model_control}
    extensions = sorted([*EXTENSIONS, *(name for name, on in optional.items() if on)])
    return {"name": "batchyard", "version": version, "extensions": extensions}


def served(infos: Sequence[ModelInfo]) -> list[dict[str, Any]]:
    """The models with their files' digests: nodes of a fleet that differ show here."""
    return [
        {
            **entry,
            "sha256": info.origin.sha256 if info.origin is not None else "",
            "idempotent": info.idempotent,
        }
        for info, entry in zip(infos, index(infos), strict=True)
    ]


def batches_as_triton(info: ModelInfo) -> bool:
    """Whether the model's rows are where Triton's are: on axis 0, of every tensor."""
    return info.batchable and not any(info.batch_axes)


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
    batches = batches_as_triton(info)
    on_cpu = all(worker.provider == "cpu" for worker in info.workers)
    described: dict[str, Any] = {
        "name": info.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": info.max_batch if batches else 0,
        "input": [
            {
                "name": spec.name,
                "data_type": datatype_of(spec.dtype, f"input {spec.name!r}").config,
                "format": "FORMAT_NONE",
                "dims": _dims(spec.shape, batches),
                "is_shape_tensor": False,
                "allow_ragged_batch": bool(info.padded_axes),
                "optional": spec.optional,
            }
            for spec in info.inputs
        ],
        "output": [
            {
                "name": spec.name,
                "data_type": datatype_of(spec.dtype, f"output {spec.name!r}").config,
                "dims": _dims(spec.shape, batches),
                "label_filename": "",  # labels are in the model's file: `parameters` has them
                "is_shape_tensor": False,
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
    described["parameters"] = {name: {"string_value": text} for name, text in _parameters(info).items()}
    described["model_transaction_policy"] = {"decoupled": info.streams}
    if batches:
        described["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
            "priority_levels": 4,
            "default_priority_level": 3,
        }
    return described


def _parameters(info: ModelInfo) -> dict[str, str]:
    """Why it batches or does not; `metadata`: what the file says of itself, as Python writes a dict of texts
    (Ultralytics' client evaluates it); `labels`: names of classes, as JSON."""
    parameters = {"batching": info.evidence or info.alone_reason}
    said = info.origin.metadata if info.origin is not None else {}
    if said:
        parameters["metadata"] = repr(said)
    labels = labels_of(said)
    if labels:
        parameters["labels"] = json.dumps(dict(labels))
    parameters["batchyard"] = msgspec.json.encode(info).decode()  # all of it, for our own client
    return parameters


def statistics(info: ModelInfo, snapshot: dict[str, Any], last_ms: int = 0) -> dict[str, Any]:
    """A model's statistics since the broker started.

    What a batch took is counted once, where Triton counts it for every request in it: divided by the
    requests, it is a request's share of the worker. (Batches times requests would be a mean that can
    fall, and readers take differences.) `last_ms`: its last answer by this gateway.
    """
    outcomes = [(what, n) for model, _, what, n in snapshot["requests"] if model == info.name]
    done = sum(n for what, n in outcomes if what == OK)
    failed = sum(n for what, n in outcomes if what != OK)
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
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": {"count": runs, "ns": gather_ns},
                "compute_infer": {"count": runs, "ns": compute_ns},
                "compute_output": {"count": runs, "ns": scatter_ns},
            }
            for model, rows, runs, gather_ns, compute_ns, scatter_ns in sorted(snapshot["batch_sizes"])
            if model == info.name
        ],
    }


def index(infos: Sequence[ModelInfo]) -> list[dict[str, Any]]:
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


def _dims(axes: Sequence[int | str] | None, batches: bool = False) -> list[int]:
    """A shape without its batch axis, a free axis -1; of any rank: as one axis of any size."""
    return [-1] if axes is None else [axis if isinstance(axis, int) else -1 for axis in axes[int(batches) :]]


def _sums(histograms: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, tuple[int, int]]:
    """Stage -> (count, sum) over all histograms of that stage."""
    sums: dict[str, tuple[int, int]] = {}
    for stage, histogram in histograms:
        count, total = sums.get(stage, (0, 0))
        sums[stage] = (count + sum(histogram["counts"].values()), total + histogram["sum"])
    return sums
