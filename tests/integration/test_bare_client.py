"""The client installs with pyzmq, numpy and msgspec alone; everything else belongs to servers and tests."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from batchyard import serve
from batchyard.client import Yard

ROOT = Path(__file__).resolve().parents[2]
BANNED = (
    "onnxruntime",
    "torch",
    "onnx",
    "ml_dtypes",
    "prometheus_client",
    "msgpack",
    "honcho",
    "hypothesis",
    "pytest",
)
ALLOWED = {"batchyard", "msgspec", "numpy", "zmq", "typing_extensions"}  # the last: where it is there
INSTALL_LIMIT_S = 120

REQUESTS = """
import asyncio, sys
import numpy as np
import batchyard
from batchyard import AsyncClient, Client

x = np.arange(8, dtype=np.float32).reshape(2, 4)
with Client(sys.argv[1]) as client:
    assert (client.infer("neg", x) == -x).all()
    assert (client.submit("neg", x).result(20) == -x).all()
    array = client.empty((2, 4))
    array[:] = 3
    assert (client.infer("neg", array) == -3).all()
    half = client.infer("half", np.full((1, 4), 0x3F80, np.uint16))  # bfloat16 as its bits
    assert half.dtype == np.uint16 and (half == 0x3F80).all()

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        assert ((await client.infer("neg", x)) == -x).all()

asyncio.run(main())
foreign = sorted(
    name for name, module in sys.modules.items()
    if "." not in name and not name.startswith("_") and "site-packages" in (getattr(module, "__file__", None) or "")
)
print(" ".join(foreign))
"""

FINDER = f"""
import sys
class Banned:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BANNED!r}:
            raise ImportError(f"{{name}} is not the client's to import")
sys.meta_path.insert(0, Banned())
"""


@pytest.fixture(scope="module")
def yard(neg_model: Path, onnx_models) -> Iterator[Yard]:  # type: ignore[no-untyped-def]
    half = onnx_models.unary("bare_bfloat16", "Identity", ["n", 4], 16)
    with serve({"neg": neg_model, "half": half}, workers=1, threads=1) as made:
        yield made


def test_the_client_works_where_nothing_else_can_be_imported(yard: Yard) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FINDER + REQUESTS, yard.url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= ALLOWED


def test_importing_the_package_imports_nothing_of_ours_or_others(yard: Yard) -> None:
    code = "import sys, batchyard; print([n for n in sys.modules if n.split('.')[0] in ('numpy', 'zmq', 'msgspec')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_a_real_environment_with_the_core_dependencies_alone_is_enough(yard: Yard, run_folder: Path) -> None:
    """`pip install batchyard` without an extra, into a new environment."""
    folder = run_folder / "bare"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    installed = subprocess.run(
        [*pip, "--no-build-isolation", "--no-deps", str(_copy(run_folder))],
        capture_output=True,
        text=True,
        timeout=INSTALL_LIMIT_S,
    )
    if installed.returncode:  # setuptools is not in the new environment
        installed = subprocess.run(
            [*pip, "--no-deps", str(_copy(run_folder))], capture_output=True, text=True
        )
    assert installed.returncode == 0, installed.stderr
    needed = subprocess.run(
        [*pip, "pyzmq>=26", "numpy>=1.26", "msgspec>=0.19"], capture_output=True, text=True
    )
    if needed.returncode:
        pytest.skip(f"no package index within reach: {needed.stderr.strip().splitlines()[-1]}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), "-I", "-c", REQUESTS, yard.url],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= ALLOWED


def _copy(run_folder: Path) -> Path:
    """The sources without what a build would write beside them."""
    import shutil

    copied = run_folder / "source"
    if not copied.exists():
        skipped = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "docs")
        shutil.copytree(ROOT, copied, ignore=skipped)
    return copied
