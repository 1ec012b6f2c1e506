"""The sessions that judge exported files: one thread, no spinning, one provider, no fallback."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..evidence.words import first_line
from ..transport.errors import InvalidRequest, ModelFailed
from .specs import Array, Feeds, numpy_dtype

CPU = "CPUExecutionProvider"
WEBGPU = "WebGpuExecutionProvider"
DIRECTML = "DmlExecutionProvider"
NAMES = {"cpu": CPU, "webgpu": WEBGPU, "directml": DIRECTML, "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Target:
    """Where a session runs: onnxruntime's name of the provider, the provider's options, and whether the graph
    runs without optimization."""

    provider: str = CPU
    options: Mapping[str, str] = field(default_factory=dict)
    as_written: bool = False


AS_WRITTEN = Target(as_written=True)


def target(provider: str, options: Mapping[str, str] | None = None) -> Target:
    """`provider`: a short name (`webgpu`) or onnxruntime's. Raises InvalidRequest if it is not installed."""
    import onnxruntime

    name = NAMES.get(provider.lower(), provider)
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise InvalidRequest(f"this onnxruntime has no {name}; it has {', '.join(available)}")
    return Target(name, dict(options or {}))


def options(chosen_target: Target | None = None) -> Any:
    """SessionOptions with one thread, no spinning, and no log."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 4  # what goes wrong is raised as well, and is often only an attempt
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if chosen_target is None:
        return chosen
    if chosen_target.as_written:
        chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if chosen_target.provider == DIRECTML:  # it refuses memory patterns and parallel execution
        chosen.enable_mem_pattern = False
        chosen.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if chosen_target.provider == WEBGPU:  # the built-in package ignores options given with the provider
        for key, value in chosen_target.options.items():
            chosen.add_session_config_entry(f"ep.webgpuexecutionprovider.{key}", value)
    return chosen


def session(model: bytes | str, where: Target | None = None) -> Any:
    """An InferenceSession of a serialized model or a file, on an installed provider.

    Raises ModelFailed if the runtime refuses the model.
    """
    import onnxruntime

    where = where or Target()
    beside = dict(where.options) if where.provider != WEBGPU else {}
    try:
        # Otherwise a GPU that fails to start silently becomes the CPU, and is measured as one.
        return onnxruntime.InferenceSession(
            model, options(where), providers=[(where.provider, beside)], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ModelFailed(f"onnxruntime cannot load the exported model: {first_line(error)}") from error


def run(session: Any, feeds: Feeds) -> list[Array]:
    """The outputs in order. Complex inputs are passed as pairs if the model takes pairs. Raises ModelFailed
    with the runtime's message."""
    try:
        if any(array.dtype.kind in "cV" for array in feeds.values()) or _has_strange(session):
            return _run_strange(session, feeds)
        outputs: Sequence[Array] = session.run(None, feeds)
    except Exception as error:
        raise ModelFailed(f"onnxruntime cannot run the exported model: {first_line(error)}") from error
    return list(outputs)


# ---- types that onnxruntime's Python interface does not take or give as arrays ----

_BFLOAT16 = "tensor(bfloat16)"
_BFLOAT16_CODE = 16  # of onnx.TensorProto.DataType
_STRANGE = {_BFLOAT16: "bfloat16"} | {
    f"tensor({name.replace('_', '')})": name
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
}


def _has_strange(session: Any) -> bool:
    return any(value.type in _STRANGE for value in session.get_outputs())


def _run_strange(session: Any, feeds: Feeds) -> list[Array]:
    from onnxruntime import OrtValue

    takes = {value.name: value.type for value in session.get_inputs()}
    values = {}
    for name, array in feeds.items():
        if array.dtype.kind == "c" and "complex" not in takes.get(name, ""):
            part = array.real.dtype
            array = np.ascontiguousarray(array).view(part).reshape(*array.shape, 2)
        if array.dtype.name == "bfloat16":
            bits = np.ascontiguousarray(array).view(np.uint16)
            values[name] = OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16_CODE)
        else:
            values[name] = OrtValue.ortvalue_from_numpy(array)
    return [_array_of(value) for value in session.run_with_ort_values(None, values)]


def _array_of(value: Any) -> Array:
    if value.data_type() not in _STRANGE:
        found: Array = value.numpy()
        return found
    dtype, shape = numpy_dtype(_STRANGE[value.data_type()]), tuple(value.shape())
    content = ctypes.string_at(value.data_ptr(), dtype.itemsize * prod(shape))
    return np.frombuffer(content, dtype).reshape(shape)
