"""What somebody is told whose environment lacks a package, and the ports that `up` is asked to open."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from batchyard.cli import extras
from batchyard.cli.arguments import PORT_MAX
from batchyard.cli.up import check_port
from batchyard.transport.errors import BatchyardError, EndpointInUse, InvalidRequest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("package", "extra"), extras.EXTRAS.items())
def test_the_extra_that_is_named_brings_the_package(package: str, extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {re.split(r"[^\w-]", text)[0] for text in project["optional-dependencies"][extra]}
    assert {"grpc": "grpcio"}.get(package, package.replace("_", "-")) in brought


def test_a_missing_package_is_told_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BatchyardError, match=r"^--metrics needs psutil: pip install 'batchyard\[sidecar\]'$"):
        extras.require("--metrics", "psutil", "prometheus_client")
    with pytest.raises(BatchyardError, match=r"'batchyard\[cpu\]' \(for a GPU its extra in place of cpu: directml"):
        extras.require("a worker", "onnxruntime")


def test_a_verb_that_needs_more_than_is_here_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from batchyard.cli.main import main; sys.exit(main(['bench', 'models', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = "batchyard: onnx is not installed: pip install 'batchyard[bench]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_package_that_is_broken_or_not_ours_is_told_as_it_is() -> None:
    assert extras.missing(ImportError("libfoo.so", name="rich")) == (
        "rich cannot be imported (libfoo.so); see `batchyard doctor`"
    )
    assert extras.missing(ModuleNotFoundError("No module named 'x'", name="x")).startswith("x cannot be imported")


def test_two_companions_at_one_port_are_told_before_anything_starts() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    taken: dict[int, str] = {}
    check_port("metrics", port, taken)
    with pytest.raises(InvalidRequest, match=f"port {port} is wanted by --metrics and --gateway"):
        check_port("gateway", port, taken)


def test_a_port_that_is_taken_or_none_is_told_with_its_option() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        with pytest.raises(EndpointInUse, match=rf"port {port} \(Address.*in use\): choose another --metrics"):
            check_port("metrics", port, {})
    with pytest.raises(InvalidRequest, match="port after --gateway, and there is no port 65536"):
        check_port("gateway", PORT_MAX + 1, {})
