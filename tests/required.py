"""Parts that some machine may lack: a test that needs one skips with a sentence, or fails where the
build machine says that nothing may be missing.

BATCHYARD_REQUIRE names the parts that must be there, separated by commas: `prometheus,webgpu`.
"""

from __future__ import annotations

import os
from typing import TypeVar

import pytest

Found = TypeVar("Found")


def part(name: str, found: Found | None, how_to_get: str) -> Found:
    """`found`, or a skip; a failure where BATCHYARD_REQUIRE names the part.

    found: what was looked for, None where it is not there. how_to_get: a command, or where to read on.
    """
    if found is not None:
        return found
    text = f"{name} is not here; to get it: {how_to_get}"
    if name in os.environ.get("BATCHYARD_REQUIRE", "").split(","):
        pytest.fail(text)
    pytest.skip(text)
