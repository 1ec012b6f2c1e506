"""A program whose signal handler raises, at any instruction of any verb: run by test_signals.py.

argv: the yard's url, the seed, the segment ("" for the default). Its main thread makes calls that are cut off;
another thread makes some that must not notice. What it prints is JSON.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from batchyard import Client
from batchyard.tests.striking import same

CALLS = 50  # of each verb
SOON_S = 0.0015  # within which a call is cut off
COMES_BACK_S = 30.0
MORE_MAX = 4  # descriptors: a connection or two more for the other thread
X = np.arange(64, dtype=np.float32).reshape(16, 4)
armed = False


class CutOff(Exception):
    pass


def cut_off(*_: Any) -> None:
    global armed
    if armed:
        armed = False
        raise CutOff


def empty(client: Client) -> Any:
    place = client.empty(X.shape)
    place[:] = X
    return client.infer("neg", place)


VERBS: dict[str, Callable[[Client], Any]] = {
    "infer": lambda client: client.infer("neg", X),
    "submit": lambda client: client.submit("neg", X).result(20),
    "map": lambda client: list(client.map("neg", [X] * 3))[1],
    "empty": empty,
    "models": lambda client: client.models() and -X,
}


def beside(client: Client, is_over: threading.Event, wrong: list[str]) -> None:
    """Calls of another thread, while those of the main thread are cut off."""
    while not is_over.is_set():
        try:
            if not same(client.infer("neg", X), -X):
                wrong.append("a wrong answer")
            if not same(client.submit("neg", X).result(20), -X):
                wrong.append("a wrong answer of submit")
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
        time.sleep(0.001)


def used_bytes(client: Client) -> int:
    session = client._sessions.current
    if session is None or session.memory is None:
        return 0
    session.recover_slots()
    return session.memory.used_bytes


def main(url: str, seed: str, segment: str) -> None:
    global armed
    draws = random.Random(int(seed))
    client = Client(url, segment=segment or None)
    for verb in VERBS.values():
        verb(client)
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    signal.signal(signal.SIGALRM, cut_off)
    is_over, wrong = threading.Event(), []
    thread = threading.Thread(target=beside, args=(client, is_over, wrong))
    thread.start()
    outcomes: Counter[str] = Counter()
    for name, verb in VERBS.items():
        for _ in range(CALLS):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, draws.random() * SOON_S + 1e-6)
                try:
                    answer = verb(client)
                finally:
                    armed = False
                outcomes["right" if same(answer, -X) else "wrong"] += 1
                del answer
            except CutOff:
                outcomes["cut off"] += 1
            except Exception as error:
                outcomes[f"{name}: {type(error).__name__}: {error}"] += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    is_over.set()
    thread.join()
    for verb in VERBS.values():
        outcomes["right" if same(verb(client), -X) else "wrong"] += 1
    give_up_s = time.monotonic() + COMES_BACK_S
    while time.monotonic() < give_up_s:
        gc.collect()
        more = len(os.listdir("/proc/self/fd")) - descriptors
        if not used_bytes(client) and more <= MORE_MAX:
            break
        time.sleep(0.02)
    began_s = time.monotonic()
    client.close()
    took_s = time.monotonic() - began_s
    found = {"outcomes": outcomes, "beside": wrong, "used": used_bytes(client), "descriptors": more, "close_s": took_s}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
