"""Programs that just end, end: whatever they use, have left open, and still wait for, and however they end.

Each is a process (`ending_program.py`): soon after the point from which it only ends it is gone, with its own exit code,
without a traceback that is not its own, and with nothing left of it. BATCHYARD_ENDINGS=all runs the whole
matrix; otherwise each kind falls off its end, and the hardest kind ends in three more ways.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from batchyard import serve
from batchyard.client import Yard

from .gateways import behind_a_gateway

ENDS_WITHIN_S = 15.0  # 2 are promised; what does not end waits for a time-out of 30, or for ever
HANGS_S = 60.0  # for a program as a whole: it begins on a machine that may be busy
AT_ONCE = 2
PROGRAM = Path(__file__).with_name("ending_program.py")
OWN = "BATCHYARD_TEST_PROGRAM"  # marks a program's processes
WHOLE = os.environ.get("BATCHYARD_ENDINGS") == "all"

CODES = {
    "off": 0,
    "sys.exit": 7,
    "exception": 1,
    "ctrl-c": -2,
    "_exit": 5,
    "thread": 0,
    "_exit in a thread": 5,
    "fork": 0,
    "multiprocessing fork": 0,
    "spawn": 0,
}
LAST_LINES = {"exception": "ValueError: the program's own", "ctrl-c": "KeyboardInterrupt"}
VERBS = ("infer", "submit", "stuck", "map", "asyncio", "loop", "jobs", "serve")
CASES = [(closed, state) for closed in ("open", "closed") for state in ("pending", "done")]
SLOW = """
import time
import batchyard

@batchyard.model(inputs="float32[batch, 4]", outputs="float32[batch, 4]")
def slow(x):
    time.sleep(0.05 * len(x))
    return x
"""


def ends_of(closed: str, state: str) -> list[str]:
    """The ways in which a program of this kind ends here."""
    if WHOLE:
        return list(CODES)
    return ["off", "ctrl-c", "thread", "fork"] if (closed, state) == ("open", "pending") else ["off"]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ending") / "slow_model.py"
    path.write_text(SLOW)
    return f"{path}:slow"


@pytest.fixture(scope="module")
def yard(neg_model: Path, slow: str) -> Iterator[Yard]:
    with serve({"neg": neg_model, "slow": slow}, threads=1, max_batch=2) as yard:  # warm-up runs every size
        yield yard


def marked(value: str) -> list[str]:
    """Living processes with a program's mark: the program itself, and what it has started."""
    mark = f"{OWN}={value}".encode()
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                if b"resource_tracker" not in command:  # Python's own; ends by itself
                    found.append(f"{name}: {command.replace(bytes(1), b' ').decode()}")
        except OSError:
            continue
    return found


def run(verb: str, closed: str, state: str, end: str, where: str) -> str:
    """Run a program; what is wrong with its end, or "". """
    own = secrets.token_hex(8)
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), verb, closed, state, end, where],
        env={**os.environ, OWN: own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        status = process.wait(HANGS_S)
        ended_s = time.monotonic()
    except subprocess.TimeoutExpired:
        process.kill()
        status, ended_s = None, time.monotonic()
    wrong = []
    if status is None or status != CODES[end]:
        wrong.append(f"status {status}, not {CODES[end]}")
    left = marked(own)
    while left and time.monotonic() < ended_s + ENDS_WITHIN_S:
        time.sleep(0.02)
        left = marked(own)
    if left:
        wrong.append(f"left behind: {left}")
        process.kill()
        return f"{end}: {'; '.join(wrong)}"  # who is left may hold the pipes
    out, err = process.communicate()
    said = [(what, float(at_s)) for what, at_s in (line.split() for line in out.splitlines())]
    said.append(("ended", ended_s))
    for (what, at_s), (_, then_s) in pairwise(said):
        if what == "ending" and then_s > at_s + ENDS_WITHIN_S:
            wrong.append(f"took {then_s - at_s:.1f} s to end")
    if tuple(what for what, _ in said[-2:]) != ("ending", "ended"):
        wrong.append("did not come to its end")
    # On a busy machine the worker of a program's own yard may be gone before its broker is.
    lines = [line for line in err.rstrip().splitlines() if line != "broker: worker 1 is gone"]
    if end in LAST_LINES:
        if not lines or lines[-1] != LAST_LINES[end] or err.count("Traceback") != 1:
            wrong.append(f"stderr: {err}")
    elif lines:
        wrong.append(f"stderr: {err}")
    return f"{end}: {'; '.join(wrong)}" if wrong else ""


LATE = """
import sys, threading
import numpy as np
from batchyard import Client, InvalidRequest

def late():
    threading.main_thread().join()
    try:
        client = Client(sys.argv[1])
        print(client.submit("neg", np.ones((1, 4), np.float32)).result().tolist())
    except InvalidRequest as error:
        print(error)

threading.Thread(target=late).start()
"""


def test_a_thread_that_submits_first_when_the_main_thread_has_ended_gets_an_answer_or_a_sentence(yard: Yard) -> None:
    command = [sys.executable, "-c", LATE, yard.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0
    assert not done.stderr
    assert "[[-1.0, -1.0, -1.0, -1.0]]" in done.stdout or "starts no thread after that" in done.stdout


@behind_a_gateway
@pytest.mark.parametrize("verb", VERBS[:-2] if WHOLE else ["submit", "stuck", "asyncio"])
def test_a_program_whose_client_is_a_gateways_just_ends_too(verb: str, address: str) -> None:
    cases = CASES if WHOLE else [case for case in CASES if "pending" in case]
    ways = [(closed, state, end) for closed, state in cases for end in ends_of(closed, state)]
    if address.startswith("grpc"):  # its library does not survive a fork during calls
        ways = [way for way in ways if way[2] not in ("fork", "multiprocessing fork")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda way: run(verb, *way, address), ways)
        wrong = [f"{closed}, {state}, {text}" for (closed, state, _), text in zip(ways, found, strict=True) if text]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("verb", VERBS)
def test_a_program_that_just_ends_ends(verb: str, yard: Yard, slow: str, tools: Any) -> None:
    where = slow if verb == "serve" else yard.url
    clients = yard.snapshot()["clients"]
    ways = [(closed, state, end) for closed, state in CASES for end in ends_of(closed, state)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda way: run(verb, *way, where), ways)
        wrong = [f"{closed}, {state}, {text}" for (closed, state, _), text in zip(ways, found, strict=True) if text]
    assert not wrong, "\n".join(wrong)
    tools.until(lambda: yard.snapshot()["clients"] <= clients, what="the broker lets go of the clients")
    tools.until(lambda: tools.mappings(yard.processes[0].pid) == 0, what="the broker lets go of their memory")
