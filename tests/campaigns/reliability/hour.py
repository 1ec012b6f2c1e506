"""`hour`: everything at once, in rounds of a minute: each has a yard of its own, by ipc or tcp, with a gateway.

Clients of every kind (hour_life.py) live for some seconds each. Meanwhile workers, supervisors, brokers, gateways
and clients are killed, stopped and told to end. When the clients are gone the yard has to be as it was; when the
yard is closed, nothing may be left. A round is a function of its seed as far as processes allow.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchyard.tests.ports import free_port
from batchyard.tools.processes import descendants

from . import proc
from .campaign import Campaign, Say, demand
from .hour_judge import LATE_NS
from .hour_life import KINDS
from .hour_verbs import STREAMED, STREAMED_ANSWERS
from .patience import MODEL, written
from .verdict import Figure, outcomes

WORKERS = 2
LIVES = 4  # at once
LIFE_S = (4.0, 16.0)
GAP_S = (0.5, 3.0)  # between two faults
STOP_S = (0.05, 1.5)
READY_S = 60.0
HUNG_S = 60.0  # beyond a life's own time
FAULTS = ("wrong", "doubled", "lost", "late", "unexpected", "left", "in a fork", "hung", "crashed")
MANY = f"""
import batchyard

@batchyard.model(inputs={{"x": "float32[batch, 1]"}}, outputs={{"y": "float32[1]"}})
def {STREAMED}(batch):
    for n in range({STREAMED_ANSWERS}):
        yield {{"y": batch["x"][0] + n}}
"""


@dataclass(frozen=True, slots=True)
class Demand:
    minutes: float = demand(60.0, "of rounds")
    round_s: float = demand(60.0, "of each round")
    seed: int = demand(1, "of the first round; the next ones count up")


class Tally:
    """What all rounds found."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.did: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.late_ns = self.beyond_ns = self.control_ns = 0

    def fault(self, kind: str, text: str) -> None:
        self.faults[kind] += 1
        self.say(f"{kind}: {text}")


class Clients:
    """The lives: LIVES at once until `is_over`, each followed by a thread of ours."""

    def __init__(self, yard: Any, gateway: str, seed: int, tally: Tally, folder: Path, until_s: float) -> None:
        self._yard, self._gateway, self._tally, self._folder = yard, gateway, tally, folder
        self._until_s = until_s
        self._draws = random.Random(seed)
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self._killed: set[int] = set()
        self._threads = [threading.Thread(target=self._follow) for _ in range(LIVES)]
        for thread in self._threads:
            thread.start()

    def _follow(self) -> None:
        while (left_s := self._until_s - time.monotonic()) > 1:
            kind, number = self._draws.choice(KINDS), self._draws.randrange(1 << 30)
            seconds = min(self._draws.uniform(*LIFE_S), left_s)
            self._live(kind, number, seconds)

    def _live(self, kind: str, number: int, seconds: float) -> None:
        argv = [sys.executable, "-m", "batchyard.tests.campaigns.reliability.hour_life"]
        argv += [kind, self._yard.url, self._gateway, str(number), str(seconds)]
        errors = self._folder / f"{number}.txt"
        tally = self._tally
        with errors.open("wb") as stderr, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr) as life:
            self.running[life.pid] = life
            try:
                report, _ = life.communicate(timeout=seconds + HUNG_S)
            except subprocess.TimeoutExpired:
                life.send_signal(signal.SIGUSR1)  # it prints where its threads are
                time.sleep(1)
                life.kill()
                report, _ = life.communicate()
                tally.fault("hung", f"{kind}, seed {number}: {errors.read_text()[-3000:]}")
                return
            finally:
                del self.running[life.pid]
        if life.pid in self._killed:
            return
        tally.did[f"lives: {kind}"] += 1
        if life.returncode or not report:
            tally.fault("crashed", f"{kind}, seed {number}: {life.returncode}: {errors.read_text()[-3000:]}")
            return
        found = json.loads(report)
        tally.outcomes.update(found["outcomes"])
        tally.faults.update(found["faults"])
        for text in found["texts"]:
            tally.say(f"{kind}, seed {number}: {text} {errors.read_text()[-1000:]}")
        for name in ("late_ns", "beyond_ns", "control_ns"):
            setattr(tally, name, max(getattr(tally, name), found[name]))

    def any(self, draws: random.Random) -> int:
        return draws.choice(sorted(self.running) or [0])

    def kill(self, pid: int) -> None:
        self._killed.add(pid)
        proc.kill(pid)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def run(demand: Demand, say: Say) -> list[Figure]:
    tally = Tally(say)
    end_s = time.monotonic() + 60 * demand.minutes
    seed = demand.seed
    while time.monotonic() < end_s:
        try:
            _round(seed, min(demand.round_s, end_s - time.monotonic()), tally)
        except Exception as error:  # of a yard that does not come back, say
            tally.fault("crashed", f"round {seed}: {type(error).__name__}: {error}")
        seed += 1
        did = ", ".join(f"{count} {what}" for what, count in sorted(tally.did.items()) if "lives" not in what)
        faults = dict(tally.faults) or "nothing broken"
        say(f"{seed - demand.seed} rounds, {sum(tally.outcomes.values()):,} outcomes, {did}: {faults}")
    return [
        Figure("rounds", seed - demand.seed),
        *(Figure(what, count) for what, count in sorted(tally.did.items())),
        *outcomes("ended with", tally.outcomes),
        *(Figure(kind, tally.faults[kind], at_most=0) for kind in FAULTS),
        Figure("latest outcome beyond its timeout", tally.late_ns, "ns"),
        Figure("the control's own worst wake-up, in the same processes", tally.control_ns, "ns"),
        Figure("latest beyond what the control explains", tally.beyond_ns, "ns", at_most=LATE_NS),
    ]


