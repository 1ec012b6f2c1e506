"""What requests contain: identical ones are run once, and inputs that a batch shares must be the same.

Reads arenas while their clients may write: a digest chooses what to do, and nothing depends on its truth.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..transport import digests
from ..transport import messages as m
from ..transport.digests import CONTENT_BYTES_MAX
from ..transport.errors import InvalidRequest
from ..transport.tensors import ABSENT, Tensor
from .arenas import Arenas
from .models import Model

READ_BYTES_MAX = 4 << 20  # in one round: some 4 ms; the contents of later requests are not looked at
SHARED_BYTES_MAX = 64 << 10  # of inputs that all rows of a batch have in common, to be looked at
COST_BYTES = 1024  # the cost of reading a tensor beside its bytes, as bytes


class Contents:
    """`read_bytes`: read in this round; the loop resets it."""

    def __init__(self, arenas: Arenas) -> None:
        self.read_bytes = 0
        self._arenas = arenas
        self._unshared = 0  # requests that were given a lane of their own

    def are_shared(self, arena: int, model: Model, message: m.Submit) -> bool:
        """Whether the inputs that a batch shares are the same in all requests of the message."""
        more, width = message.more, message.width
        if more is None or len(message.inputs) != len(model.inputs):
            return False
        for index in model.shared_inputs:
            tensor = message.inputs[index]
            if tensor.dtype == ABSENT:
                continue
            try:
                nbytes = tensor.nbytes
            except InvalidRequest:  # the core will say so
                return False
            if nbytes > COST_BYTES:
                return False
            first = self._arenas.read(arena, tensor.offset, nbytes)
            for offset in more.offsets[index::width]:
                if first is None or self._arenas.read(arena, offset, nbytes) != first:
                    return False
            self.read_bytes += (len(more.requests) + 1) * COST_BYTES
        return True

    def shared(self, arena: int, model: Model, message: m.Submit) -> bytes:
        """A digest of the inputs that a batch shares. It only chooses the lane: the worker compares again
        before rows share a run. Inputs that can't be read, or are large, get a lane of their own."""
        content = b""
        if len(message.inputs) == len(model.inputs):
            content = self.digest(arena, [message.inputs[i] for i in model.shared_inputs], SHARED_BYTES_MAX)
        if not content:
            self._unshared += 1
            content = b"%d" % self._unshared
        return content

    def digest(self, arena: int, inputs: Sequence[Tensor], nbytes_max: int = CONTENT_BYTES_MAX) -> bytes:
        """Of a request's content as it is now; b"" where it is too large, or not where it should be."""
        parts = []
        room = nbytes_max
        for tensor in inputs:
            if tensor.dtype == ABSENT:
                continue
            try:
                nbytes = tensor.nbytes
            except InvalidRequest:  # the core will say so
                return b""
            room -= nbytes
            self.read_bytes += COST_BYTES + (nbytes if room >= 0 else 0)
            part = self._arenas.read(arena, tensor.offset, nbytes) if room >= 0 else None
            if part is None:
                return b""
            parts.append(part)
        return digests.digest(parts)
