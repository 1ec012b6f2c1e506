"""`python3 run wheel`: the wheel of this checkout, with its hot rooms compiled where a C compiler is.

pyproject.toml lists the rooms (`tool.batchyard.compiled`). mypyc compiles them as they are: the Python source
stays the reference, lies beside the compiled module in the wheel, and is what an editable install runs.
`--test` runs the rooms' unit tests and the simulator on what was compiled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from pathlib import Path

from ..transport.arguments import count

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "*.so", "*.pyd")
SEEDS = 300
# The rooms' own tests. `interpreted` marks those that replace a method: a compiled class allows none of that.
TESTS = ["broker", "client/test_engine.py", "client/test_engine_lost.py", "client/test_map.py"]
TESTS += ["gpuworker/test_runner.py", "gpuworker/test_shared_work.py", "transport"]
EPILOG = """\
examples:
  python3 run wheel                  into dist/
  python3 run wheel --pure           without compiling, for any machine
  python3 run wheel --test           and run unit tests and the simulator on it
"""
# In a process of its own. mypyc takes modules' names from paths: it runs in the folder above the package, and
# setuptools in the package, where it must find the same relative paths.
BUILD = """\
import os, shutil, sys
from setuptools import setup
out, *rooms = sys.argv[1:]
extensions = []
if rooms:
    from mypyc.build import mypycify
    os.mkdir("c")
    options = ["--config-file=batchyard/pyproject.toml", *rooms]
    extensions = mypycify(options, opt_level="3", debug_level="0", target_dir="c", group_name="batchyard")
    shutil.copytree("c", os.path.join("batchyard", "c"))
os.chdir("batchyard")
setup(ext_modules=extensions, script_args=["--quiet", "bdist_wheel", "--dist-dir", out])
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "run wheel",
        description="Build the wheel, with its hot rooms compiled where a C compiler is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheel (dist)")
    parser.add_argument("--pure", action="store_true", help="compile nothing")
    parser.add_argument("--test", action="store_true", help="fail without a compiler, and test what it made")
    parser.add_argument("--seeds", type=count, default=SEEDS, help="of the simulator (%(default)s)")
    options = parser.parse_args(arguments)
    reason = "" if options.pure else lacking()
    if options.test and (options.pure or reason):
        print(f"run: nothing to test: {reason or 'a pure wheel is what python3 run test runs'}")
        return 1
    if reason:
        print(f"run: {reason}: the wheel is pure Python")
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        wheel = build(Path(folder), options.out, [] if options.pure or reason else compiled(ROOT))
        if wheel is None:
            return 1
        print(wheel)
        return tested(Path(folder), wheel, options.seeds) if options.test else 0


def compiled(root: Path) -> list[str]:
    """The rooms to compile, as paths in the repository."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    rooms: list[str] = settings["tool"]["batchyard"]["compiled"]
    return rooms


def lacking() -> str:
    """What compiling lacks here; "": nothing."""
    compiler = (sysconfig.get_config_var("CC") or "cl").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are missing (Debian: python3-dev)"
    return ""


def build(folder: Path, out: Path, rooms: list[str]) -> Path | None:
    """The wheel in `out`, built in `folder` from a copy; None: it failed, and its messages are above."""
    shutil.copytree(ROOT, folder / "batchyard", ignore=NOT_COPIED)
    made = folder / "made"
    command = [sys.executable, "-c", BUILD, str(made)]
    command += [f"batchyard/{room}" for room in rooms]
    environment = os.environ | {"MYPYPATH": str(folder), "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wheels = list(made.glob("*.whl"))
    if done.returncode or not wheels:
        print(done.stdout + done.stderr, file=sys.stderr)
        return None
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(wheels[0], out))


def tested(folder: Path, wheel: Path, seeds: int) -> int:
    """The first status that isn't 0 of: unit tests and simulator, on the wheel's modules."""
    package = folder / "batchyard"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [sys.executable, "-m"]
    unit = ["pytest", "-q", "-p", "no:cacheprovider", "-m", "not interpreted"]
    commands = {
        "unit tests": [*unit, *(f"tests/unit/{path}" for path in TESTS)],
        "simulator": ["batchyard.tests.sim", "--first", str(seeds)],
    }
    shown = [sys.executable, "-c", "from batchyard.transport.extras import code; print(code())"]
    found = subprocess.run(shown, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if found.stdout.strip() != "compiled":
        print(f"run: {found.stdout}{found.stderr} runs, not what was compiled", file=sys.stderr)
        return 1
    for name, command in commands.items():
        print(f"\n== {name}, compiled ==", flush=True)
        status = subprocess.run([*python, *command], cwd=package, env=environment, check=False).returncode
        if status:
            return status
    print(f"\n== the compiled rooms keep what their tests and {seeds} seeds of the simulator hold")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
