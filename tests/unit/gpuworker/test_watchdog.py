"""The child's watch over a run, in a real process: it ends one that hangs, and no other."""

from __future__ import annotations

import subprocess
import sys

import pytest
from batchyard.gpuworker.watchdog import EXIT_CODE, HAS_PIDFD, ORPHAN_EXIT_CODE

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


ORPHAN = """
import subprocess, sys, threading
from batchyard.gpuworker import watchdog
watchdog.LOOK_S, watchdog.ORPHAN_NS = 0.01, int(sys.argv[1])
brokers = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
watch = watchdog.Watchdog()
for broker in brokers:
    watch.follow(broker.pid)
watch.start(0)
which = brokers[int(sys.argv[2])]
which.kill()
which.wait()
threading.Event().wait(0.5)
"""


@pytest.mark.skipif(not HAS_PIDFD, reason="the death of a process that is no child of ours can't be seen here")
@pytest.mark.parametrize(
    ("orphan_ns", "dies", "status"),
    [(50_000_000, 1, ORPHAN_EXIT_CODE), (50_000_000, 0, 0), (60_000_000_000, 1, 0)],
)
def test_a_process_ends_when_its_broker_is_dead_and_its_run_goes_on(
    orphan_ns: int, dies: int, status: int
) -> None:
    """Whatever the run was allowed; the former broker's death does not count, nor a run that has just begun."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(orphan_ns), str(dies)], timeout=20, check=False
    )
    assert done.returncode == status
