"""What a request brings back: its outputs, and the receipt that says where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..transport.messages import BatchReceipt
from .signature import Array, rows_of


@dataclass(frozen=True, slots=True)
class Receipt:
    """Times in nanoseconds. gather, compute, and scatter are the whole batch's; `copied_bytes` is
    what the worker moved for the batch (0: the model read and wrote this client's own memory). Of a request
    that was split they are the sums of all its batches, and `worker` and `batch` are the last one's. A result
    that was kept has run in no batch: its worker is 0 and its provider "cache"."""

    queue_ns: int
    gather_ns: int
    compute_ns: int
    scatter_ns: int
    rows: int  # of the batch
    copied_bytes: int
    worker: int
    provider: str
    revision: int  # of the model that answered
    batch: int  # the broker's number for it: requests with the same ran together
    lent_ns: int  # from when the worker was sent the batch until the broker heard that it is done
    padded: float = 0.0  # the share of the batch that was padding; see `pad` in docs/configuration.md


class Reply:
    """One request's outputs. Arrays may be views of shared memory, which they keep alive."""

    __slots__ = ("_batch", "_queue_ns", "arrays", "names")

    def __init__(self, names: list[str], arrays: list[Array], queue_ns: int, batch: BatchReceipt) -> None:
        self.names = names
        self.arrays = arrays
        self._queue_ns = queue_ns
        self._batch = batch

    def __repr__(self) -> str:
        outputs = ", ".join(
            f"{name}: {array.dtype}{list(array.shape)}" for name, array in self.outputs.items()
        )
        return f"<Reply {outputs}>"

    @property
    def outputs(self) -> dict[str, Array]:
        """Every output by its name."""
        return dict(zip(self.names, self.arrays, strict=True))

    @property
    def value(self) -> Array | dict[str, Array]:
        """The output, when the model has one; else all by name."""
        return self.arrays[0] if len(self.arrays) == 1 else self.outputs

    def apart(self, axes: Sequence[int], count: int) -> list[Reply] | None:
        """A reply for each of `count` rows along these axes of the outputs; None if they have other rows."""
        rows: list[list[Array]] = [[] for _ in range(count)]
        for array, axis in zip(self.arrays, axes, strict=True):
            if array.ndim <= axis or array.shape[axis] != count:
                return None
            for row, arrays in enumerate(rows):
                arrays.append(array[row : row + 1] if not axis else array[rows_of(axis, row, row + 1)].copy())
        return [Reply(self.names, arrays, self._queue_ns, self._batch) for arrays in rows]

    @property
    def receipt(self) -> Receipt:
        b = self._batch
        return Receipt(
            self._queue_ns, b.gather_ns, b.compute_ns, b.scatter_ns, b.rows, b.copied_bytes, b.worker,
            b.provider, b.revision, b.batch, b.lent_ns, b.padded,
        )  # fmt: skip
