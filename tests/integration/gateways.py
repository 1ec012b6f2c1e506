"""A gateway of a test's own: the real process, beside a yard, on ports of its own."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# The same program, moved by its address alone: for tests that use `address` (conftest.py), and have a `yard`.
# What needs shared memory is asked by ipc only.
everywhere = pytest.mark.parametrize("address", ["ipc", "http", "grpc"], indirect=True)
behind_a_gateway = pytest.mark.parametrize("address", ["http", "grpc"], indirect=True)
START_WITHIN_S = 60.0
END_WITHIN_S = 60.0


class Gateway:
    """Where it is, and a plain HTTP client for it: what a library would mend, these tests want to send."""

    def __init__(
        self, port: int, process: subprocess.Popen[bytes], token: str | None, ca: Path | None = None
    ) -> None:
        self._tls = None if ca is None else ssl.create_default_context(cafile=ca)
        self.port = port
        self.process = process
        self.http = f"127.0.0.1:{port}"
        self.grpc = f"127.0.0.1:{port + 1}"
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, body: JSON decoded where it is JSON, headers by lower-case names)."""
        if isinstance(body, dict | list):
            body = json.dumps(body)
            headers = {"Content-Type": "application/json", **(headers or {})}
        connection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            if self._tls is None
            else http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self._tls)
        )
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            raw = answer.read()
            given = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(raw) if "json" in given.get("content-type", "") else raw, given
        finally:
            connection.close()

    def gauge(self, name: str) -> float:
        """One of the gateway's own figures."""
        status, page, _ = self.ask("GET", "/metrics")
        assert status == 200
        for line in page.decode().splitlines():
            if line.startswith(f"batchyard_gateway_{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no figure {name}")


@contextmanager
def starting(
    url: str, port: int, *arguments: str, token: str | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[Gateway]:
    """Start it and wait until it answers; it must end in order, and gives no notice unless it is told to.
    `tls`: its certificate and key."""
    environment = dict(os.environ)
    if token is not None:
        environment["BATCHYARD_GATEWAY_TOKEN"] = token
    command = [sys.executable, "-m", "batchyard.gateway", "--url", url, "--port", str(port), "-q"]
    command += ["--notice", "0", *arguments]
    if tls is not None:
        command += ["--tls-cert", str(tls[0]), "--tls-key", str(tls[1])]
    process = subprocess.Popen(command, env=environment, cwd=Path(__file__).parent)
    try:
        started = Gateway(port, process, token, None if tls is None else tls[0])
        until_it_says_yes(started, "live")
        yield started
    finally:
        process.terminate()
        assert process.wait(END_WITHIN_S) == 0


@contextmanager
def gateway(url: str, port: int, *arguments: str, **how: Any) -> Iterator[Gateway]:
    """As `starting`, and wait until the yard is ready."""
    with starting(url, port, *arguments, **how) as started:
        until_it_says_yes(started, "ready")
        yield started


def until_it_says_yes(started: Gateway, question: str) -> None:
    """It is "live", or "ready"; while it does not listen yet, it is asked again."""
    give_up_s = time.monotonic() + START_WITHIN_S
    while True:
        assert started.process.poll() is None, "the gateway ended at once"
        try:
            if started.ask("GET", f"/v2/health/{question}")[0] == 200:
                return
        except OSError:
            pass
        assert time.monotonic() < give_up_s, f"the gateway is not {question}"
        time.sleep(0.05)
