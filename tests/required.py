"""Parts that some machine may lack: a test that needs one skips with a sentence, or fails where the
build machine says that nothing may be missing.

BATCHYARD_REQUIRE names the parts that must be there, separated by commas: `prometheus,webgpu`. A name that
is no part is an error: it would require nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, TypeVar

import pytest

Found = TypeVar("Found")
VARIABLE = "BATCHYARD_REQUIRE"
HOW_TO_GET = {
    "chromium": "apt-get install chromium",
    "crds": "pip install cloudcoil-models-keda cloudcoil-models-prometheus-operator",
    "dask": "pip install distributed",  # bulk work
    "envoy": "pip install 'batchyard[fleet]'",
    "models": "python3 run test --models",  # real models, as others publish them
    "openvino": "python3 run test --openvino, on Intel's hardware or on Debian after python3 run tools intel",
    "perf_analyzer": "on Debian 12, python3 run measure perf-analyzer --fetch",
    "prometheus": "on Debian, python3 run tools prometheus",
    "pythons": "two more of python3.11 to python3.14 on PATH or in pyenv",  # `run test --every` looks
    "schemathesis": "pip install schemathesis",
    "torch": "python3 run test --export",  # and what examples train with
    "webgpu": "python3 run test --webgpu, on a GPU or on Debian after python3 run tools vulkan",
}


def required() -> set[str]:
    """What the environment wants. Raises pytest.UsageError for a name that is no part."""
    names = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
    for name in sorted(names - HOW_TO_GET.keys()):
        raise pytest.UsageError(f"{VARIABLE} names {name!r}; there is: {', '.join(HOW_TO_GET)}")
    return names


def part(name: str, found: Found | None, but: str = "") -> Found:
    """`found`, or a skip (of the file, where a file asks); a failure where the part is required.

    found: what was looked for, None where it is not there. but: what was seen in its place.
    """
    if found is not None:
        return found
    text = f"{name} is not here; to get it: {HOW_TO_GET[name]}{f' ({but})' if but else ''}"
    if name in required():
        pytest.fail(text)
    pytest.skip(text, allow_module_level=True)


def module(package: str, of: str = "torch") -> Any:
    """A package that comes with the part `of`, imported."""
    try:
        return import_module(package)
    except ModuleNotFoundError as missing:
        if missing.name != package:
            raise
        return part(of, None)
