"""Which extra of ours brings a package that is not installed: the sentence for whoever lacks it.

`export` and `demo --train` name their own: several extras at once.
"""

from __future__ import annotations

import importlib.util

from ..transport.errors import BatchyardError

# the name that is imported -> the extra
EXTRAS = {
    "onnxruntime": "cpu",
    "rich": "top",
    "prometheus_client": "sidecar",
    "psutil": "sidecar",
    "fastapi": "gateway",
    "uvicorn": "gateway",
    "grpc": "gateway",
    "onnx": "bench",
    "matplotlib": "plot",
}
GPU_EXTRAS = "for a GPU its extra in place of cpu: directml, webgpu, or cuda"


def install(package: str) -> str:
    """The command that brings it; `package` is one of EXTRAS."""
    command = f"pip install 'batchyard[{EXTRAS[package]}]'"
    return f"{command} ({GPU_EXTRAS})" if package == "onnxruntime" else command


def require(who: str, *packages: str) -> None:
    """Raises BatchyardError with the command where one of them is missing; imports none."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise BatchyardError(f"{who} needs {package}: {install(package)}")


def missing(error: ImportError) -> str:
    """The sentence for an import that failed."""
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError) and name in EXTRAS:
        return f"{name} is not installed: {install(name)}"
    return f"{name or 'a package'} cannot be imported ({error}); see `batchyard doctor`"
