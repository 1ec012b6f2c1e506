"""One simulated run: a yard with its clients and workers, and the faults that befall it.

`run(seed)` is a function of the seed alone: one random.Random, one clock. For SPAN_NS of virtual
time there are requests and faults; then the yard must come to rest by itself, and nothing may be left.
"""

from __future__ import annotations

import logging
import random
import zlib
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchyard.broker.config import Limits, ModelConfig, YardConfig
from batchyard.broker.policy import DEFAULT
from batchyard.transport import messages as m

from .broker import SimBroker
from .client import SimClient
from .clock import MS, SECOND, Clock
from .faults import BLOWS, CALM_SHARE, CHANCES, DEVICE_CHANCE, DEVICES_SHARE, FAULT_SHARE, blow
from .memory import SimSegment
from .models import FINE, INPUTS, KILLER, MAX_BATCH, ODD, PADS, POISON
from .worker import SimWorker

SPAN_NS = 400 * MS
REST_NS_MAX = 400 * SECOND  # a worker of which nothing is known counts as hung after 120 s
STEPS_MAX = 60_000
UNREAD_MAX = 10_000  # messages to a peer that does not read
NUDGE_NS = 2 * SECOND
TRACE_TAIL = 40
SHARED_SHARE = 0.3  # of all models
BUCKETS_SHARE = 0.2
IDEMPOTENT_SHARE = 0.8
BOUNDED_SHARE = 0.15
MAP_SHARE = 0.1  # of all that is asked: several inputs, a window of them under way
CROWD_SHARE = 0.03  # of all runs: ten times the requests
WHERE = Path(__file__).resolve()  # a file that exists, for models to be


class Violation(AssertionError):
    """A promise was broken. The message has the seed, the way to replay it, and the last events."""


@dataclass(frozen=True)
class Result:
    """A run that kept every promise."""

    seed: int
    trace_hash: str
    faults: dict[str, int]
    outcomes: dict[str, int]
    steps: int


