"""The house rules that can be a test: who imports whom, what is banned, and what the wheel holds.

The table is design.md's. All of it reads the source with `ast`: a word in a comment is no offence.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "batchyard"
FACE = PACKAGE  # `import batchyard` itself: the client's names and the errors, loaded when asked for

# folder -> the folders or modules of ours that it may import besides itself
MAY_IMPORT: dict[str, set[str]] = {
    "transport": set(),
    "broker": {"transport"},
    "evidence": {"transport"},
    "gpuworker": {"evidence", "transport"},
    "client": {"transport"},
    "export": {"evidence", "transport.errors", "transport.tensors"},
    "sidecar": {"transport"},
    "jobs": {"client", "transport"},
    "gateway": {"client", "jobs", "transport.arguments", "transport.extras", "transport.lifeline", FACE},
    "adapters": {"client", "transport"},
    "bench": {"client", "transport.arguments", "transport.extras", FACE},
    "cli": {"*"},
    "tools": {"bench", "client", "transport.arguments", FACE},
    "examples": {"cli", "client", "export", "transport", FACE},
    FACE: {"client", "jobs", "transport.errors"},
}
NOT_PACKAGED = {"tests", "docs", "build", "dist"}
# Code of ours that is held to every rule, and not in the wheel.
CHECKOUT_ONLY = {Path("tools"), *(Path("examples") / name for name in ("architectures", "bulk", "programs", "training", "zoo"))}

BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
BANNED_ATTRIBUTES = {"recv_pyobj", "send_pyobj"}
BANNED_CALLS = {"eval", "exec"}

BUILD_LIMIT_S = 60
EXAMPLES_BYTES_MAX = 500_000


def python_files() -> list[Path]:
    """Every .py of the package, relative to the root. Tests may do what the package may not."""
    found: list[Path] = []
    for folder, subfolders, files in os.walk(ROOT):
        here = Path(folder)
        outside = NOT_PACKAGED if here == ROOT else set()
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and name not in outside | {"__pycache__"} and ".egg-info" not in name
        ]
        found += [(here / name).relative_to(ROOT) for name in files if name.endswith(".py")]
    return sorted(found)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def dotted(call: ast.expr) -> str:
    return ast.unparse(call) if isinstance(call, ast.Name | ast.Attribute) else ""


def imported(path: Path, code: ast.Module) -> Iterator[str]:
    """Absolute dotted names of everything that `path` imports, `from a import b` as `a.b`."""
    package = (PACKAGE, *path.parent.parts)
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, node.module) if node.module else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")):
            first = node.args[0] if node.args else None
            name = first.value if isinstance(first, ast.Constant) else f"{PACKAGE}.<computed>"
            yield str(name)


def target(name: str) -> str | None:
    """What of ours an imported name is: `transport.errors`, a folder with its module, FACE, or None."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    if not rest or not ((ROOT / rest[0]).is_dir() or rest[0] == "<computed>"):
        return FACE
    return ".".join(rest[:2])


