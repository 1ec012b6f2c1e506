"""The ledger: every request that a campaign sends, from its call to its one outcome.

Pure: the time is passed in. Ended requests are folded into counts, so a soak of hours has a ledger
of the size of what is under way; whoever follows a request keeps its `Sent`.
"""

from __future__ import annotations

import threading
from collections import Counter

OK = "ok"
WRONG = "wrong"  # a result that is not this request's


class Sent:
    """One request. `deadline_ns` is a time of the clock, not a duration; `outcome` is OK, WRONG, or an
    error's class, and empty until the request has ended."""

    __slots__ = ("deadline_ns", "ended_ns", "index", "outcome", "sent_ns")

    def __init__(self, index: int, sent_ns: int, deadline_ns: int) -> None:
        self.index = index  # of its input
        self.sent_ns = sent_ns
        self.deadline_ns = deadline_ns
        self.ended_ns = 0
        self.outcome = ""


class Ledger:
    """Counts of outcomes, and the requests that have none yet. Safe to share between threads."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.sent = 0
        self.duplicated = 0  # outcomes of requests that had one already
        self.late_worst_ns = 0  # the most by which an outcome came after its deadline
        self._under_way: set[Sent] = set()
        self._lock = threading.Lock()
        self._mark_ns = 0
        self._answered_ns = 0

    def open(self, index: int, now_ns: int, deadline_ns: int) -> Sent:
        """A request is about to be sent, with so much time from now."""
        sent = Sent(index, now_ns, now_ns + deadline_ns)
        with self._lock:
            self.sent += 1
            self._under_way.add(sent)
        return sent

    def end(self, sent: Sent, outcome: str, now_ns: int) -> None:
        """The request has an outcome."""
        with self._lock:
            if sent.outcome:
                self.duplicated += 1
                return
            sent.outcome = outcome
            sent.ended_ns = now_ns
            self.outcomes[outcome] += 1
            self.late_worst_ns = max(self.late_worst_ns, now_ns - sent.deadline_ns)
            self._under_way.discard(sent)
            if outcome == OK and not self._answered_ns and sent.sent_ns >= self._mark_ns:
                self._answered_ns = now_ns

    def under_way(self) -> list[Sent]:
        """The requests without an outcome."""
        with self._lock:
            return list(self._under_way)

    def mark(self, now_ns: int) -> None:
        """From here on, `answered_ns` looks for a request sent at `now_ns` or later."""
        with self._lock:
            self._mark_ns, self._answered_ns = now_ns, 0

    @property
    def answered_ns(self) -> int:
        """When a request that was sent after the mark got its right answer for the first time; 0: not yet."""
        return self._answered_ns
