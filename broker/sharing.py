"""Identical work of one model: requests that join a run, results that are kept, contents that kill.

Two requests are identical when the same revision is asked for the same dtypes, shapes, and bytes. The
first is the leader and waits in its lane; the others follow it and wait for its result. Whoever should
go first leads. When a leader ends without a result that can be shared, one of its followers leads.

Pure: it is given digests, and makes none. requests.py has the shared runs themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..transport.messages import BatchReceipt
from ..transport.tensors import Tensor
from .requests import Key, Outputs, Request, SharedRun

if TYPE_CHECKING:
    from .config import ModelConfig

QUARANTINE_NS = 600_000_000_000
QUARANTINED_MAX = 64  # of one model; the oldest is forgotten
# The cost of a result beside its frames, so that many small ones are bounded, too (measured: 640 for one
# tensor).
KEPT_BYTES = 512
KEPT_TENSOR_BYTES = 256


def key_of(revision: int, digest: bytes, inputs: Sequence[Tensor]) -> Key:
    """The key that identical requests share."""
    return revision, digest, tuple((tensor.dtype, *tensor.shape) for tensor in inputs)


class Kept:
    __slots__ = ("expires_ns", "frames", "nbytes", "outputs", "rows")

    def __init__(self, outputs: Outputs, frames: list[bytes], rows: int, expires_ns: int) -> None:
        self.outputs = outputs
        self.frames = frames
        self.rows = rows
        self.expires_ns = expires_ns
        self.nbytes = KEPT_BYTES + KEPT_TENSOR_BYTES * len(frames) + sum(map(len, frames))

    def receipt(self, revision: int) -> BatchReceipt:
        """The receipt of a cached result: no worker took part."""
        return BatchReceipt(self.rows, 0, 0, 0, 0, 0, "cache", revision)


class Sharing:
    def __init__(self, config: ModelConfig) -> None:
        self._runs: dict[Key, SharedRun] = {}
        self._results: dict[Key, Kept] = {}  # least recently used first
        self._quarantined: dict[Key, int] = {}  # until when
        self.become(config)

    # ---- runs that are joined -----------------------------------------------------------------

    def run(self, key: Key) -> SharedRun | None:
        """The run that a request of this content may join."""
        return self._runs.get(key)

    def begin(self, request: Request) -> None:
        """The first request of its content: it runs for all that follow."""
        if self._join and request.key is not None:
            request.run = self._runs[request.key] = SharedRun(request)

    def end(self, run: SharedRun, key: Key) -> None:
        """No request waits for the run any more."""
        if self._runs.get(key) is run:
            del self._runs[key]

    # ---- results that are kept ----------------------------------------------------------------

    def result(self, key: Key, now_ns: int) -> Kept | None:
        """A cached result that has not expired."""
        kept = self._results.pop(key, None)
        if kept is None:
            return None
        if kept.expires_ns <= now_ns:
            self.kept_bytes -= kept.nbytes
            return None
        self._results[key] = kept
        return kept

    def keep(self, key: Key, outputs: Outputs, frames: Sequence[Any], rows: int, now_ns: int) -> None:
        """Keep a result, and drop the least recently used ones where there is no room."""
        if not self._ttl_ns or sum(map(len, frames)) > self._bytes_max:
            return
        kept = Kept(outputs, [bytes(frame) for frame in frames], rows, now_ns + self._ttl_ns)
        if kept.nbytes > self._bytes_max:
            return
        self._drop(key)
        self._results[key] = kept
        self.kept_bytes += kept.nbytes
        while self.kept_bytes > self._bytes_max:
            self._drop(next(iter(self._results)))

    def become(self, config: ModelConfig) -> None:
        """Another revision serves, by this configuration: what the last one said, or died of, is not asked
        for any more. Who follows a run goes on following it."""
        self._join = config.join
        self._ttl_ns = config.cache_ns
        self._bytes_max = config.cache_bytes
        self._results.clear()
        self.kept_bytes = 0
        self._quarantined.clear()
        self.shares = config.join or config.cache_ns > 0  # a result may be another request's, too
        self.wants_digest = self.shares  # the content of a request matters

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
            # Else every request would be digested from then on.
            self.wants_digest = self.shares or bool(self._quarantined)
        return max(0, self._quarantined.get(key, 0) - now_ns)
