"""CURVE keys, with real sockets: who gets through, and who does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.auth
from batchyard.transport.errors import Unauthorized
from batchyard.transport.keys import ZAP_DOMAIN, KeyFolder, Zap
from zmq.utils.monitor import recv_monitor_message

PATIENCE_MS = 10_000
HANDSHAKE_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    return KeyFolder.create(tmp_path / "keys")


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as made:
        made.linger = 0
        yield made
        made.destroy(linger=0)


def stranger_of(keys: KeyFolder, folder: Path) -> KeyFolder:
    """Valid keys of its own and the yard's public key, but not on the list."""
    stranger = KeyFolder.create(folder)
    (folder / "server.key").write_bytes((keys.path / "server.key").read_bytes())
    return stranger


def handshake(context: zmq.Context[Any], keys: KeyFolder, dress: Callable[[zmq.Socket[Any]], None]) -> int:
    """How one client's handshake with a real server ends, as the server's monitor tells it."""
    with context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
        keys.apply_server(server)
        monitor = server.get_monitor_socket(HANDSHAKE_EVENTS)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        dress(client)
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send(b"hello")
        assert monitor.poll(PATIENCE_MS), "the handshake never ended"
        event = int(recv_monitor_message(monitor)["event"])
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            assert server.poll(PATIENCE_MS)
            assert server.recv_multipart()[1] == b"hello"
        else:
            assert not server.poll(0)
        server.disable_monitor()
        monitor.close()
        return event


def test_an_authorized_key_gets_through(context: zmq.Context[Any], keys: KeyFolder) -> None:
    zap = Zap(context, keys)
    try:
        assert handshake(context, keys, keys.apply_client) == zmq.EVENT_HANDSHAKE_SUCCEEDED
    finally:
        zap.stop()


def test_an_unknown_key_does_not_get_through(
    context: zmq.Context[Any], keys: KeyFolder, tmp_path: Path
) -> None:
    stranger = stranger_of(keys, tmp_path / "stranger")
    zap = Zap(context, keys)
    try:
        assert handshake(context, keys, stranger.apply_client) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    finally:
        zap.stop()


def test_no_key_does_not_get_through(context: zmq.Context[Any], keys: KeyFolder) -> None:
    zap = Zap(context, keys)
    try:
        assert handshake(context, keys, lambda client: None) == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    finally:
        zap.stop()


def test_a_wrong_server_key_does_not_get_through(
    context: zmq.Context[Any], keys: KeyFolder, tmp_path: Path
) -> None:
    fooled = KeyFolder.create(tmp_path / "another yard")
    (keys.authorized / "fooled.key").write_bytes((fooled.path / "client.key").read_bytes())
    zap = Zap(context, keys)
    try:
        assert handshake(context, keys, fooled.apply_client) != zmq.EVENT_HANDSHAKE_SUCCEEDED
    finally:
        zap.stop()


def test_without_a_handler_nobody_gets_through(context: zmq.Context[Any], keys: KeyFolder) -> None:
    assert handshake(context, keys, keys.apply_client) != zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_a_key_laid_into_the_folder_is_authorized_at_the_next_start(
    context: zmq.Context[Any], keys: KeyFolder, tmp_path: Path
) -> None:
    colleague = stranger_of(keys, tmp_path / "colleague")
    (keys.authorized / "colleague.key").write_bytes((colleague.path / "client.key").read_bytes())
    zap = Zap(context, keys)
    try:
        assert handshake(context, keys, colleague.apply_client) == zmq.EVENT_HANDSHAKE_SUCCEEDED
    finally:
        zap.stop()


def test_every_server_socket_names_the_domain_and_enforces_it(
    context: zmq.Context[Any], keys: KeyFolder
) -> None:
    with context.socket(zmq.ROUTER) as server:
        keys.apply_server(server)
        assert server.getsockopt(zmq.ZAP_DOMAIN).rstrip(b"\0") == ZAP_DOMAIN
        assert server.getsockopt(zmq.ZAP_ENFORCE_DOMAIN) == 1
        assert server.getsockopt(zmq.CURVE_SERVER) == 1


def test_an_empty_list_refuses_to_start(context: zmq.Context[Any], keys: KeyFolder) -> None:
    (keys.authorized / "client.key").unlink()
    with pytest.raises(Unauthorized, match="holds no"):
        Zap(context, keys)
    keys.authorized.rmdir()
    with pytest.raises(Unauthorized, match="cannot be read"):
        Zap(context, keys)


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_secrets_are_readable_by_their_owner_alone_and_refused_otherwise(keys: KeyFolder) -> None:
    assert keys.path.stat().st_mode & 0o777 == 0o700
    for name in ("server.key_secret", "client.key_secret"):
        assert (keys.path / name).stat().st_mode & 0o777 == 0o600
        os.chmod(keys.path / name, 0o640)
    with pytest.raises(Unauthorized, match="run `chmod 600 "):
        keys.server_socket_options()
    with pytest.raises(Unauthorized, match="run `chmod 600 "):
        keys.client_socket_options()


def test_secrets_never_lie_in_the_list_of_authorized_keys(keys: KeyFolder) -> None:
    assert [path.name for path in keys.authorized.iterdir()] == ["client.key"]
    public, secret = zmq.auth.load_certificate(keys.authorized / "client.key")
    assert keys.authorized_keys() == {public}
    assert secret is None


def test_existing_keys_are_never_overwritten(keys: KeyFolder) -> None:
    before = (keys.path / "server.key_secret").read_bytes()
    with pytest.raises(Unauthorized, match="holds keys already"):
        KeyFolder.create(keys.path)
    assert (keys.path / "server.key_secret").read_bytes() == before


def test_a_missing_or_broken_key_file_says_which(keys: KeyFolder, tmp_path: Path) -> None:
    with pytest.raises(Unauthorized, match=r"server\.key_secret"):
        KeyFolder(tmp_path / "nothing").server_socket_options()
    secret = keys.path / "client.key_secret"
    secret.write_bytes((keys.path / "client.key").read_bytes())
    with pytest.raises(Unauthorized, match="holds no secret key"):
        keys.client_socket_options()
    secret.write_bytes(b"garbage")
    with pytest.raises(Unauthorized, match="no usable key"):
        keys.client_socket_options()
