"""`python -m batchyard.tests.campaigns.reliability.hour_life KIND URL GATEWAY SEED SECONDS`: a client's life.

One process, one kind of client, every verb in a drawn order, every answer checked. At its end it closes what it
has, looks at what is left, and prints one line of JSON. Lateness is judged beside a control in the same process: a plain thread
that sleeps for 5 ms again and again, and knows when it was woken late. It also reads how long threads of this
process were ready to run and had no core (the kernel's schedstat).
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
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
from batchyard import AsyncClient, BatchyardError, Client
from batchyard.tests.striking import same

MODEL, STREAMED = "step", "many"  # y = x + state, stateN = -x; STREAMED_ANSWERS answers, each one more
STREAMED_ANSWERS = 4
KINDS = ("threads", "loop", "signals", "signals in a loop", "forks", "pressure", "remote", "remote loop")
TIMEOUTS_S = (0.05, 0.3, 2.0, 10.0)
ROWS = (1, 3, 16, 256)
PRESSURE_BYTES = 1 << 20
THREADS = 3
TASKS = 6
SOON_S = 0.004  # within which a call is cut off by a signal
LATE_NS = 50_000_000  # promised
STRUCK_NS = 150_000_000  # more, where a signal's exception may have cost an event loop's timer
CLOSE_NS = 1_000_000_000  # how long `close` may take
CONTROL_S = 0.005
CONTROL_SHARE = 2  # an answer needs two threads to be woken; the control is one
REST_S = 5.0  # for what comes back by itself
TYPED = ("DeadlineExceeded", "Overloaded", "BrokerLost", "WorkerLost", "ArenaExhausted")
IDLE = "batchyard-idle"  # ends by itself, within a minute
OURS = frozenset(("client", "transport"))  # folders
MORE_DESCRIPTORS = 3  # Python's own: epoll, a socket pair of the first event loop

Verb = Callable[[Any, "Life"], Any]


class CutOff(Exception):
    """Raised by a signal's handler, at any instruction."""


class Control:
    """Something that sleeps, and when it was woken late: a thread, or a task of an event loop."""

    def __init__(self) -> None:
        self.stalls: deque[tuple[int, int]] = deque(maxlen=20_000)
        self.queued: deque[tuple[int, int]] = deque(maxlen=20_000)  # when, and how long they had no core so far
        self.worst_ns = self._due_ns = self._woke_ns = 0

    def run(self) -> None:
        while True:
            self._sleeps()
            time.sleep(CONTROL_S)
            self.queued.append((self._woken(), _queued_ns()))

    async def beat(self, life: Life) -> None:
        while True:
            self._sleeps()
            await asyncio.sleep(CONTROL_S)
            since_ns, now_ns = self._due_ns, self._woken()
            life.judge("the event loop stood still", since_ns, now_ns, life.control)

    def _sleeps(self) -> None:
        # From when it last woke: a process is also stopped while its control does not sleep.
        self._due_ns = (self._woke_ns or time.monotonic_ns()) + int(CONTROL_S * 1e9)

    def _woken(self) -> int:
        now_ns = self._woke_ns = time.monotonic_ns()
        self.worst_ns = max(self.worst_ns, now_ns - self._due_ns)
        if now_ns - self._due_ns > 1_000_000:
            self.stalls.append((self._due_ns, now_ns))
        return now_ns

    def stalled_ns(self, since_ns: int, until_ns: int) -> int:
        """For how much of this time it was due and had not been woken."""
        now = (self._due_ns, until_ns)
        return sum(max(0, min(to, until_ns) - max(at, since_ns)) for at, to in [*list(self.stalls), now])

    def queued_ns(self, since_ns: int) -> int:
        """For how long threads of this process had no core since then, all of them together."""
        before_ns = next((queued_ns for at_ns, queued_ns in reversed(self.queued.copy()) if at_ns < since_ns), 0)
        return max(0, _queued_ns() - before_ns)  # threads end, and take their figures along


def _queued_ns() -> int:
    total_ns = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/schedstat") as file:
                total_ns += int(file.read().split()[1])
        except OSError:
            pass  # it has ended
    return total_ns


