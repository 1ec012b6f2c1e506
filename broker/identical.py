"""Identical work of one model: requests that join a run, results that are kept, contents that kill.

Two requests are identical when the same revision is asked for the same dtypes, shapes, and bytes. The
first is the leader and waits in its lane; the others follow it and wait for its result. Whoever should
go first leads. When a leader ends without a result that can be shared, one of its followers leads.

Pure: told of digests, makes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from ..transport.messages import BatchReceipt
from ..transport.tensors import Tensor

if TYPE_CHECKING:
    from .config import ModelConfig
    from .lanes import Part, Request

QUARANTINE_NS = 600_000_000_000
QUARANTINED_MAX = 64  # of one model; the oldest is forgotten
# What a result takes beside its frames, so that many small ones are bounded, too (measured: 640 for one
# tensor).
KEPT_BYTES = 512
KEPT_TENSOR_BYTES = 256
SWEEP_MIN = 64  # places of followers that have gone are not worth sweeping before

Key = tuple[int, bytes, tuple[tuple[int, ...], ...]]  # revision, digest, (dtype, *shape) of each input
Outputs = list[list[Tensor]]  # as in messages.Answer


def key_of(revision: int, digest: bytes, inputs: Sequence[Tensor]) -> Key:
    """What identical requests have in common."""
    return revision, digest, tuple((tensor.dtype, *tensor.shape) for tensor in inputs)


class Run:
    """A leader, and those who wait for its result: they follow it until it ends, then one of them leads.

    Whoever comes, goes, or leads next costs no walk over the others: there may be thousands.
    """

    __slots__ = ("_places", "_sequence", "followers", "leader", "part")

    def __init__(self, leader: Request) -> None:
        self.leader = leader
        self.part: Part | None = None  # as which the leader was queued
        self.followers: dict[Request, None] = {}
        self._places: list[tuple[int, int, Request]] = []  # a heap; who has gone is skipped
        self._sequence = 0

    def follow(self, request: Request) -> None:
        """It waits for the leader's result."""
        request.run = self
        self.followers[request] = None
        self._sequence += 1
        heappush(self._places, (request.virtual_ns, self._sequence, request))

    def leave(self, request: Request) -> None:
        """It waits no longer."""
        request.run = None
        del self.followers[request]
        if len(self._places) > SWEEP_MIN + 2 * len(self.followers):
            self._places = [place for place in self._places if place[2] in self.followers]
            heapify(self._places)

    def lead(self, request: Request) -> None:
        """It leads from now on."""
        request.run = self
        self.leader = request
        self.part = None

    def succeed(self) -> Request | None:
        """The follower whose turn comes first leads; None when there is none."""
        while self._places:
            request = heappop(self._places)[2]
            if request in self.followers:
                del self.followers[request]
                self.lead(request)
                return request
        return None


class Kept:
    """A result, as it is answered."""

    __slots__ = ("expires_ns", "frames", "nbytes", "outputs", "rows")

    def __init__(self, outputs: Outputs, frames: list[bytes], rows: int, expires_ns: int) -> None:
        self.outputs = outputs
        self.frames = frames
        self.rows = rows
        self.expires_ns = expires_ns
        self.nbytes = KEPT_BYTES + KEPT_TENSOR_BYTES * len(frames) + sum(map(len, frames))

    def receipt(self, revision: int) -> BatchReceipt:
        """No worker had anything to do with it."""
        return BatchReceipt(self.rows, 0, 0, 0, 0, 0, "cache", revision)


class Identical:
    """See the module's docstring."""

    def __init__(self, config: ModelConfig) -> None:
        self._join = config.join
        self._ttl_ns = config.cache_ns
        self._bytes_max = config.cache_bytes
        self._runs: dict[Key, Run] = {}
        self._results: dict[Key, Kept] = {}  # least recently asked for first
        self._quarantined: dict[Key, int] = {}  # until when
        self.kept_bytes = 0
        self.shares = config.join or config.cache_ns > 0  # a result may be another request's, too
        self.wants_digest = self.shares  # it matters what is in a request

    # ---- runs that are joined -----------------------------------------------------------------

    def run(self, key: Key) -> Run | None:
        """The run that a request of this content may join."""
        return self._runs.get(key)

    def begin(self, request: Request) -> None:
        """Nobody runs what it asks: it does, for all that come after it."""
        if self._join and request.key is not None:
            request.run = self._runs[request.key] = Run(request)

    def end(self, run: Run, key: Key) -> None:
        """Nobody waits for it any more."""
        if self._runs.get(key) is run:
            del self._runs[key]

    # ---- results that are kept ----------------------------------------------------------------

    def result(self, key: Key, now_ns: int) -> Kept | None:
        """A result that has not expired."""
        kept = self._results.pop(key, None)
        if kept is None:
            return None
        if kept.expires_ns <= now_ns:
            self.kept_bytes -= kept.nbytes
            return None
        self._results[key] = kept
        return kept

    def keep(self, key: Key, outputs: Outputs, frames: Sequence[Any], rows: int, now_ns: int) -> None:
        """Keep a result, and drop what was asked for longest ago where there is no room."""
        if not self._ttl_ns:
            return
        kept = Kept(outputs, [bytes(frame) for frame in frames], rows, now_ns + self._ttl_ns)
        if kept.nbytes > self._bytes_max:
            return
        self._drop(key)
        self._results[key] = kept
        self.kept_bytes += kept.nbytes
        while self.kept_bytes > self._bytes_max:
            self._drop(next(iter(self._results)))

    def forget(self) -> None:
        """Another revision serves: what the last one said, or died of, is not asked for any more."""
        self._results.clear()
        self.kept_bytes = 0
        self._quarantined.clear()
        self.wants_digest = self.shares

    def check(self) -> None:
        """Raise AssertionError when what is kept is not what is counted; see invariants.py."""
        assert self.kept_bytes == sum(kept.nbytes for kept in self._results.values())
        assert self.kept_bytes <= self._bytes_max
        assert all(run.leader.key == key for key, run in self._runs.items())

    def _drop(self, key: Key) -> None:
        kept = self._results.pop(key, None)
        if kept is not None:
            self.kept_bytes -= kept.nbytes

    # ---- contents that kill -------------------------------------------------------------------

    def quarantine(self, key: Key, now_ns: int) -> None:
        """Workers have died of this content."""
        self._quarantined.pop(key, None)
        if len(self._quarantined) >= QUARANTINED_MAX:
            del self._quarantined[next(iter(self._quarantined))]
        self._quarantined[key] = now_ns + QUARANTINE_NS
        self.wants_digest = True

    def quarantined_ns(self, key: Key, now_ns: int) -> int:
        """How long this content is still refused; 0: it is not."""
        while self._quarantined:
            oldest = next(iter(self._quarantined))
            if self._quarantined[oldest] > now_ns:
                break
            del self._quarantined[oldest]
            # Else every request would be looked at for ever.
            self.wants_digest = self.shares or bool(self._quarantined)
        return max(0, self._quarantined.get(key, 0) - now_ns)
