"""gpuworker/: the process that owns the onnxruntime session."""
