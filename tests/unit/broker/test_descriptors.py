"""The limit on descriptors."""

from __future__ import annotations

import subprocess
import sys

import pytest

RAISED = """
import resource
from batchyard.broker.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 800))
assert raise_limit() == 700, "an eighth is kept free"
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (800, 800)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_the_limit_is_raised_to_the_most_and_an_eighth_of_it_is_kept_free() -> None:
    subprocess.run([sys.executable, "-c", RAISED], check=True, timeout=60)
