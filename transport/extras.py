"""How a package that is missing is had: the command to type, in the Python that runs here. And whether
batchyard itself is compiled.

Owns which extra of pyproject.toml brings what. Needs none that may be missing: it is asked where things are.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from . import deadlines
from .errors import BatchyardError

SOURCE = Path(__file__).resolve().parents[1]
# import name -> the extra that brings it, where there is one that is no larger
BROUGHT_BY = {
    "fastapi": "gateway",
    "google": "gateway",  # protobuf
    "envoy": "fleet",
    "grpc": "gateway",
    "hdrh": "load",
    "httptools": "gateway",
    "httpx": "fleet",
    "matplotlib": "plot",
    "onnx": "bench",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "optuna": "train",
    "prometheus_client": "sidecar",
    "psutil": "sidecar",
    "rich": "top",
    "sklearn": "train",
    "torch": "export",
    "uvicorn": "gateway",
}


def install(extras: str) -> str:
    """The command that installs `extras` ("cpu,top") into this very Python, from where batchyard lies."""
    here = Path.cwd()
    if (SOURCE / "pyproject.toml").is_file():
        package = f'-e "{_seen_from(here, SOURCE)}[{extras}]"'
    else:
        package = f'"batchyard[{extras}]"'
    if os.environ.get("VIRTUAL_ENV") == sys.prefix:  # an activated environment's pip is its own
        return f"pip install {package}"
    python = _seen_from(here, Path(sys.executable))
    return f"{python} -m pip install {package}"


def missing(package: str) -> str:
    """A sentence on a package that could not be imported, by its import name."""
    extra = BROUGHT_BY.get(package.partition(".")[0])
    return f"{package} is not installed: {install(extra)}" if extra else f"{package} is not installed"


def require(who: str, *packages: str) -> None:
    """Raises BatchyardError, with the command, where one of them is not installed; imports none."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise BatchyardError(f"{who} needs a package: {missing(package)}")


def code() -> str:
    """Which code runs here: "compiled" (`python3 run wheel`), or "pure Python"."""
    return "pure Python" if str(deadlines.__file__).endswith(".py") else "compiled"


def _seen_from(here: Path, path: Path) -> str:
    """Relative where that is shorter to type."""
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