def _round(seed: int, seconds: float, tally: Tally) -> None:
    from batchyard.client import Yard, python_models

    draws = random.Random(seed)
    names, wire = proc.segments_named(), draws.choice(("ipc", "tcp"))
    with tempfile.TemporaryDirectory(prefix="by-", dir="/tmp") as text:
        folder = Path(text)
        (folder / "many.py").write_text(MANY)
        port = free_port(3)
        companions = {"gateway": ["batchyard.gateway", "--port", str(port)]}
        arguments = ["--model", f"{MODEL}={written(folder)}", "--model", f"{STREAMED}={folder}/many.py:{STREAMED}"]
        url = None if wire == "ipc" else f"tcp://127.0.0.1:{free_port()}"
        with (folder / "log").open("wb") as log, Yard(
            arguments, WORKERS, 1, url, log=log, quiet=True, companions=companions,
            worker_environment=python_models.environment(), open_to_this_machine=True,
        ) as yard:  # fmt: skip
            yard.await_models([MODEL, STREAMED], READY_S)
            until_s = time.monotonic() + seconds
            clients = Clients(yard, f"http://127.0.0.1:{port}", seed, tally, folder, until_s)
            while time.monotonic() < until_s - GAP_S[1]:
                time.sleep(draws.uniform(*GAP_S))
                with suppress(ProcessLookupError, OSError):
                    _break(draws, yard, clients, tally)
            clients.join()
            yard.await_models([MODEL, STREAMED], READY_S)
            left: dict[str, int] = {}
            try:
                proc.until(lambda: not _left(yard, left), READY_S, "a yard at rest")
            except TimeoutError:
                tally.fault("left", f"round {seed}, {wire}: {left}: {(folder / 'log').read_text()[-2000:]}")
            private, pids = yard.url.removeprefix("ipc://"), descendants(os.getpid())
        gone_by_s = time.monotonic() + 5
        while (alive := [pid for pid in pids if _runs(pid)]) and time.monotonic() < gone_by_s:
            time.sleep(0.01)
        segments = [name for name in proc.segments_named() - names if not _is_mapped(name)]  # else another's
        if alive or (wire == "ipc" and Path(private).exists()) or segments:
            tally.fault("left", f"round {seed}, {wire}, after close: {alive}, {segments}")
    tally.did[f"rounds over {wire}"] += 1


def _is_mapped(name: str) -> bool:
    """Whether any process of this machine uses a segment: ours have ended."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if name in maps.read_text():
                return True
    return False


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    return False


def _left(yard: Any, left: dict[str, int]) -> dict[str, int]:
    """What the yard still holds of its clients, but for the gateway's own connection and arena."""
    left.clear()
    try:
        seen = yard.snapshot()
    except OSError:
        left["no answer"] = 1
        return left
    broker = yard.processes[0].pid
    allowed = {"clients": 1, "arenas": 1, "bytes_held": 0, "rows_held": 0}
    own = "tcp" in yard.url  # a memory of the broker's own, for tensors that come as frames
    left.update({what: seen[what] for what, most in allowed.items() if seen.get(what, 0) > most})
    if (held := proc.arena_descriptors(broker)) > 1 + own:
        left["arenas that the broker holds open"] = held
    workers = [pid for process in yard.processes[1 : 1 + WORKERS] for pid in descendants(process.pid)]
    mapped = sum(map(proc.arena_bytes_mapped, workers))
    if mapped > seen["arena_bytes"] * len(workers):
        left["bytes of arenas in workers"] = mapped
    return left


def _break(draws: random.Random, yard: Any, clients: Clients, tally: Tally) -> None:
    """One fault."""
    broker, *supervisors, gateway = [process.pid for process in yard.processes]
    children = [pid for supervisor in supervisors for pid in descendants(supervisor)]
    whom = draws.choice(("worker", "worker", "broker", "client", "client", "supervisor", "gateway"))
    pid = {
        "worker": draws.choice(children or [0]),
        "broker": broker,
        "client": clients.any(draws),
        "supervisor": draws.choice(supervisors),
        "gateway": gateway,
    }[whom]
    how = draws.choice(("killed", "stopped", "stopped", "told to end") if whom == "broker" else ("killed", "stopped"))
    if not pid:
        return
    if how == "stopped":
        proc.send(pid, signal.SIGSTOP)
        try:
            time.sleep(draws.uniform(*STOP_S))
        finally:
            proc.send(pid, signal.SIGCONT)
    elif how == "killed":
        clients.kill(pid) if whom == "client" else proc.kill(pid)
    else:
        proc.send(pid, signal.SIGTERM)
    tally.did[f"{whom} {how}"] += 1


CAMPAIGN = Campaign(
    "hour",
    "everything at once for an hour: kills, stops, forks, signals, restarts; every answer checked",
    Demand(),
    Demand(minutes=0.2, round_s=12.0),
    run,
)
