"""The relay baselines: a 100-byte message carried between three real processes, and how fast that goes.

Owns the relay's processes (relay.py) and the client that measures them. This is the floor of
any broker over ZeroMQ: no queue, no batch, no tensor, no model, one message per request. The bare
runtime, the other floor, is in bench/bare.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import zmq

from .. import BatchyardError
from ..bench.compare import Contender, Slice
from ..bench.loops import WARM_UP_S
from ..bench.statistics import Measured

PAYLOAD = bytes(100)  # about the size of one request with its tensor handles
ANSWER_MS = 10_000
ROLES = {"zmq.proxy": "proxy", "python ROUTER/ROUTER": "router"}
KINDS = tuple(ROLES)


class Relay:
    """A relay, an echoing worker behind it, and a DEALER in this process; a context manager.

    The processes are started afresh by `subprocess`, so nothing of this process is in them, and are
    killed on the way out, whatever happened. Raises BatchyardError when they don't come up, TimeoutError
    when an answer stays away.
    """

    def __init__(self, kind: str) -> None:
        if kind not in ROLES:
            raise ValueError(f"{kind!r} is not one of {KINDS}")
        self.kind = kind
        self._children: list[subprocess.Popen[str]] = []
        self._folder: str | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes]

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def __enter__(self) -> Relay:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="batchyard-relay-")
        relay = self._spawn(ROLES[self.kind], self._folder)
        front_url, back_url = self._line(relay).split()
        self._spawn("worker", back_url)
        if self._line(relay) != "ready":
            raise BatchyardError(f"the worker did not reach the {self.kind} relay")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVTIMEO, ANSWER_MS)
        self._socket.connect(front_url)

    def _spawn(self, role: str, where: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.relay", role, where],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the benchmark alone, which then ends them
        )
        self._children.append(child)
        return child

    def _line(self, child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        line = child.stdout.readline()  # bounded: the child speaks within relay.START_MS, or ends
        if not line:
            raise BatchyardError(f"the {self.kind} relay ended with code {child.wait()}")
        return line.strip()

    def close(self) -> None:
        """Kill and reap both processes, and remove the sockets' folder. May be called twice."""
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        self._children.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def round_trips(self, duration_s: float, *, warm_up_s: float = WARM_UP_S) -> Measured:
        """One message in flight, for `duration_s`: the latency of each round trip."""
        return self.window(1, duration_s, warm_up_s=warm_up_s)

    def window(self, in_flight: int, duration_s: float, *, warm_up_s: float = WARM_UP_S) -> Measured:
        """`in_flight` messages under way, for `duration_s`: each answer sends the next message.

        Answers come in the order of their requests (one relay, one worker), so a queue of send times is
        all that matching needs.
        """
        measured = Measured()
        record = measured.latencies_ns.append
        send, recv, now_ns = self._socket.send, self._socket.recv, time.perf_counter_ns
        sent_ns: deque[int] = deque()
        from_ns = now_ns() + int(warm_up_s * 1e9)
        until_ns = from_ns + int(duration_s * 1e9)
        try:
            for _ in range(in_flight):
                sent_ns.append(now_ns())
                send(PAYLOAD)
            while True:
                recv()
                ended_ns = now_ns()
                started_ns = sent_ns.popleft()
                if ended_ns >= until_ns:
                    break
                if ended_ns >= from_ns:
                    record(ended_ns - started_ns)
                sent_ns.append(now_ns())
                send(PAYLOAD)
            for _ in sent_ns:
                recv()
        except zmq.Again:
            raise TimeoutError(f"the {self.kind} relay fell silent for {ANSWER_MS} ms") from None
        measured.elapsed_ns = until_ns - from_ns
        return measured


def contenders(in_flight: int) -> list[Contender]:
    """Both relays as sides of a comparison, with so many messages under way."""
    return [Contender(kind, partial(_open, kind, in_flight)) for kind in KINDS]


@contextmanager
def _open(kind: str, in_flight: int) -> Iterator[Slice]:
    with Relay(kind) as relay:
        yield partial(relay.window, in_flight)
