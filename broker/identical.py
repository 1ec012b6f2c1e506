"""Identical work of one model: requests that join a run, results that are kept, contents that kill.

Two requests are identical when the same revision is asked for the same dtypes, shapes, and bytes. The
first is the leader and waits in its lane; the others follow it and wait for its result. Whoever should
go first leads. When a leader ends without a result that can be shared, one of its followers leads.

Pure: told of digests, makes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..transport.messages import BatchReceipt
from ..transport.tensors import Tensor

if TYPE_CHECKING:
    from .config import ModelConfig
    from .lanes import Request

QUARANTINE_NS = 600_000_000_000
QUARANTINED_MAX = 64  # of one model; the oldest is forgotten

Key = tuple[int, bytes, tuple[tuple[int, ...], ...]]  # revision, digest, (dtype, *shape) of each input
Outputs = list[list[Tensor]]  # as in messages.Answer


def key_of(revision: int, digest: bytes, inputs: Sequence[Tensor]) -> Key:
    """What identical requests have in common."""
    return revision, digest, tuple((tensor.dtype, *tensor.shape) for tensor in inputs)


class Kept:
    """A result, as it is answered."""

    __slots__ = ("expires_ns", "frames", "nbytes", "outputs", "rows")

    def __init__(self, outputs: Outputs, frames: list[bytes], rows: int, expires_ns: int) -> None:
        self.outputs = outputs
        self.frames = frames
        self.rows = rows
        self.expires_ns = expires_ns
        self.nbytes = sum(map(len, frames))

    def receipt(self, revision: int) -> BatchReceipt:
        """No worker had anything to do with it."""
        return BatchReceipt(self.rows, 0, 0, 0, 0, 0, "cache", revision)


class Identical:
    """See the module's docstring."""

    def __init__(self, config: ModelConfig) -> None:
        self._join = config.join
        self._ttl_ns = config.cache_ns
        self._bytes_max = config.cache_bytes
        self._leaders: dict[Key, Request] = {}
        self._results: dict[Key, Kept] = {}  # least recently asked for first
        self._quarantined: dict[Key, int] = {}  # until when
        self.kept_bytes = 0
        self.shares = config.join or config.cache_ns > 0  # a result may be another request's, too
        self.wants_digest = self.shares  # it matters what is in a request

    # ---- runs that are joined -----------------------------------------------------------------

    def leader(self, key: Key) -> Request | None:
        """Whose run a request of this content may join."""
        return self._leaders.get(key) if self._join else None

    def lead(self, request: Request) -> None:
        """It runs for all that are like it, unless somebody does already."""
        if self._join and request.key is not None:
            self._leaders.setdefault(request.key, request)

    def depose(self, request: Request) -> list[Request]:
        """It leads no longer; those who followed it, and now follow nobody, the next to lead first."""
        key = request.key
        if key is not None and self._leaders.get(key) is request:
            del self._leaders[key]
        followers = followers_of(request)
        for follower in followers:
            leave(follower)
        return followers

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

    def forget_results(self) -> None:
        """Another revision serves: what the last one said is not asked for any more."""
        self._results.clear()
        self.kept_bytes = 0

    def _drop(self, key: Key) -> None:
        kept = self._results.pop(key, None)
        if kept is not None:
            self.kept_bytes -= kept.nbytes

    # ---- contents that kill -------------------------------------------------------------------

    def quarantine(self, key: Key, now_ns: int) -> None:
        """Workers have died of this content."""
        if len(self._quarantined) >= QUARANTINED_MAX:
            del self._quarantined[next(iter(self._quarantined))]
        self._quarantined[key] = now_ns + QUARANTINE_NS
        self.wants_digest = True

    def quarantined_ns(self, key: Key, now_ns: int) -> int:
        """How long this content is still refused; 0: it is not."""
        until_ns = self._quarantined.get(key, 0)
        if until_ns and until_ns <= now_ns:
            del self._quarantined[key]
            self.wants_digest = self.shares or bool(self._quarantined)
        return max(0, until_ns - now_ns)


def followers_of(request: Request) -> list[Request]:
    """Who waits for its result, the next to lead first."""
    return sorted(request.followers or (), key=lambda follower: follower.virtual_ns)


def follow(request: Request, leader: Request) -> None:
    """It waits for the leader's result."""
    if leader.followers is None:
        leader.followers = {}
    leader.followers[request] = None
    request.leader = leader


def leave(request: Request) -> None:
    """It follows nobody any more."""
    leader = request.leader
    assert leader is not None
    assert leader.followers is not None
    del leader.followers[request]
    request.leader = None
