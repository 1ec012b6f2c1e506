"""Endpoints: what a yard URL means, and that only one process holds a yard."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from batchyard.transport import endpoints
from batchyard.transport.endpoints import Endpoint, claim, default_url, private_folder, require_curve
from batchyard.transport.errors import EndpointInUse, InvalidRequest, Unauthorized
from batchyard.transport.keys import KeyFolder

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="ipc needs a POSIX system")


@posix_only
def test_an_ipc_url_is_a_folder_of_three_sockets() -> None:
    endpoint = Endpoint.parse("ipc:///run/user/1000/batchyard/")
    assert endpoint.clients == "ipc:///run/user/1000/batchyard/clients"
    assert endpoint.workers == "ipc:///run/user/1000/batchyard/workers"
    assert endpoint.admin == "ipc:///run/user/1000/batchyard/admin"
    assert endpoint.folder == Path("/run/user/1000/batchyard")
    assert endpoint.is_ipc
    assert endpoint.is_loopback
    assert Endpoint.parse(endpoint.url) == endpoint


def test_a_tcp_url_is_three_ports_in_a_row() -> None:
    endpoint = Endpoint.parse("tcp://127.0.0.1:7070")
    assert (endpoint.clients, endpoint.workers, endpoint.admin) == (
        "tcp://127.0.0.1:7070",
        "tcp://127.0.0.1:7071",
        "tcp://127.0.0.1:7072",
    )
    assert not endpoint.is_ipc
    assert endpoint.folder is None


@pytest.mark.parametrize(
    ("url", "is_loopback"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.8.8.8:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("tcp://0.0.0.0:1", False),
        ("tcp://*:1", False),
        ("tcp://[::]:1", False),
        ("tcp://192.168.1.7:1", False),
        ("tcp://gpu-box.lan:65533", False),
        ("tcp://localhost.example.org:1", False),
    ],
)
def test_only_this_machines_own_addresses_are_loopback(url: str, is_loopback: bool) -> None:
    assert Endpoint.parse(url).is_loopback is is_loopback


def test_localhost_is_bound_as_an_address_and_ipv6_is_told() -> None:
    assert Endpoint.parse("tcp://localhost:7070").clients == "tcp://127.0.0.1:7070"
    assert Endpoint.parse("tcp://[::1]:7070").is_ipv6
    assert not Endpoint.parse("tcp://127.0.0.1:7070").is_ipv6


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "has no scheme"),
        ("/run/yard", "has no scheme"),
        ("http://127.0.0.1:80", "ipc:///absolute/folder or tcp://host:port"),
        ("tcp://", "has no port"),
        ("tcp://127.0.0.1", "has no port"),
        ("tcp://::1:7070", "in .brackets."),
        ("tcp://:7070", "has no port"),
        ("tcp://127.0.0.1:", "is no port"),
        ("tcp://127.0.0.1:http", "is no port"),
        ("tcp://127.0.0.1:-5", "is no port"),
        ("tcp://127.0.0.1:7070/x", "is no port"),
        ("tcp://127.0.0.1:0", "not in 1 to 65533"),
        ("tcp://127.0.0.1:65534", "not in 1 to 65533"),
        ("tcp://[::1:7070", "not closed"),
        ("tcp://[nonsense]:7070", "neither an address nor a host name"),
        ("tcp://a b:7070", "neither an address nor a host name"),
        ("tcp://user@host:7070", "neither an address nor a host name"),
        pytest.param("ipc://relative/folder", "three slashes", marks=posix_only),
        pytest.param("ipc://@abstract", "three slashes", marks=posix_only),
        pytest.param("ipc:///a\0b", "absolute folder", marks=posix_only),
    ],
)
def test_a_wrong_url_is_refused_with_what_is_allowed(url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        Endpoint.parse(url)


@posix_only
def test_a_folder_too_long_for_a_socket_says_what_to_set() -> None:
    room = endpoints.SOCKET_PATH_BYTES_MAX - len("/clients")
    longest = "/" + "y" * (room - 1)
    assert Endpoint.parse(f"ipc://{longest}").folder == Path(longest)
    with pytest.raises(InvalidRequest, match="choose a shorter folder"):
        Endpoint.parse(f"ipc://{longest}y")
    with pytest.raises(InvalidRequest, match="too long"):  # bytes count, not characters
        Endpoint.parse("ipc:///" + "ü" * (room // 2 + 1))


def test_the_variable_wins_then_the_runtime_folder_then_the_temporary_one(tmp_path: Path) -> None:
    assert default_url({"BATCHYARD_URL": "tcp://127.0.0.1:9"}) == "tcp://127.0.0.1:9"
    if sys.platform == "win32":
        assert default_url({}) == "tcp://127.0.0.1:7070"
        return
    assert default_url({"XDG_RUNTIME_DIR": str(tmp_path)}) == f"ipc://{tmp_path}/batchyard"
    for environ in ({}, {"XDG_RUNTIME_DIR": str(tmp_path / "absent")}, {"BATCHYARD_URL": ""}):
        assert default_url(environ).endswith(f"/batchyard-{os.getuid()}")
        assert default_url(environ).startswith("ipc:///")


def test_beyond_this_machine_a_yard_refuses_to_start_without_keys(tmp_path: Path) -> None:
    for url in ("tcp://*:7070", "tcp://0.0.0.0:7070", "tcp://10.0.0.5:7070"):
        with pytest.raises(Unauthorized, match=r"refuses to start .* without CURVE keys"):
            claim(Endpoint.parse(url))
    with pytest.raises(Unauthorized, match="no usable key"):
        require_curve(Endpoint.parse("tcp://*:7070"), KeyFolder(tmp_path))
    keys = KeyFolder.create(tmp_path / "keys")
    with claim(Endpoint.parse("tcp://*:7070"), keys):
        pass
    (keys.authorized / "client.key").unlink()
    with pytest.raises(Unauthorized, match="copy the public keys"):
        claim(Endpoint.parse("tcp://*:7070"), keys)


def test_on_loopback_tcp_a_yard_needs_keys_or_the_word_that_it_is_open_to_this_machine(tmp_path: Path) -> None:
    loopback = Endpoint.parse("tcp://127.0.0.1:7070")
    with pytest.raises(Unauthorized, match=r"every user of this machine .* --open-to-this-machine"):
        claim(loopback)
    with claim(loopback, None, True), claim(loopback, KeyFolder.create(tmp_path / "keys")):
        pass
    with pytest.raises(Unauthorized, match="without CURVE keys"):
        claim(Endpoint.parse("tcp://*:7070"), None, True)


# -- the yard folder -------------------------------------------------------------------------------


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    if sys.platform == "win32":
        pytest.skip("ipc needs a POSIX system")
    return Endpoint.parse(f"ipc://{tmp_path}/yard")


def folder_of(endpoint: Endpoint) -> Path:
    assert endpoint.folder is not None
    return endpoint.folder


def leave_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def test_a_claim_makes_a_private_folder_and_names_its_holder(endpoint: Endpoint) -> None:
    with claim(endpoint):
        assert folder_of(endpoint).stat().st_mode & 0o777 == 0o700
        assert int((folder_of(endpoint) / "lock").read_text()) == os.getpid()


def test_a_second_claim_is_refused_with_the_holders_pid(endpoint: Endpoint) -> None:
    held = claim(endpoint)
    with pytest.raises(EndpointInUse, match=f"process {os.getpid()}"):
        claim(endpoint)
    held.release()
    held.release()
    claim(endpoint).release()


def test_another_process_is_refused_while_the_yard_is_held(endpoint: Endpoint) -> None:
    code = """
