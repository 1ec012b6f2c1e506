"""Media types that are read and answered with, and an answer as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

JSON = "application/json"
BINARY = "application/octet-stream"
NPY = "application/x-npy"


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, JSON)
