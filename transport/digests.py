"""The digest of a request's content, which says whether requests are identical.

Made by the broker when a request comes, and again by the worker over the bytes that it runs: a client
could change them in between, and a result is shared only where both agree. Never taken from a client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

CONTENT_BYTES_MAX = 1 << 20  # about a millisecond of one core; larger contents have no digest


def digest(parts: Iterable[Any]) -> bytes:
    """Of the inputs' bytes in the model's order; dtypes and shapes are compared beside it."""
    content = hashlib.blake2b(digest_size=16)
    for part in parts:
        content.update(part)
    return content.digest()
