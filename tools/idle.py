"""`python3 run measure idle`: what a yard's processes use while it has no requests (Linux)."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..bench import models
from ..bench.report import Finding, Line
from ..bench.target import Targets
from .processes import PROC, descendants, idle_share, is_supported, usage

IDLE_S = 10.0
SETTLE_S = 1.0  # after the last request, before idleness is measured


def idle_cost(targets: Targets, say: Callable[[str], None], idle_s: float = IDLE_S) -> Finding:
    """CPU time of the broker and the workers while nobody asks, as a share of one core."""
    finding = Finding("idle")
    if targets.url is not None or not is_supported():
        why = "the yard isn't ours" if targets.url is not None else "needs /proc"
        finding.lines.append(Line("idle: CPU", f"not measured: {why}"))
        return finding
    with targets.open("tiny") as target:
        target.client.infer("tiny", models.sample("tiny"))
        time.sleep(SETTLE_S)
        say(f"idle for {idle_s:.0f} s")
        shares = idle_share(target.processes(), idle_s)
    finding.figures["core_share"] = shares
    finding.figures["idle_s"] = idle_s
    shown = ", ".join(f"{name} {share * 100:.1f} %" for name, share in shares.items())
    finding.lines.append(
        Line(f"idle {idle_s:.0f} s: CPU of a core", shown or "not measured: no processes named")
    )
    return finding


def whole_cost(say: Callable[[str], None], idle_s: float) -> Finding:
    """Each process of `batchyard up --gateway --metrics`: CPU time, wake-ups, threads, and memory."""
    finding = Finding("up")
    root = Path(__file__).resolve().parents[1]
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    http, metrics = (str(port.getsockname()[1]) for port in ports)
    for port in ports:
        port.close()
    config = str(root / "examples" / "batchyard.toml")
    command = [sys.executable, "-m", "batchyard.cli.main", "up", "--config", config]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--url", f"ipc://{folder}/yard", "--gateway", http, "--metrics", metrics]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as up:
            assert up.stdout is not None
            try:
                next(line for line in up.stdout if "HTTP at" in line)
                time.sleep(5 * SETTLE_S)  # companions start beside the yard
                pids = [up.pid, *descendants(up.pid)]
                say(f"idle for {idle_s:.0f} s")
                before = {pid: usage(pid) for pid in pids}
                started_s = time.perf_counter()
                time.sleep(idle_s)
                elapsed_s = time.perf_counter() - started_s
                for pid in pids:
                    now, then = usage(pid), before[pid]
                    cpu_s = (now.cpu_ns - then.cpu_ns) / 1e9 * 60 / elapsed_s
                    wake_ups = (now.wake_ups - then.wake_ups) / elapsed_s
                    rates = {"cpu_s_per_min": cpu_s, "wake_ups_per_s": wake_ups}
                    finding.figures[_name(pid)] = asdict(now) | rates
                    text = f"CPU {cpu_s:.3f} s/min, {wake_ups:.1f} wake-ups/s, {now.threads} threads, "
                    finding.lines.append(Line(f"up: {_name(pid)}", text + f"{now.own_bytes / 2**20:.0f} MiB"))
            finally:
                up.terminate()
                up.stdout.read()
    return finding


def _name(pid: int) -> str:
    """The module that it runs."""
    words = (PROC / str(pid) / "cmdline").read_text().split("\0")
    return words[words.index("-m") + 1].removeprefix("batchyard.")
