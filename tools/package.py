"""`python3 run package`: the sdist, the wheel that comes of it, and both tried as a user would.

The sdist is built from a copy, so that nothing is left in the repository, and the wheel from the sdist: what
the sdist lacks, the wheel lacks. The wheel goes into an empty environment, first alone (a client), then with
a runtime, and `batchyard demo` runs there. Then both lie in dist/.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"
# What a user of the bare client may rely on, and what must not have come along.
CLIENT = """
import sys, batchyard
batchyard.Client, batchyard.AsyncClient, batchyard.Priority
assert not {"onnxruntime", "fastapi", "torch"} & set(sys.modules)
"""
DEMO = ["demo", "--seconds", "1", "--clients", "1"]


class Unfit(Exception):
    """A package that is not as it must be."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "run package",
        description="Build sdist and wheel into dist/, install the wheel into an empty environment, and run "
        "`batchyard demo` there.",
        epilog="example:\n  python3 run package",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where both go (dist/)")
    out = parser.parse_args(argv).out.resolve()
    try:
        with tempfile.TemporaryDirectory() as folder:
            sdist, wheel = build(Path(folder))
            print(f"package: {sdist.name}, {sdist.stat().st_size:,} bytes", flush=True)
            print(f"package: {wheel.name}, {wheel.stat().st_size:,} bytes", flush=True)
            try_out(Path(folder), wheel)
            out.mkdir(parents=True, exist_ok=True)
            for each in (sdist, wheel):
                shutil.copy(each, out / each.name)
    except Unfit as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    print(f"package: both are in {out}")
    return 0


def build(folder: Path) -> tuple[Path, Path]:
    """(sdist, wheel), in `folder`. Raises Unfit."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    done([sys.executable, "-c", BUILD.format("sdist"), str(folder)], source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    done([sys.executable, "-c", BUILD.format("wheel"), str(folder)], unpacked)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        broken = archive.testzip()
    if broken:
        raise Unfit(f"{broken} in the wheel is broken")
    return sdist, wheel


def try_out(folder: Path, wheel: Path) -> None:
    """Raises Unfit."""
    venv.create(folder / "empty")
    scripts = folder / "empty" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    pins = ROOT / "constraints" / f"python3.{sys.version_info[1]}.txt"
    install = [*pip(), "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    install += ["-c", str(pins)] if pins.exists() else []
    done([*install, str(wheel)], folder)
    done([str(python), "-c", CLIENT], folder)
    print("package: the client alone can be imported", flush=True)
    done([*install, f"{wheel}[cpu]"], folder)
    last = done([str(scripts / "batchyard"), *DEMO], folder)
    if "Next:" not in last:
        raise Unfit(f"`batchyard demo` did not end as it should:\n{last}")
    print("package: `batchyard demo` from an empty environment: all well", flush=True)


def pip() -> list[str]:
    """An environment without a pip is filled by that of the Python that it was made of."""
    own = importlib.util.find_spec("pip") is not None
    return [sys.executable if own else getattr(sys, "_base_executable", sys.executable), "-m", "pip"]


def done(command: list[str], folder: Path) -> str:
    """What it printed. Raises Unfit where it failed."""
    ours = ("PYTHONPATH", "PYTHONHOME")
    environment = {name: text for name, text in os.environ.items() if name not in ours}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    if ended.returncode:
        raise Unfit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


if __name__ == "__main__":
    sys.exit(main())