import sys
import tempfile
from batchyard.transport.endpoints import Endpoint, claim
from batchyard.transport.errors import EndpointInUse
try:
    claim(Endpoint.parse(sys.argv[1]))
except EndpointInUse as error:
    print(error)
"""
    with claim(endpoint):
        answer = subprocess.run(
            [sys.executable, "-c", code, endpoint.url], capture_output=True, text=True, timeout=30, check=True
        )
    assert f"process {os.getpid()}" in answer.stdout


def test_a_killed_holder_leaves_a_yard_that_can_be_claimed(endpoint: Endpoint) -> None:
    code = """
import sys
import tempfile
from batchyard.transport.endpoints import Endpoint, claim
held = claim(Endpoint.parse(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
    argv = [sys.executable, "-c", code, endpoint.url]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    with claim(endpoint):
        assert int((folder_of(endpoint) / "lock").read_text()) == os.getpid()


def test_stale_sockets_are_removed_by_a_claim_and_by_its_release(endpoint: Endpoint) -> None:
    claim(endpoint).release()
    folder = folder_of(endpoint)
    leave_socket(folder / "clients")
    with claim(endpoint):
        assert not (folder / "clients").exists()
        leave_socket(folder / "workers")
    assert sorted(path.name for path in folder.iterdir()) == ["lock"]


def test_what_is_no_socket_is_never_removed(endpoint: Endpoint) -> None:
    claim(endpoint).release()
    precious = folder_of(endpoint) / "clients"
    precious.write_text("mine")
    for _ in range(2):  # the refused claim let the lock go
        with pytest.raises(InvalidRequest, match="is in the way"):
            claim(endpoint)
    assert precious.read_text() == "mine"


def test_a_folder_open_to_others_is_refused_with_the_command_to_run(endpoint: Endpoint) -> None:
    folder_of(endpoint).mkdir()
    folder_of(endpoint).chmod(0o750)
    with pytest.raises(Unauthorized, match="run `chmod 700 "):
        claim(endpoint)
    folder_of(endpoint).chmod(0o700)
    claim(endpoint).release()


def test_a_link_in_the_folders_place_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder_of(endpoint).symlink_to(elsewhere)
    with pytest.raises(Unauthorized, match="is not a folder"):
        claim(endpoint)


def test_another_users_folder_is_refused(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(endpoint).mkdir(mode=0o700)
    owner = folder_of(endpoint).stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(Unauthorized, match=f"belongs to user {owner}"):
        claim(endpoint)


@posix_only
def test_a_yards_own_folder_has_a_short_name_wherever_temporary_files_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    for place in (long, tmp_path / "missing"):
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        folder = Path(private_folder())
        Endpoint.parse(f"ipc://{folder}")
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.rmdir()
    assert list(long.iterdir()) == []
    monkeypatch.setattr("batchyard.transport.endpoints.LAST_RESORT", str(tmp_path / "missing"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(InvalidRequest, match="give the yard a url="):
        private_folder()


@posix_only
def test_the_default_place_is_one_that_sockets_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    Endpoint.parse(default_url({"XDG_RUNTIME_DIR": str(long)}))
    assert default_url({"XDG_RUNTIME_DIR": str(tmp_path / "missing")}) == f"ipc:///tmp/batchyard-{os.getuid()}"


@pytest.mark.skipif(sys.platform == "win32", reason="no ipc there")
def test_a_default_folder_that_others_may_enter_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "_temporary", lambda: str(tmp_path))
    monkeypatch.setattr(endpoints, "_is_short", lambda folder: True)
    folder = tmp_path / f"batchyard-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Unauthorized, match="open to other users"):
        default_url({})
    folder.chmod(0o700)
    assert default_url({}) == f"ipc://{folder}"
