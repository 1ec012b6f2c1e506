"""The supervisor: chooses a provider, keeps a child running on it, and changes the provider when it must.

Owns the loop and its clock. The ladder decides which provider to use. A probe, in a process of its own, finds
out whether a provider works. The child owns the sessions.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence

from ..transport.errors import BatchyardError
from ..transport.flag import Flag
from ..transport.processes import Backoff, ChildProcess, module
from .ladder import Ladder, blames_device
from .probe import Probe, Probed

POLL_S = 0.05  # between two looks at a probe, and at a child without a sentinel
LOOK_S = 1.0  # between two looks at quarantines
COMMAND = module("batchyard.gpuworker.child")
LEAVE_SIGNAL: int | None = getattr(signal, "SIGUSR1", None)  # tells a child to exit after its batches

log = logging.getLogger("batchyard.gpuworker")


class Supervisor:
    """Keeps a child running until `stop`.

    arguments: the child's, without its provider's. insist: the operator named the ladder's first provider, so
    it must work at the start. device: the number of the provider's device; None: chosen by `worker`.
    """

    def __init__(
        self,
        ladder: Ladder,
        arguments: Sequence[str],
        stop: Flag,
        insist: bool = False,
        device: int | None = None,
        worker: int = 1,
    ) -> None:
        self._ladder = ladder
        self._arguments = list(arguments)
        self._stop = stop
        self._insist = insist
        self._device = device
        self._worker = worker
        self._provider = ladder.providers[-1]
        self._devices: dict[str, int] = {}  # by provider, once a probe has found that it works
        self._child: ChildProcess | None = None
        self._probe: Probe | None = None  # of a provider that is better than the child's
        self._leaves = False  # the child has been told to
        self._backoff = Backoff()

    def run(self) -> None:
        """Run until `stop`. Raises BatchyardError if the operator named a provider that does not work."""
        self._backoff.next_delay_s(time.monotonic())  # the first start is not a restart
        try:
            self._start()
            while not self._wait():
                status = self._child.poll() if self._child is not None else None
                if status is not None:
                    self._ended(status)
                else:
                    self._look_up()
        finally:
            self._drop_probe()
            if self._child is not None:
                self._child.terminate()

    def _wait(self) -> bool:
        """Sleep until something may have happened. Returns whether to stop."""
        sentinel = self._child.sentinel if self._child is not None else None
        if sentinel is None or self._probe is not None:
            return self._stop.wait(POLL_S)
        return self._stop.wait(LOOK_S, [sentinel])

    # ---- the child ----------------------------------------------------------------------------

    def _start(self) -> None:
        """Start a child on the best provider that works."""
        self._drop_probe()
        if not self._choose():
            return
        self._insist = self._leaves = False
        now_ns = time.monotonic_ns()
        device = self._devices.get(self._provider, 0)
        command = [*COMMAND, *self._arguments, "--provider", self._provider, "--device", str(device)]
        command += ["--fallback-reason", self._ladder.fallback_reason(self._provider, now_ns)]
        if self._provider != self._ladder.providers[0]:
            log.warning("%s; serving with %s", command[-1], self._provider)
        elif len(self._ladder.providers) > 1:
            log.info("serving with %s, device %d", self._provider, device)
        self._child = ChildProcess(command, name="session child")
        self._child.start()

    def _ended(self, status: int) -> None:
        assert self._child is not None
        self._child.terminate()  # it has ended already: this closes its pipes
        if status == 0 and self._leaves:  # without `_leaves`: user code has called exit()
            self._start()
            return
        now_s = time.monotonic()
        if blames_device(status) and self._ladder.strike(self._provider, time.monotonic_ns()):
            log.error("the device of %s has failed several times: it is in quarantine", self._provider)
            self._devices.pop(self._provider)
            self._backoff = Backoff()  # the next provider has not failed yet
        delay_s = self._backoff.next_delay_s(now_s)
        log.warning("the session child ended with status %s; it starts again in %.1f s", status, delay_s)
        if not self._stop.wait(delay_s):
            self._start()

    # ---- providers ----------------------------------------------------------------------------

    def _choose(self) -> bool:
        """Go down the ladder to a provider that works. Returns False if `stop` comes first."""
        while True:
            self._provider = self._ladder.choose(time.monotonic_ns())
            if self._provider == self._ladder.providers[-1] or self._provider in self._devices:
                return True
            probe = self._begin(self._provider)
            outcome = probe.poll(time.monotonic())
            while outcome is None:
                if self._stop.wait(POLL_S):
                    probe.close()
                    return False
                outcome = probe.poll(time.monotonic())
            self._note(self._provider, outcome)
            if self._insist and not outcome.works:
                raise BatchyardError(f"{self._provider} was asked for and does not work here: {outcome.text}")

    def _look_up(self) -> None:
        """Probe a better provider when its quarantine is over. If it works, the child makes way for it."""
        if LEAVE_SIGNAL is None or self._leaves or self._child is None or self._child.pid is None:
            return  # without the signal, it is probed at the child's next start
        if self._probe is None:
            better = self._ladder.better(self._provider, time.monotonic_ns())
            if better is not None:
                self._probe = self._begin(better)
            return
        outcome = self._probe.poll(time.monotonic())
        if outcome is None:
            return
        provider, self._probe = self._probe.provider, None
        self._note(provider, outcome)
        if outcome.works:
            log.warning("%s works again; the child moves to it", provider)
            self._leaves = True
            os.kill(self._child.pid, LEAVE_SIGNAL)
        else:
            log.warning("%s does not work yet: %s", provider, outcome.text)

    def _drop_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _begin(self, provider: str) -> Probe:
        return Probe(provider, self._device, self._worker, time.monotonic())

    def _note(self, provider: str, outcome: Probed) -> None:
        if outcome.works:
            self._devices[provider] = outcome.device
        else:
            self._devices.pop(provider, None)
            self._ladder.refuse(provider, outcome.text, time.monotonic_ns())
