"""Strangers against a live broker, beside a client in order: it alone is served, and notices nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from batchyard import serve
from batchyard.client import Yard

WIDTH = 4
RSS_MAX_BYTES = 512 << 20  # what the broker may take while it is attacked
REST_WITHIN_S = 20.0
ANSWER_WITHIN_S = 20.0
LOOK_EVERY = 50  # requests between two looks at the broker's memory
SEEN = ("malformed", "version", "unknown_connection", "worker_malformed", "worker_unknown", "admin_refused")


@dataclass
class Met:
    """What the strangers did, what the client saw, and what the broker counted."""

    assaults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    slowest_s: float = 0.0
    rss_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        sent = sum(self.assaults.values())
        return [
            f"{sent:,} inputs: " + ", ".join(f"{n:,} {what}" for what, n in sorted(self.assaults.items())),
            "refused: " + ", ".join(f"{n:,} {why}" for why, n in self.refused.most_common()),
            f"beside them {self.requests:,} requests, all answered rightly, the slowest in "
            f"{self.slowest_s * 1e3:.0f} ms; the broker took {self.rss_bytes / 1e6:.0f} MB at most",
        ]


def save_neg(path: Path) -> Path:
    """`y = -x` of float32[n, 4]."""
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "neg", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, str(path))
    return path


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def campaign(seconds: float, seed: int) -> Met:
    """Attack a yard of our own for so long. What breaks a promise is in `broken`."""
    if sys.platform != "linux":
        return Met(broken=["the live campaign reads /proc: Linux only"])
    with tempfile.TemporaryDirectory(prefix="batchyard-live-") as folder:
        model = save_neg(Path(folder) / "neg.onnx")
        with serve({"neg": model}, workers=1, threads=1) as yard:
            try:
                return _attacked(yard, seconds, seed)
            except Exception as error:
                return Met(broken=[f"seed {seed}: {type(error).__name__}: {error}"])


def _attacked(yard: Yard, seconds: float, seed: int) -> Met:
    met = Met()
    rng = np.random.default_rng(seed)
    command = [sys.executable, "-m", "batchyard.tests.fuzz.attack", yard.url, str(seed), str(seconds)]
    with yard.client() as client, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attack:
        client.infer("neg", np.ones((1, WIDTH), np.float32))
        with yard.client(segment="frames") as other:  # the broker's own arena is made for the first of them
            other.infer("neg", np.ones((1, WIDTH), np.float32))
        before = _rest(yard) | {"clients": 1}  # the other may still be leaving
        pids = [process.pid for process in yard.processes]
        while attack.poll() is None:
            x = rng.standard_normal((1, WIDTH)).astype(np.float32)
            began_s = time.monotonic()
            y = client.infer("neg", x, timeout=ANSWER_WITHIN_S)
            met.slowest_s = max(met.slowest_s, time.monotonic() - began_s)
            if not (y == -x).all():
                met.broken.append(f"seed {seed}: a wrong answer: {y} to {x}")
            met.requests += 1
            if met.requests % LOOK_EVERY == 0:
                met.rss_bytes = max(met.rss_bytes, rss_bytes(pids[0]))
        assert attack.stdout is not None
        said = attack.stdout.read()
        met.assaults.update(json.loads(said) if said else {})
        met.refused.update(yard.snapshot(ANSWER_WITHIN_S)["refused"])

        def hold(what: str, holds: bool) -> None:
            if not holds:
                met.broken.append(f"seed {seed}: {what}")

        hold(f"the strangers ended with status {attack.returncode}", attack.returncode == 0)
        hold(f"the broker took {met.rss_bytes:,} bytes", met.rss_bytes < RSS_MAX_BYTES)
        hold("a process of the yard was started again", [p.pid for p in yard.processes] == pids)
        at_rest = _until(lambda: _rest(yard) == before, REST_WITHIN_S)
        hold(f"not at rest afterwards: {_rest(yard)}, before {before}", at_rest)
    return met


def _rest(yard: Yard) -> dict[str, Any]:
    counters = yard.snapshot(ANSWER_WITHIN_S)
    return {key: counters[key] for key in ("clients", "workers", "arenas", "batches_lent", "rows_under_way")}


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.02)
    return True
