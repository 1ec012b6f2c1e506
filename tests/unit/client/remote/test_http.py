"""What carries requests to a gateway over HTTP, before any has been sent."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

pytest.importorskip("httpx", reason="pip install 'batchyard[fleet]'")

from batchyard.client.remote.http import HttpCarrier


@pytest.mark.parametrize(("scheme", "reads"), [("http", False), ("https", True)])
def test_certificates_are_read_for_tls_alone(scheme: str, reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time in which a client is made."""
    read: list[Any] = []
    default = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *a, **k: read.append(a) or default(*a, **k))
    HttpCarrier(f"{scheme}://127.0.0.1:1", None)
    assert bool(read) is reads