class World:
    """Everybody, by name; what is injected; and the books on who may touch which bytes."""

    def __init__(self, seed: int, order: str = DEFAULT) -> None:
        self.order = order  # the broker's policy
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.faults: dict[str, int] = {}
        self.outcomes: dict[str, int] = {}
        self.tail: deque[str] = deque(maxlen=TRACE_TAIL)
        self.broken: list[str] = []
        self.segments: dict[str, SimSegment] = {}
        self.deaths = 0
        self.broker: SimBroker | None = None
        self.workers: dict[int, SimWorker] = {}  # the living, by pid
        self.clients: list[SimClient] = []
        self.asked: dict[str, list[tuple[int, list[Any]]]] = {}  # by model: what an item does, its inputs
        self.closing = False
        self.running = True  # there are faults and requests
        rng = self.rng
        calm = rng.random() < CALM_SHARE
        kinds = [*BLOWS, *CHANCES]
        self._kinds = {kind for kind in kinds if rng.random() < FAULT_SHARE and not calm}
        self._devices = random.Random(f"devices {seed}")  # apart: the other seeds stay what they are
        self._devices_break = self._devices.random() < DEVICES_SHARE and not calm
        names = [name for name in INPUTS if rng.random() < 0.7] or ["net"]
        models = {
            name: ModelConfig(name, WHERE, MAX_BATCH[name], idempotent=rng.random() < IDEMPOTENT_SHARE) for name in names
        }
        for name in PADS.keys() & models.keys():
            models[name] = replace(models[name], pad=PADS[name], batch_elements_max=rng.choice((0, 20)))
        for name, model in models.items():  # some join identical requests, some keep results
            cache_ns = rng.choice((0, 20, 300)) * MS
            if rng.random() < SHARED_SHARE:
                models[name] = replace(model, join=rng.random() < 0.8, cache_ns=cache_ns, cache_bytes=2_000)
        for name, model in models.items():  # some run only some sizes
            if rng.random() < BUCKETS_SHARE:
                models[name] = replace(model, buckets=(1, 3, MAX_BATCH[name]) if MAX_BATCH[name] > 3 else (2, 3))
        bounds = random.Random(f"bounds {seed}")  # apart, too
        for name, model in models.items():  # some runs may take only so long
            if bounds.random() < BOUNDED_SHARE:
                models[name] = replace(model, run_ns_max=bounds.choice((20, 60, 400, 8_000)) * MS)
        tight = rng.random() < 0.25
        limits = Limits(queue_rows_max=40, client_rows_max=24, queue_bytes_max=6_000) if tight else Limits()
        self.config = YardConfig(models, limits)
        self._unread_max = rng.choice((2, 4, 1000)) if "stop_client" in self._kinds else UNREAD_MAX
        self._hash = 0
        self._hash_high = 0
        self.steps = 0
        self._numbers = 0
        self._epoch = 100
        self._pid = 1000
        self._held: dict[int, dict[tuple[int, int], list[tuple[str, int, int]]]] = {}
        self._answers_ns: dict[int, int] = {}  # by process: when its latest answer arrives

    # ---- what everybody uses ------------------------------------------------------------------

    def trace(self, *what: Any) -> None:
        line = f"{self.clock.now_ns} {' '.join(map(str, what))}"
        data = line.encode()
        self._hash = zlib.crc32(data, self._hash)
        self._hash_high = zlib.adler32(data, self._hash_high)
        self.tail.append(line)

    def count(self, kind: str) -> None:
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def violated(self, text: str) -> None:
        """For where raising would be swallowed, or would look like a peer's error."""
        self.broken.append(text)

    def happens(self, kind: str) -> bool:
        """Whether this goes wrong now."""
        if not self.running or kind not in self._kinds or self.rng.random() >= CHANCES[kind]:
            return False
        self.count(kind)
        return True

    def sizes(self) -> int:
        """How many batch sizes the device of a worker that loads a model is quick enough for; -1: all."""
        return self._devices.choice((-1, -1, 1, 2))

    def device_heals(self) -> bool:
        """Whether a worker leaves for a better provider between two batches."""
        if not self.running or not self._devices_break or self._devices.random() >= DEVICE_CHANCE:
            return False
        self.count("device_heals")
        return True

    def device_breaks(self) -> bool:
        """Whether a worker's device is lost under the batch that it runs now."""
        if not self.running or not self._devices_break or self._devices.random() >= DEVICE_CHANCE:
            return False
        self.count("lost_device")
        return True

    def what_an_item_does(self, model: str) -> int:
        if self.happens("killer"):
            return KILLER
        if self.happens("poison"):
            return POISON
        return ODD if model == "filter" and self.happens("odd") else FINE

    def again(self, model: str) -> tuple[int, list[Any]] | None:
        """What was asked of the model before, now and then where identical requests are shared."""
        shared = self.config.models[model]
        if not (shared.join or shared.cache_ns) or model not in self.asked or self.rng.random() < 0.5:
            return None
        self.count("again")
        return self.rng.choice(self.asked[model][-4:])

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def new_segment(self, nbytes: int) -> SimSegment:
        segment = SimSegment(str(len(self.segments)), nbytes)
        self.segments[segment.handle.name] = segment
        return segment

    # ---- who may touch what -------------------------------------------------------------------

    def lent(self, core: Any, worker: int, message: m.Batch) -> None:
        """The broker lends a batch: until the process answers or is dead, these bytes are held."""
        assert self.broker is not None
        ranges = []
        for item in message.apart():
            name = self.broker.arenas.open_names[item.arena]
            ranges += [(name, slot.offset, slot.offset + slot.nbytes) for slot in item.outputs]
            ranges += [(name, tensor.offset, tensor.offset + tensor.nbytes) for tensor in item.inputs]
        pid = core.workers[worker].pid
        if self.is_dead(pid):
            return  # the broker has not heard of it yet
        self._held.setdefault(pid, {})[core.epoch, message.batch] = ranges

    def given_back(self, pid: int, epoch: int, batch: int, answer_ns: int) -> None:
        """The process has answered; the broker can read it from `answer_ns` on."""
        self._held[pid].pop((epoch, batch), None)
        self._answers_ns[pid] = answer_ns

    def check_hung(self, pid: int) -> None:
        """The broker takes a process for hung: it must hold a batch, unless its answer is still on the way,
        or the clock or the broker itself was held up meanwhile."""
        late = self.faults.get("leap") or self.faults.get("stop_broker") or self.is_dead(pid)
        late = late or self._answers_ns.get(pid, 0) >= self.clock.now_ns
        if not late and not self._held.get(pid):
            self.violated(f"process {pid} has answered everything, and is killed as hung")

    def slot_freed(self, name: str, start: int, stop: int) -> None:
        for batches in self._held.values():
            for ranges in batches.values():
                for held, held_start, held_stop in ranges:
                    if held == name and held_start < stop and start < held_stop and not self._is_lost(name):
                        self.violated(f"slot {start} of segment {name} was freed under a worker")

    def _is_lost(self, name: str) -> bool:
        """Whether the segment's session was given up: nothing is handed out of it any more."""
        for client in self.clients:
            session = client.session
            memory = session.memory if session is not None and not session.lost else None
            if memory is not None and memory.segment.handle.name == name:
                return False
        own = self.broker.front.inline._segment if self.broker is not None else None
        return own is None or own.handle.name != name

    # ---- processes ----------------------------------------------------------------------------

    def start_broker(self) -> None:
        self._epoch += 1
        self._pid += 1
        self.broker = SimBroker(self, self.config, self._epoch, self._pid, self._unread_max)

    def start_worker(self) -> None:
        self._pid += 1
        worker = self.workers[self._pid] = SimWorker(self, f"worker {self._pid}", self._pid)
        worker.start()

    def start_client(self) -> None:
        if self.closing:
            return
        client = SimClient(self, f"client {len(self.clients)}", self.rng.random() < 0.25)
        self.clients.append(client)
        client.connect()

    def is_dead(self, pid: int) -> bool:
        return pid not in self.workers

    def kill(self, pid: int) -> None:
        """The process dies now; its supervisor starts another."""
        worker = self.workers.pop(pid, None)
        if worker is None:
            return
        self.deaths += 1
        self.trace("dies", pid)
        worker.die()
        self._held.pop(pid, None)
        if self.broker is not None:
            self.broker.process_died(pid)
        self.clock.after(self.rng.randrange(5, 60) * MS, self.start_worker)

    def kill_soon(self, pid: int) -> None:
        self.clock.after(self.rng.randrange(MS), lambda: self.kill(pid))

    # ---- the run ------------------------------------------------------------------------------

    def play(self) -> None:
        rng = self.rng
        start_ns = self.clock.now_ns
        self.start_broker()
        for _ in range(rng.randrange(1, 4)):
            self.start_worker()
        for _ in range(rng.randrange(1, 4)):
            self.start_client()
        for kind, most in BLOWS.items():
            if kind in self._kinds:
                for _ in range(rng.randrange(1, most + 1)):
                    self.clock.after(rng.randrange(SPAN_NS), lambda kind=kind: blow(self, kind))  # type: ignore[misc]
        at_ns = 0
        for _ in range(rng.randrange(200, 600) if rng.random() < CROWD_SHARE else rng.randrange(20, 70)):
            # Some come together, some alone.
            at_ns += rng.choice((0, 0, 0, 1, 5, 25)) * MS * rng.randrange(1, 3)
            self.clock.after(25 * MS + at_ns % SPAN_NS, self._ask)
        self._step_until(lambda: self.clock.now_ns >= start_ns + SPAN_NS, SPAN_NS)
        self.running = False
        self._unread_max = UNREAD_MAX
        if self.broker is not None:
            self.broker.clients.unread_max = UNREAD_MAX
        self.clock.after(NUDGE_NS, self._nudge)
        self._step_until(self._at_rest, REST_NS_MAX)
        self._end()

    def _ask(self) -> None:
        clients = [client for client in self.clients if client.alive]
        if clients:
            client = self.rng.choice(clients)
            client.when_awake(client.map if self.rng.random() < MAP_SHARE else client.submit)

    def _step_until(self, is_over: Any, within_ns: int) -> None:
        give_up_ns = self.clock.now_ns + within_ns + 1_000 * SECOND  # leaps
        while not is_over():
            assert self.clock.step(), "nothing happens any more"
            self.steps += 1
            if self.broken:
                raise AssertionError("; ".join(self.broken))
            assert self.steps < STEPS_MAX, "it does not come to rest: too many events"
            assert self.clock.now_ns < give_up_ns, "it does not come to rest: too long"

    def _nudge(self) -> None:
        """Every client asks for something: one that the broker has dropped learns of it so."""
        for client in self.clients:
            for driver in client.connected() if client.alive else ():
                if not any(isinstance(request.message, m.Describe) for request in driver.engine.pending.values()):
                    client.nudge(driver)
        if not self._at_rest() and not self.closing:
            self.clock.after(NUDGE_NS, self._nudge)

    def _at_rest(self) -> bool:
        return (
            self.broker is not None
            and not self.broker.core.batches
            and all(client.at_rest() for client in self.clients if client.alive)
        )

    def _end(self) -> None:
        """Everybody leaves in order; nothing may be left."""
        self.closing = True
        for client in self.clients:
            session = client.session
            if client.alive and session is not None and not session.lost and session.memory is not None:
                used = session.memory.used_bytes
                assert used == 0, f"{used} bytes of {client.name}'s memory did not come back"
            if client.alive:
                client.close()
        broker = self.broker
        assert broker is not None
        for (_, how), count in broker.core.counters.identical.items():
            self.faults[how] = self.faults.get(how, 0) + count
        quiet_ns = self.clock.now_ns + 150 * SECOND
        self.clock.at(quiet_ns, lambda: None)
        self._step_until(lambda: self.clock.now_ns >= quiet_ns, 150 * SECOND)
        assert not broker.left_over(), "; ".join(broker.left_over())
        own = broker.front.inline._number
        for worker in self.workers.values():
            attached = [number for number in worker.memory.attached if number != own]
            assert not attached, f"{worker.name} still has the arenas {attached}"

    def result(self, seed: int) -> Result:
        trace_hash = f"{self._hash:08x}{self._hash_high:08x}"
        return Result(seed, trace_hash, self.faults, self.outcomes, self.steps)


def run(seed: int, order: str = DEFAULT) -> Result:
    """Play one run. Raises Violation when a promise is broken."""
    log = logging.getLogger("batchyard")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)  # the yard complains a lot about what we do to it
    world = World(seed, order)
    try:
        world.play()
    except Exception as error:
        said = "\n  ".join((*world.tail, f"{type(error).__name__}: {'; '.join([str(error), *world.broken])}"))
        text = f"seed {seed} breaks a promise; replay it: python -m batchyard.tests.sim {seed}\n  {said}"
        raise Violation(text) from error
    finally:
        log.setLevel(level)
    return world.result(seed)
