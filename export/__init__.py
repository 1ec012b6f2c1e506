"""export/: PyTorch to ONNX, optimized, quantized where that pays, checked, and described.

    from batchyard.export import export_to_onnx
    report = export_to_onnx(model, "model.onnx", input_shape=(1, 3, 32, 32), optimize=True, quantize=True)

Imports nothing of ours but evidence/, tensors and errors; torch, onnx and onnxruntime only when a call
needs them.
"""

from .build import export_to_onnx
from .lists import Entry, entries
from .many import Outcome, export_many
from .report import Report, Variant
from .specs import InputSpec

__all__ = [
    "Entry",
    "InputSpec",
    "Outcome",
    "Report",
    "Variant",
    "entries",
    "export_many",
    "export_to_onnx",
]
