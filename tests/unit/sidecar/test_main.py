"""The page's server."""

from __future__ import annotations

import socket

import pytest
from batchyard.sidecar import __main__ as sidecar
from prometheus_client import CollectorRegistry, start_http_server


def test_a_connection_that_says_nothing_is_closed_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sidecar, "REQUEST_WITHIN_S", 0.01)
    server, thread = start_http_server(0, "127.0.0.1", CollectorRegistry())
    try:
        sidecar.close_silent(server)
        for sent in (b"", b"GET /metrics HTTP/1.1\r\n"):
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as connection:
                connection.sendall(sent)
                assert connection.recv(100) == b""
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert capfd.readouterr().err == ""
