"""A broker and workers of a test's own: started with other constants, other limits, on an endpoint of
their own, and without a yard that would start again what the test ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchyard import Client, Operator

END_WITHIN_S = 30
# The constants are the broker's own: less patience makes no other broker, only a quick test.
BROKER = """
import sys
from batchyard.broker import __main__, leases
leases.HUNG_MIN_NS = leases.LOOK_NS = int(sys.argv.pop(1))
sys.exit(__main__.main())
"""


@dataclass
class Alone:
    """What was started. `broker.pid` is the broker's own process; a worker's is its supervisor's."""

    url: str
    broker: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def client(self, **options: Any) -> Client:
        return Client(self.url, **options)

    def snapshot(self, timeout: float = 5.0) -> dict[str, Any]:
        return Operator(self.url).snapshot(timeout)

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.broker.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def alone(
    url: str,
    models: Mapping[str, Path | str],
    *,
    workers: int = 1,
    max_batch: int = 32,
    hung_min_ns: int = 5_000_000_000,
    run_seconds_max: float | None = None,
    in_broker: Callable[[], None] | None = None,
) -> Iterator[Alone]:
    """Start them and wait until every model is ready. `in_broker` runs in the broker's process before
    it is one, to set its limits."""
    named = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
    python = [sys.executable, "-c", BROKER, str(hung_min_ns), "--url", url, "--max-batch", str(max_batch)]
    python.append("--named-segments")
    if run_seconds_max is not None:
        python += ["--run-seconds-max", str(run_seconds_max)]
    started = Alone(url, subprocess.Popen([*python, "-q", *named], preexec_fn=in_broker))
    try:
        worker = [sys.executable, "-m", "batchyard.gpuworker", "--url", url, "--threads", "1", "-q"]
        started.workers = [subprocess.Popen(worker) for _ in range(workers)]
        with started.client(connect_timeout=30) as client:
            for name in models:
                client.wait_ready(name, 30)
        yield started
    finally:
        for process in (*started.workers, started.broker):
            process.terminate()
        for process in (*started.workers, started.broker):
            process.wait(END_WITHIN_S)