def owner(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else FACE


def trespasses(path: Path, code: ast.Module) -> list[str]:
    """The imports in `code`, lying at `path`, that the table doesn't allow."""
    mine = owner(path)
    allowed = MAY_IMPORT[mine]
    wrong = []
    for name in imported(path, code):
        to = target(name)
        if to is None or "*" in allowed or to in allowed or to.split(".")[0] in allowed | {mine}:
            continue
        wrong.append(f"{path} imports {name}; {mine} may import {sorted(allowed) or 'nothing of ours'}")
    return wrong


def banned(path: Path, code: ast.Module) -> list[str]:
    wrong = [
        f"{path}: imports {name}" for name in imported(path, code) if BANNED_MODULES & set(name.split("."))
    ]
    for node in ast.walk(code):
        at = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and node.attr in BANNED_ATTRIBUTES:
            wrong.append(f"{at}: {node.attr}")
        if not isinstance(node, ast.Call):
            continue
        if dotted(node.func).removeprefix("builtins.") in BANNED_CALLS:
            wrong.append(f"{at}: {dotted(node.func)}()")
        for keyword in node.keywords:
            off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not off:
                wrong.append(f"{at}: allow_pickle={ast.unparse(keyword.value)}")
    return wrong


def test_every_folder_with_code_has_a_row_in_the_table() -> None:
    assert {owner(path) for path in python_files()} <= set(MAY_IMPORT)


def test_a_folder_imports_only_what_its_row_allows() -> None:
    assert [wrong for path in python_files() for wrong in trespasses(path, tree(path))] == []


@pytest.mark.parametrize(
    ("path", "line", "allowed"),
    [
        ("broker/core.py", "from ..transport.messages import Submit", True),
        ("broker/core.py", "from .lanes import Lane", True),
        ("broker/core.py", "from . import lanes", True),
        ("broker/core.py", "import batchyard.transport.messages", True),
        ("broker/core.py", "import numpy", True),
        ("broker/core.py", "from ..client import Client", False),
        ("broker/core.py", "from .. import client", False),
        ("broker/core.py", "from .. import Client", False),
        ("broker/core.py", "import batchyard", False),
        ("broker/core.py", "from batchyard.gpuworker import sessions", False),
        ("broker/core.py", "def late():\n    from batchyard import gpuworker", False),
        ("broker/core.py", "import importlib\nimportlib.import_module('batchyard.client')", False),
        ("broker/core.py", "import importlib\nimportlib.import_module(name)", False),
        ("gpuworker/providers/cpu.py", "from ...transport import tensors", True),
        ("gpuworker/providers/cpu.py", "from ..sessions import Sessions", True),
        ("gpuworker/providers/cpu.py", "from ...broker import core", False),
        ("transport/codec.py", "from ..broker import core", False),
        ("export/build.py", "from ..transport.errors import BatchyardError", True),
        ("export/build.py", "from ..transport import errors", True),
        ("export/build.py", "from ..transport import messages", False),
        ("bench/load.py", "from ..client import Client", True),
        ("bench/load.py", "from batchyard import Client", True),
        ("bench/load.py", "from ..transport import codec", False),
        ("cli/main.py", "from ..broker import loop", True),
        ("__init__.py", "from .client import Client", True),
        ("__init__.py", "from .broker import core", False),
    ],
)
def test_the_import_test_itself_sees_what_it_must(path: str, line: str, allowed: bool) -> None:
    assert (trespasses(Path(path), ast.parse(line)) == []) is allowed


def test_the_root_holds_no_module_but_the_face() -> None:
    assert [path.name for path in python_files() if len(path.parts) == 1] == ["__init__.py"]


def test_nothing_banned_is_used() -> None:
    files = [*python_files(), Path("run")]
    assert [wrong for path in files for wrong in banned(path, tree(path))] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.externals",
        "from joblib.externals import cloudpickle",
        "socket.recv_pyobj()",
        "socket.send_pyobj(x)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "eval(text)",
        "builtins.exec(text)",
        "import importlib\nimportlib.import_module('marshal')",
    ],
)
def test_the_ban_itself_sees_what_it_must(line: str) -> None:
    assert len(banned(Path("broker/core.py"), ast.parse(line))) == 1


def test_the_ban_leaves_alone_what_only_looks_like_it() -> None:
    innocent = "model.eval()\nos.execv(a, b)\nnp.load(p, allow_pickle=False)\n# pickle\nx = 'eval'\n"
    assert banned(Path("broker/core.py"), ast.parse(innocent)) == []


def test_the_time_of_day_is_shown_and_nothing_waits_by_it() -> None:
    """It is set, back and forth. Whoever waits, or measures, takes time.monotonic."""
    clocks = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
    found = {
        path.as_posix()
        for path in python_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in clocks
    }
    assert found == {"bench/report.py", "cli/top.py", "client/spans.py", "gateway/yard.py", "tools/panels.py"}


def sleeps(path: Path, code: ast.Module) -> list[str]:
    """Where a test waits for time to pass. `asyncio.sleep(0)` lets the others run, and waits for none."""
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
    return [
        f"{path}:{call.lineno}: {ast.unparse(call)}"
        for call in calls
        if dotted(call.func).endswith("sleep") and ast.unparse(call) != "asyncio.sleep(0)"
    ]