class Life:
    """What became of every call."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.texts: list[str] = []
        self.late_ns = self.beyond_ns = self.grace_ns = 0
        self.control = Control()
        self.beat: Control | None = None  # of the event loop, if there is one
        threading.Thread(target=self.control.run, daemon=True).start()
        self.callbacks: list[list[int]] = []  # how often each future's was called

    def draw(self) -> tuple[dict[str, Any], float]:
        """Inputs that no other call has, and a timeout."""
        number = random.random()
        rows = random.choice(ROWS)
        timeout_s = random.choice(TIMEOUTS_S)
        return {"x": np.full((rows, 64), number, np.float32), "state": np.full((rows, 64), 1, np.float32)}, timeout_s

    def fault(self, kind: str, text: str) -> None:
        self.faults[kind] += 1
        if len(self.texts) < 5:
            self.texts.append(f"{kind}: {text}"[:1500])

    def check(self, name: str, inputs: dict[str, Any], answer: Any) -> None:
        x = inputs["x"]
        if same(answer["y"], x + inputs["state"]) and same(answer["stateN"], -x):
            self.outcomes["right"] += 1
        else:
            self.fault("wrong", f"{name}: {answer['y'][:1, :3]} for {x[:1, :3]}")

    def in_a_callback(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, CutOff) or type(error).__name__ in TYPED:  # of a task that nobody could await
            self.outcomes["cut off in a callback"] += 1
        elif error is not None:
            self.fault("unexpected", "in a callback: " + "".join(traceback.format_exception(error))[-1200:])

    def judge(self, name: str, due_ns: int, now_ns: int, control: Control) -> None:
        """Was it in time, where the control would have been?"""
        late_ns = now_ns - due_ns
        if late_ns <= 0:
            return
        stalled_ns = control.stalled_ns(due_ns - LATE_NS, now_ns)
        beyond_ns = late_ns - CONTROL_SHARE * stalled_ns - self.grace_ns
        queued_ns = 0
        if beyond_ns > LATE_NS // 2:
            queued_ns = self.control.queued_ns(due_ns - LATE_NS)
            beyond_ns -= queued_ns
        self.late_ns = max(self.late_ns, late_ns)
        self.beyond_ns = max(self.beyond_ns, beyond_ns)
        if beyond_ns > LATE_NS:
            explained = f"the control {stalled_ns / 1e6:.0f} ms, without a core {queued_ns / 1e6:.0f} ms"
            self.fault("late", f"{name}: {late_ns / 1e6:.0f} ms; {explained}")

    def ended(self, name: str, due_ns: int, error: BaseException | None) -> None:
        """A call is over: was it in time, and is its error one that it may have?"""
        self.judge(f"{name} ({error!r})", due_ns, time.monotonic_ns(), self.beat or self.control)
        if error is None:
            return
        kind = type(error).__name__
        self.outcomes[kind] += 1
        if kind in TYPED or isinstance(error, CutOff | CancelledError | asyncio.CancelledError):
            return
        if kind == "Cancelled" and "cancel" in name:
            return
        self.fault("unexpected", f"{name}: " + "".join(traceback.format_exception(error))[-1200:])


def _infer(client: Any, life: Life) -> None:
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    _guarded(life, "infer", due_ns, lambda: life.check("infer", inputs, client.infer(MODEL, inputs, timeout=timeout_s)))


def _guarded(life: Life, name: str, due_ns: int, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:
        life.ended(name, due_ns, error)
        if isinstance(error, CutOff):
            raise
    else:
        life.ended(name, due_ns, None)


def _submit(client: Any, life: Life) -> None:
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    calls: list[int] = []

    def call() -> None:
        future = client.submit(MODEL, inputs, timeout=timeout_s)
        future.add_done_callback(lambda _: calls.append(1))
        if random.random() < 0.2:
            future.cancel()  # cut off in here, Python's own futures forget their callbacks
        else:
            life.callbacks.append(calls)
        life.check("submit", inputs, future.result())

    _guarded(life, "submit or cancel", due_ns, call)


def _map(client: Any, life: Life) -> None:
    several = [life.draw()[0] for _ in range(5)]
    timeout_s = random.choice(TIMEOUTS_S)
    due_ns = time.monotonic_ns() + int(5 * timeout_s * 1e9)

    def call() -> None:
        answers = list(client.map(MODEL, several, timeout=timeout_s, window=random.choice((1, 2, 8))))
        if len(answers) != len(several):
            life.fault("lost", f"map: {len(answers)} answers of {len(several)}")
        for inputs, answer in zip(several, answers, strict=False):
            life.check("map", inputs, answer)

    _guarded(life, "map", due_ns, call)


def _stream(client: Any, life: Life) -> None:
    number, timeout_s = float(random.randrange(1000)), random.choice(TIMEOUTS_S[1:])
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)

    def call() -> None:
        answers = []
        for answer in client.stream(STREAMED, np.full((1, 1), number, np.float32), timeout=timeout_s):
            answers.append(float(answer[0]))
            if answers != [number + n for n in range(len(answers))]:
                life.fault("wrong", f"stream: {answers} from {number}")
        life.outcomes["right"] += 1
        if len(answers) != STREAMED_ANSWERS:
            life.fault("lost", f"stream: {answers}")

    _guarded(life, "stream", due_ns, call)


def _empty(client: Any, life: Life) -> None:
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)

    def call() -> None:
        placed = client.empty(inputs["x"].shape)
        placed[:] = inputs["x"]
        life.check("empty", inputs, client.infer(MODEL, {**inputs, "x": placed}, timeout=timeout_s))

    _guarded(life, "empty", due_ns, call)


def _sequence(client: Any, life: Life) -> None:
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(3 * timeout_s * 1e9)

    def call() -> None:
        with client.sequence(MODEL) as steps:
            state = np.zeros_like(inputs["x"])
            for _ in range(3):
                y = steps.infer(inputs["x"], timeout=timeout_s)
                if not same(y, inputs["x"] + state):
                    life.fault("wrong", "sequence")
                state = -inputs["x"]
                life.outcomes["right"] += 1

    _guarded(life, "sequence", due_ns + int(10e9), call)  # its first question has its own patience


def _models(client: Any, life: Life) -> None:
    timeout_s = random.choice(TIMEOUTS_S)
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    _guarded(life, "models", due_ns, lambda: client.models(timeout=timeout_s))


VERBS: tuple[Verb, ...] = (_infer, _infer, _submit, _submit, _map, _stream, _empty, _sequence, _models)
REMOTE: tuple[Verb, ...] = (_infer, _submit, _map, _stream, _models)


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


PRESSED: tuple[Verb, ...] = (_infer, _submit, _map, _empty)
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
    _guarded(life, "close", began_ns + CLOSE_NS, close)


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
        _infer(client, life)
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
