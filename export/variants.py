"""The variants: their names, which of them to try, and how each is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..transport.errors import InvalidRequest
from . import quantize, storage
from .specs import Feeds

NAMES = ("fp16-storage", "int8-storage", "dynamic", "static")
BEST = "best"  # all that can be tried; of those that pass the gate, the cheapest is published
ALL = "all"  # the same, and all that pass are published

Asked = bool | str | Sequence[str] | None


def asked(quantize: Asked, has_data: bool) -> tuple[str, ...]:
    """The variants to try. Without data, `static` is left out unless it was requested by name.

    Raises InvalidRequest for an unknown name, or for static without data.
    """
    if quantize is None or quantize is False or quantize == "none":
        return ()
    if quantize is True or quantize in (BEST, ALL):
        return tuple(name for name in NAMES if has_data or name != "static")
    wanted = tuple(dict.fromkeys([quantize] if isinstance(quantize, str) else quantize))
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        allowed = ", ".join((BEST, ALL, "none", *NAMES))
        raise InvalidRequest(f"there is no variant {unknown[0]!r}; there is: {allowed}")
    if "static" in wanted and not has_data:
        raise InvalidRequest("static quantization needs calibration data: rows as they will really come")
    return wanted


def make(name: str, proto: Any, data: Sequence[Feeds] | None, method: str) -> Any:
    """A variant of the fp32 onnx.ModelProto; `data`: batches to calibrate with. Raises ModelFailed."""
    if name == "fp16-storage":
        return storage.fp16_storage(proto)
    if name == "int8-storage":
        return storage.int8_storage(proto)
    if name == "dynamic":
        return quantize.dynamic(proto)
    assert data is not None  # asked() saw to it
    return quantize.static(proto, data, method)
