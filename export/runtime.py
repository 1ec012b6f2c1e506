"""The sessions that exported files are judged with: one thread, no spinning, one provider, no fallback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from .specs import Array, Feeds

CPU = "CPUExecutionProvider"


def options() -> Any:
    """SessionOptions of one thread that keeps quiet and does not spin."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 3
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return chosen


def session(content: bytes, provider: str = CPU) -> Any:
    """An InferenceSession of a serialized model on `provider`.

    Raises InvalidRequest where this onnxruntime has no such provider, ModelFailed where it refuses the model.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise InvalidRequest(f"this onnxruntime has no {provider}; it has {', '.join(available)}")
    try:
        # Otherwise a GPU that fails to start silently becomes the CPU, and is measured as one.
        return onnxruntime.InferenceSession(content, options(), providers=[provider], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ModelFailed(f"onnxruntime cannot load the exported model: {error}") from error


def run(session: Any, feeds: Feeds) -> list[Array]:
    """The outputs in order. Raises ModelFailed with the runtime's words."""
    try:
        outputs: Sequence[Array] = session.run(None, feeds)
    except Exception as error:
        raise ModelFailed(f"onnxruntime cannot run the exported model: {error}") from error
    return list(outputs)
