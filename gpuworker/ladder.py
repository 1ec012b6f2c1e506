"""Which provider a worker uses, and why no better one. Pure: the supervisor passes the time in.

    a probe fails                   the provider is not tried again while the worker lives
    STRIKES_MAX within STRIKES_NS   it is in quarantine for QUARANTINE_NS, and the worker uses the next one
    the quarantine is over          it is probed again: the worker returns to it, or the quarantine is renewed

A strike is a child that its device has ended; `blames_device` decides which ends count.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from . import device, watchdog

STRIKES_MAX = 2
STRIKES_NS = 5 * 60 * 10**9
QUARANTINE_NS = 10 * 60 * 10**9
REASON_CHARS_MAX = 300  # of one provider

_CRASHES = tuple(
    -getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
    if hasattr(signal, name)
)


def blames_device(status: int) -> bool:
    """Whether a child with this exit status was ended by its device: it reported the loss, it hung, or it
    crashed, as a faulty driver makes a process do. A kill (SIGKILL, SIGTERM) has another cause."""
    on_windows = status > 0 and status & 0xC0000000 == 0xC0000000  # an exception, such as 0xC0000005
    return status in (device.EXIT_CODE, watchdog.EXIT_CODE, *_CRASHES) or on_windows


class Ladder:
    """`providers`: what may be tried, best first. The last one always works."""

    def __init__(
        self,
        providers: Sequence[str],
        strikes_max: int = STRIKES_MAX,
        strikes_ns: int = STRIKES_NS,
        quarantine_ns: int = QUARANTINE_NS,
    ) -> None:
        self.providers = list(providers)
        self._strikes_max = strikes_max
        self._strikes_ns = strikes_ns
        self._quarantine_ns = quarantine_ns
        self._refused: dict[str, str] = {}
        self._strikes: dict[str, list[int]] = {}
        self._quarantine: dict[str, tuple[int, str]] = {}  # until when, and why

    def choose(self, now_ns: int) -> str:
        """The best provider that is neither refused nor in quarantine."""
        return next(filter(lambda name: self._may(name, now_ns), self.providers), self.providers[-1])

    def refuse(self, provider: str, reason: str, now_ns: int) -> None:
        """A probe has found that the provider does not work."""
        if provider in self._quarantine:
            self._quarantine[provider] = now_ns + self._quarantine_ns, reason
        else:
            self._refused[provider] = reason

    def strike(self, provider: str, now_ns: int) -> bool:
        """A child was ended by this provider's device. Returns whether the provider goes into quarantine."""
        if provider == self.providers[-1]:
            return False
        recent = [at_ns for at_ns in self._strikes.get(provider, ()) if now_ns - at_ns <= self._strikes_ns]
        recent.append(now_ns)
        self._strikes[provider] = recent
        if len(recent) < self._strikes_max:
            return False
        del self._strikes[provider]
        count, minutes = len(recent), self._strikes_ns / 60e9
        reason = f"its device ended {count} processes within {minutes:g} minutes"
        self._quarantine[provider] = now_ns + self._quarantine_ns, reason
        return True

    def better(self, provider: str, now_ns: int) -> str | None:
        """A provider above this one whose quarantine is over; it should be probed again."""
        above = self.providers[: self.providers.index(provider)]
        return next((name for name in above if name in self._quarantine and self._may(name, now_ns)), None)

    def fallback_reason(self, provider: str, now_ns: int) -> str:
        """Why the worker uses `provider` and none above it; "" for the best one."""
        reasons = []
        for name in self.providers[: self.providers.index(provider)]:
            until_ns, reason = self._quarantine.get(name, (0, ""))
            if until_ns > now_ns:
                minutes = self._quarantine_ns / 60e9
                reasons.append(
                    f"{name} is in quarantine for {minutes:g} minutes: {reason[:REASON_CHARS_MAX]}"
                )
            elif name in self._refused:
                reasons.append(f"{name} does not work here: {self._refused[name][:REASON_CHARS_MAX]}")
        return "; ".join(reasons)

    def _may(self, provider: str, now_ns: int) -> bool:
        return provider not in self._refused and self._quarantine.get(provider, (0, ""))[0] <= now_ns
