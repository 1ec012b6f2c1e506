"""The yard's secret: where it lies, and who finds it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from batchyard.transport import secret
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.errors import Unauthorized

TCP = Endpoint.parse("tcp://127.0.0.1:7070")


@pytest.fixture(params=["ipc", "tcp", "tcp without a runtime folder"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.delenv(secret.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if request.param == "ipc":
        (tmp_path / "yard").mkdir(mode=0o700)
        return Endpoint.parse(f"ipc://{tmp_path}/yard")
    if request.param == "tcp":
        (tmp_path / "run").mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return TCP


def test_two_secrets_are_not_alike_and_cannot_be_guessed() -> None:
    assert len({secret.make() for _ in range(100)}) == 100
    assert len(bytes.fromhex(secret.make())) == 32


def test_what_a_broker_writes_its_users_processes_find_and_nobody_else(endpoint: Endpoint) -> None:
    assert secret.find(endpoint) == ""
    secret.write(endpoint, "first")
    secret.write(endpoint, "second")
    file = secret.path(endpoint)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert secret.find(endpoint) == "second"
    if os.name == "posix":
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    secret.remove(endpoint, "first")  # an earlier broker's end
    assert secret.find(endpoint) == "second"
    secret.remove(endpoint, "second")
    assert not file.exists()


def test_what_was_handed_over_comes_first_and_can_be_taken_out(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.write(endpoint, "written")
    monkeypatch.setenv(secret.VARIABLE, "handed over")
    assert secret.find(endpoint) == "handed over"
    assert secret.take() == "handed over"
    assert secret.take() == ""
    assert secret.find(endpoint) == "written"


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_it_is_never_written_where_others_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    secret.path(TCP).parent.mkdir()
    secret.path(TCP).parent.chmod(0o777)
    with pytest.raises(Unauthorized, match="open to other users"):
        secret.write(TCP, "s")
    secret.path(TCP).parent.chmod(0o700)
    target = tmp_path / "target"
    target.write_text("mine")
    secret.path(TCP).symlink_to(target)
    secret.write(TCP, "s")
    assert target.read_text() == "mine"


def test_every_address_has_its_own() -> None:
    urls = ("tcp://127.0.0.1:7070", "tcp://127.0.0.1:7071", "tcp://[::1]:7070", "tcp://127.0.0.2:7070")
    assert len({secret.path(Endpoint.parse(url)) for url in urls}) == len(urls)
