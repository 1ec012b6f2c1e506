"""Arithmetic variants: onnxruntime's quantizers with the settings that measured best here.

dynamic   weights int8; activations' ranges are measured in every run; needs no data
static    QDQ, per channel; activations' ranges come from calibration data
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from .specs import Feeds

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def dynamic(proto: Any) -> Any:
    """`proto` with integer forms of all operators that have one, including Conv."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _written(
        proto,
        lambda source, target: quantize_dynamic(
            source, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
        ),
    )


def static(proto: Any, data: Sequence[Feeds], method: str = "minmax") -> Any:
    """`proto` with QuantizeLinear and DequantizeLinear around the operators that run in integers.

    `data`: batches of arrays by input name; `method`: minmax, entropy or percentile.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if method not in METHODS:
        raise InvalidRequest(f"the calibration method is one of {', '.join(METHODS)}, and not {method!r}")
    return _written(
        proto,
        lambda source, target: quantize_static(
            source,
            target,
            _reader(list(data)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Seven bits: without VNNI, x86's u8 x s8 sums saturate in 16 bits, and the file may go anywhere.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[METHODS[method]],
        ),
    )


def _reader(rest: list[Feeds]) -> Any:
    """onnxruntime's CalibrationDataReader over batches."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Feeds | None:
            return rest.pop(0) if rest else None

    return Reader()


def _written(proto: Any, quantize: Callable[[str, str], None]) -> Any:
    """Run a quantizer, which reads and writes files, and read back what it wrote."""
    import onnx

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "quantized.onnx"
        plain = onnx.ModelProto()
        plain.CopyFrom(proto)
        # The quantizer infers shapes anew after it has transposed weights (1.31): the old ones contradict.
        del plain.graph.value_info[:]
        onnx.save(plain, str(source))
        try:
            quantize(str(source), str(target))
        except Exception as error:  # the quantizer is somebody else's, and its exceptions share no base
            raise ModelFailed(f"onnxruntime's quantizer failed: {error}") from error
        return onnx.load(str(target))


@contextmanager
def _quiet() -> Iterator[None]:
    """On the root logger, the quantizer recommends a preprocessing that has been done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
