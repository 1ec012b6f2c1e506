"""The child's watch over a run, in a real process: it ends one that hangs, and no other."""

from __future__ import annotations

import subprocess
import sys

import pytest
from batchyard.gpuworker.watchdog import EXIT_CODE

CODE = """
import sys, threading
from batchyard.gpuworker import watchdog
watchdog.LOOK_S, watchdog.GRACE_NS = 0.01, 0
watch = watchdog.Watchdog()
watch.start(int(sys.argv[1]))
if sys.argv[2] == "ends":
    watch.stop()
threading.Event().wait(0.5)
"""


@pytest.mark.parametrize(
    ("lease_ns", "run", "status"),
    [(50_000_000, "hangs", EXIT_CODE), (50_000_000, "ends", 0), (0, "hangs", 0)],
)
def test_a_process_ends_when_its_run_is_not_done_after_its_lease(lease_ns: int, run: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, str(lease_ns), run], timeout=20, check=False)
    assert done.returncode == status