def test_unit_tests_and_the_simulator_never_sleep() -> None:
    files = [path for folder in ("unit", "sim") for path in (ROOT / "tests" / folder).rglob("*.py")]
    assert [wrong for path in files for wrong in sleeps(path.relative_to(ROOT), tree(path))] == []


@pytest.mark.parametrize("line", ["time.sleep(0)", "sleep(0.1)", "asyncio.sleep(0.1)"])
def test_the_search_for_sleeps_itself_sees_what_it_must(line: str) -> None:
    assert len(sleeps(Path("tests/unit/test_core.py"), ast.parse(line))) == 1


def test_the_run_script_needs_nothing_but_python() -> None:
    tops = {name.split(".")[0] for name in imported(Path("run"), tree(Path("run")))}
    assert tops <= sys.stdlib_module_names


def listed_packages() -> set[str]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return set(settings["tool"]["setuptools"]["packages"])


def packaged_files() -> list[Path]:
    return [path for path in python_files() if path.parent not in CHECKOUT_ONLY]


def test_every_package_folder_is_listed_in_pyproject() -> None:
    folders = {path.parent for path in python_files()}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []
    packed = {path.parent for path in packaged_files()}
    assert {".".join((PACKAGE, *folder.parts)) for folder in packed} == listed_packages()


def test_nothing_in_the_wheel_imports_what_is_not() -> None:
    outside = {".".join((PACKAGE, *folder.parts)) for folder in CHECKOUT_ONLY} | {f"{PACKAGE}.tests"}
    wrong = [
        f"{path} imports {name}"
        for path in packaged_files()
        for name in imported(path, tree(path))
        if any(f"{name}.".startswith(f"{package}.") for package in outside)
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy, so that no build folder is left in the repository."""
    work = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, work / "source", ignore=skip)
    # The backend itself, in this environment: pip and build would fetch one for isolation.
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(work)],
        cwd=work / "source",
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_packages_and_nothing_else(wheel_names: set[str]) -> None:
    code = {f"{PACKAGE}/{path.as_posix()}" for path in packaged_files()}
    served = ("digits.onnx", "digits.json", "digits_test.npz", "scan.json", "batchyard.toml")
    data = {f"{PACKAGE}/examples/{name}" for name in served}
    inside = {name for name in wheel_names if ".dist-info/" not in name}
    data |= {f"{PACKAGE}/gateway/{name}" for name in ("docs.html", "openapi.json", "page.html", "triton.proto", "health.proto", "reflection.proto")}
    data |= {f"{PACKAGE}/gpuworker/probe.onnx", f"{PACKAGE}/cli/fleet/envoy.yaml"}
    assert inside == code | data | {f"{PACKAGE}/py.typed"}


def test_the_wheel_has_no_tests_and_no_run_script(wheel_names: set[str]) -> None:
    parts = {part for name in wheel_names for part in name.split("/")}
    assert parts.isdisjoint({"tests", "run", "run.py", "docs", "grafana", ".ci", "Procfile"})


def test_the_wheel_has_the_licence_and_the_command(wheel_names: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel_names)


def test_the_bundled_model_belongs_to_its_metadata_and_stays_small() -> None:
    folder = ROOT / "examples"
    named = json.loads((folder / "digits.json").read_text(encoding="utf-8"))["sha256"]
    assert set(named) == {"digits.onnx", "digits_test.npz"}
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in named} == named
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < EXAMPLES_BYTES_MAX


def test_importing_batchyard_loads_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import batchyard\n"
        "new = set(sys.modules) - before - {'batchyard'}\n"
        "heavy = [n for n in new if n.split('.')[0] in ('batchyard', 'zmq', 'numpy', 'msgspec')]\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_face_has_every_error_and_refuses_other_names() -> None:
    import batchyard
    from batchyard.transport import errors

    named = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.BatchyardError)
    }
    assert named <= set(batchyard.__all__) <= set(dir(batchyard))
    assert batchyard.Overloaded is errors.Overloaded
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        getattr(batchyard, "Nonsense")  # noqa: B009 - a checker would refuse the plain spelling
