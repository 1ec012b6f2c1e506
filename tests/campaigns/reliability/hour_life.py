"""`python -m batchyard.tests.campaigns.reliability.hour_life KIND URL GATEWAY SEED SECONDS`: a client's life.

One process, one kind of client, every verb (hour_verbs.py) in a drawn order, every answer checked (hour_judge.py).
At its end it closes what it has, looks at what is left, and prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from batchyard import AsyncClient, BatchyardError, Client

from .hour_judge import Control, CutOff, Life
from .hour_verbs import MODEL, PRESSED, REMOTE, STREAMED, STREAMED_ANSWERS, VERBS, Verb, guarded, infer

KINDS = ("threads", "loop", "signals", "signals in a loop", "forks", "pressure", "remote", "remote loop")
PRESSURE_BYTES = 1 << 20
THREADS = 3
TASKS = 6
SOON_S = 0.004  # within which a call is cut off by a signal
STRUCK_NS = 150_000_000  # more lateness, where a signal's exception may have cost an event loop's timer
CLOSE_NS = 1_000_000_000  # how long `close` may take
REST_S = 5.0  # for what comes back by itself
IDLE = "batchyard-idle"  # ends by itself, within a minute
OURS = frozenset(("client", "transport"))  # folders
MORE_DESCRIPTORS = 3  # Python's own: epoll, a socket pair of the first event loop


async def _one(client: Any, life: Life, remote: bool) -> None:
    """A call on an event loop."""
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    verb = random.choice(("infer", "infer", "submit", "cancel", "map", "stream", "models"))
    try:
        if verb == "infer":
            life.check(verb, inputs, await client.infer(MODEL, inputs, timeout=timeout_s))
        elif verb == "models":
            await client.models(timeout=timeout_s)
        elif verb == "stream":
            answers = [float(a[0]) async for a in client.stream(STREAMED, np.ones((1, 1), np.float32), timeout=timeout_s)]
            life.outcomes["right"] += 1
            if answers != [1.0 + n for n in range(STREAMED_ANSWERS)]:
                life.fault("wrong", f"async stream: {answers}")
        elif verb == "map":
            due_ns += int(3 * timeout_s * 1e9)
            several = [inputs, inputs, inputs]
            async for answer in client.map(MODEL, several, timeout=timeout_s):
                life.check(verb, inputs, answer)
        else:
            task = client.submit(MODEL, inputs, timeout=timeout_s)
            if verb == "cancel":
                asyncio.get_running_loop().call_later(random.random() * 0.005, task.cancel)
            life.check(verb, inputs, await task)
    except (Exception, asyncio.CancelledError) as error:
        life.ended(f"async {verb}", due_ns, error)
        if isinstance(error, CutOff):
            raise
    else:
        life.ended(f"async {verb}", due_ns, None)


async def _tasks(client: Any, life: Life, until_s: float, remote: bool) -> None:
    async def calls() -> None:
        while time.monotonic() < until_s:
            try:
                await _one(client, life, remote)
            except CutOff:
                pass
            await asyncio.sleep(random.random() * 0.01)

    await asyncio.gather(*(calls() for _ in range(TASKS)))


def on_threads(client: Any, life: Life, until_s: float, verbs: tuple[Verb, ...] = VERBS, count: int = THREADS) -> None:
    kept: deque[Any] = deque(maxlen=8)

    def calls() -> None:
        while time.monotonic() < until_s:
            random.choice(verbs)(client, life)
            if verbs is PRESSED:
                try:
                    kept.append(client.empty((64, 64)))  # 16 KiB each: an eighth of the arena
                except BatchyardError as error:
                    life.outcomes[type(error).__name__] += 1

    threads = [threading.Thread(target=calls) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


_armed = False


def _cut_off(*_: Any) -> None:
    global _armed
    if _armed:
        _armed = False
        raise CutOff


def _cut_off_in_ours(_: int, frame: Any) -> None:
    """On an event loop: in code of ours, or while the loop sleeps. Between two instructions of asyncio's own it
    would lose a task's turn, and that nobody could mend."""
    asleep = frame.f_code.co_name == "select"
    if "asyncio" in frame.f_code.co_filename or frame.f_code is _cut_off_in_ours.__code__:
        frame = None
    while frame is not None and not asleep and OURS.isdisjoint(frame.f_code.co_filename.split(os.sep)[-3:-1]):
        frame = frame.f_back
    signal.setitimer(signal.ITIMER_REAL, random.random() * SOON_S * (10 if frame else 0.1) + 1e-6)
    if _armed and frame is not None and (not asleep or random.random() < 0.1):
        raise CutOff


