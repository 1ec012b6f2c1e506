"""An exported file's metadata: inside it (`metadata_props`), and as JSON beside it.

Inside are flat keys `batchyard.*`, which onnxruntime's `get_modelmeta()` shows. Facts about the finished
files (sha256, bytes) are in the JSON alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..transport.errors import InvalidRequest
from .report import Report, Variant

FORMAT = "batchyard.export/1"
LIBRARIES = ("batchyard", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def signature(proto: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs as {name, dtype, shape}; a free axis is its name, or "?"."""
    from onnx import helper

    def described(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        shape = [
            dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim
        ]
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return {"name": value.name, "dtype": dtype, "shape": shape}

    return [described(value) for value in proto.graph.input], [
        described(value) for value in proto.graph.output
    ]


def opset(proto: Any) -> int:
    """The version of the standard operators that the file uses."""
    return int(next(one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")))


def versions() -> dict[str, str]:
    """The versions of Python and of the installed libraries that took part in the export."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def facts(report: Report) -> dict[str, Any]:
    """The facts that all variants share."""
    return {
        "source": report.source,
        "opset": report.opset,
        "inputs": report.inputs,
        "outputs": report.outputs,
        "batch": report.batch,
        "sizes": report.sizes,
        "checked": report.checked,
        "notes": report.notes,
        "versions": versions(),
        "nodes": {"raw": report.nodes_raw, "optimized": report.nodes},
        "passes": [dataclasses.asdict(step) for step in report.passes],
    }


def own_sizes_in(entries: Mapping[str, str]) -> dict[str, int]:
    """The sizes of free axes with which the file was exported, as it records them; empty if it does not."""
    try:
        found = json.loads(entries.get("batchyard.sizes", "{}"))
        return {str(name): size for name, size in found.items() if isinstance(size, int) and size > 0}
    except (ValueError, AttributeError):
        return {}


def judged(variant: Variant) -> dict[str, Any]:
    return {
        "variant": variant.name,
        "size_ratio": round(variant.size_ratio, 4),
        "validation": variant.difference and dataclasses.asdict(variant.difference),
        "timings": [dataclasses.asdict(timing) for timing in variant.timings],
    }


def props(report: Report, variant: Variant) -> dict[str, str]:
    """`metadata_props` of one file: strings as they are, everything else as JSON."""
    inside = {"format": FORMAT, **facts(report), **judged(variant)}
    return {
        f"batchyard.{key}": value if isinstance(value, str) else json.dumps(finite(value))
        for key, value in inside.items()
    }


def stamp(proto: Any, entries: Mapping[str, str]) -> bytes:
    """The serialized model with `entries` as its only metadata. Changes `proto`."""
    from onnx import helper

    proto.ClearField("metadata_props")
    helper.set_model_props(proto, dict(sorted(entries.items())))
    proto.producer_name, proto.producer_version = "batchyard", version("batchyard")
    return bytes(proto.SerializeToString(deterministic=True))


def document(report: Report) -> str:
    """The JSON beside the model: the facts, and every variant, published or refused."""
    variants = [
        {
            **judged(variant),
            "published": variant.path is not None,
            "refused": list(variant.refused),
            "file": variant.path and variant.path.name,
            "bytes": variant.path and variant.path.stat().st_size,
            "sha256": variant.sha256,
        }
        for variant in report.variants
    ]
    whole = {"format": FORMAT, **facts(report), "best": report.best.name, "variants": variants}
    return json.dumps(finite(whole), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """`value` with NaN and the infinities as strings: JSON has no numbers for them."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def earlier(path: Path) -> list[str]:
    """The files that an earlier export to the same place listed in its JSON at `path`.

    Raises InvalidRequest if another program's JSON file lies there: it would be overwritten.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InvalidRequest(f"{path} is no record of an earlier export: move it, or choose another name")
    # Names only: a record that was tampered with can't point elsewhere.
    return [Path(part["file"]).name for part in found.get("variants", []) if part.get("file")]