def on_signals(client: Any, life: Life, until_s: float) -> None:
    """Calls of the main thread are cut off at any instruction; those of another one must not notice."""
    global _armed
    signal.signal(signal.SIGALRM, _cut_off)
    beside = threading.Thread(target=on_threads, args=(client, life, until_s, VERBS, 1))
    beside.start()
    while time.monotonic() < until_s:
        try:
            try:
                _armed = True
                signal.setitimer(signal.ITIMER_REAL, random.random() * SOON_S + 1e-6)
                random.choice(VERBS)(client, life)
            finally:
                _armed = False
        except CutOff:
            life.outcomes["cut off"] += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    beside.join()


def on_forks(client: Any, life: Life, until_s: float) -> None:
    """Children of which each has its parent's arrays and client."""
    while time.monotonic() < until_s:
        inputs, _ = life.draw()
        try:
            kept = client.infer(MODEL, inputs, timeout=10)
        except BatchyardError as error:
            life.outcomes[type(error).__name__] += 1
            continue
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(50, exit=True)
            own = Life(0)
            own.check("inherited", inputs, kept)
            kept["y"] += 1
            for verb in VERBS:
                verb(client, own)
            sys.stderr.write("".join(text + "\n" for text in own.texts))
            sys.stderr.flush()
            os._exit(min(100, sum(own.faults.values())))
        for _ in range(5):
            random.choice(VERBS)(client, life)
        life.check("kept", inputs, kept)
        del kept
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        life.outcomes["forked"] += 1
        if status:
            life.fault("in a fork", f"{status}: see stderr")


def in_a_loop(make: Callable[[], Any], life: Life, until_s: float, *, remote: bool = False, cut: bool = False) -> None:
    """Tasks on an event loop; with `cut`, signals raise in whatever runs on it."""
    global _armed
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: life.in_a_callback(context))

    def run(work: Awaitable[Any]) -> Any:
        global _armed
        task = asyncio.ensure_future(work, loop=loop)
        while not task.done():
            try:
                _armed = cut
                loop.run_until_complete(asyncio.wait([task], timeout=0.5))
            except CutOff:
                life.outcomes["cut off"] += 1
            except RuntimeError as error:
                # A run that was cut off leaves its end to the next one.
                if "stopped before Future completed" not in str(error):
                    raise
            finally:
                _armed = False
        return task.result()

    async def made() -> Any:
        client = make()  # it may import
        life.beat = Control()
        return client, asyncio.ensure_future(life.beat.beat(life))

    client, beating = run(made())
    if cut:
        life.grace_ns = STRUCK_NS
        signal.signal(signal.SIGALRM, _cut_off_in_ours)
        signal.setitimer(signal.ITIMER_REAL, SOON_S)
    try:
        run(_tasks(client, life, until_s, remote))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        _closed(life, lambda: run(client.close()))
        beating.cancel()
        loop.close()


def _closed(life: Life, close: Callable[[], Any]) -> None:
    began_ns = time.monotonic_ns()
    guarded(life, "close", began_ns + CLOSE_NS, close)


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def main(kind: str, url: str, gateway: str, seed: str, seconds: str) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    random.seed(int(seed))
    life = Life(int(seed))
    with Client(url) as client:  # what the first client of a process loads stays
        infer(client, life)
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    until_s = time.monotonic() + float(seconds)
    address = gateway if "remote" in kind else url
    if kind in ("loop", "signals in a loop", "remote loop"):
        in_a_loop(lambda: AsyncClient(address), life, until_s, remote="remote" in kind, cut="signals" in kind)
    else:
        client = Client(address, arena_bytes=PRESSURE_BYTES) if kind == "pressure" else Client(address)
        if kind == "signals":
            on_signals(client, life, until_s)
        elif kind == "forks":
            on_forks(client, life, until_s)
        else:
            on_threads(client, life, until_s, {"pressure": PRESSED, "remote": REMOTE}.get(kind, VERBS))
        _closed(life, client.close)
        del client
    give_up_s = time.monotonic() + REST_S
    more = []
    while time.monotonic() < give_up_s:
        gc.collect()
        more = [
            ("descriptors left", len(os.listdir("/proc/self/fd")) - descriptors - MORE_DESCRIPTORS),
            ("threads left", sum(thread.name != IDLE for thread in threading.enumerate()) - threads),
            ("futures without an outcome", sum(not calls for calls in life.callbacks)),
        ]
        if all(count <= 0 for _, count in more):
            break
        time.sleep(0.02)
    for what, count in more:
        if count > 0:
            names = [thread.name for thread in threading.enumerate()]
            life.fault("left", f"{what}: {count}; {names}; {sorted(map(_target, os.listdir('/proc/self/fd')))}")
    if twice := sum(len(calls) > 1 for calls in life.callbacks):
        life.fault("doubled", f"{twice} done-callbacks")
    found = {"outcomes": life.outcomes, "faults": life.faults, "texts": life.texts, "late_ns": life.late_ns}
    print(json.dumps({**found, "beyond_ns": life.beyond_ns, "control_ns": life.control.worst_ns}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
