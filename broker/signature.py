"""The inputs and outputs of one revision of a model, and the check of a request against them.

A model's inputs and outputs come from the workers that loaded it; the broker opens no model file. Everything
that a request says of its tensors is a peer's data: it is checked here, once, before anything else looks.

Pure: no clock, no sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..transport import dtypes
from ..transport.errors import InvalidRequest
from ..transport.messages import Loaded, More, Submit
from ..transport.tensors import ABSENT, Slot, Tensor, TensorSpec, check_range, nbytes_of
from .config import ModelConfig
from .ragged import Ragged

NO_ROWS = -1  # in place of a batch axis
RAGGED = "ragged"  # first of the signatures of padded lanes
_NO_FREE_AXES: Any = ()


class _Expected:
    """An input's type and shape, in the form that is quickest to compare with a descriptor. `axis` counts its
    rows; -1: it has none. `tail`: the other axes, None for a free one; None in all: any."""

    __slots__ = ("axis", "dtype", "rank", "row_nbytes", "spec", "tail")

    def __init__(self, spec: TensorSpec, axis: int) -> None:
        self.spec = spec
        self.dtype = spec.dtype
        self.axis = axis
        self.rank = -1
        self.tail: list[int | None] | None = None
        self.row_nbytes: int | None = None  # None: some axis is free
        if spec.shape is None or spec.dtype == dtypes.STRING:
            return
        if axis >= len(spec.shape):
            raise InvalidRequest(f"{spec} has no axis {axis} to count rows on")
        self.rank = len(spec.shape)
        tail = without(spec.shape, axis)
        fixed = [size for size in tail if isinstance(size, int)]
        nbytes = nbytes_of(spec.dtype, fixed)  # refuses impossible sizes
        self.tail = [size if isinstance(size, int) else None for size in tail]
        if len(fixed) == len(tail):
            self.row_nbytes = nbytes


class ModelSignature:
    """The tensors of a model's present revision. Nothing is known of them before a worker has loaded it."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.name = config.name
        self.revision = 1
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self.batchable = False
        self.batch_axes: list[int] = []  # of each input, then of each output; -1: it has no rows
        self.evidence = ""
        self.alone_reason = ""
        self.disproved = ""  # why this revision runs alone, where a run has shown that it must
        self.ragged: Ragged | None = None  # how requests of different sizes share a run
        self.pad_reason = ""
        self.streams = False  # it answers a request several times
        self.is_uniform = False  # no strings: shapes tell how many bytes a request has
        self.has_one_shape = False  # nothing but the rows can differ from run to run, and no Python runs it
        self._expected: list[_Expected] = []
        self._counted = 0  # the first input with rows
        self.shared_inputs: list[int] = []  # without rows, of a model that batches
        self._is_plain = False  # rows on axis 0 everywhere, nothing shared
        self._static = False  # every non-batch axis is fixed: one lane
        self._output_row_nbytes: list[int] | None = None  # None: some output's size is not known before

    # ---- as workers describe it ---------------------------------------------------------------

    def differs(self, message: Loaded) -> str:
        """Why a worker's model does not fit this model's callers; "": it does. Whether its rows
        may share a run is another question: where workers have not seen the same, none do."""
        for kind, have, want in (
            ("input", message.inputs, self.inputs),
            ("output", message.outputs, self.outputs),
        ):
            if len(have) != len(want):
                return f"it has {len(have)} {kind}s, and the one that serves has {len(want)}"
            for new, old in zip(have, want, strict=True):
                if (new.name, new.dtype, _axes(new)) != (old.name, old.dtype, _axes(old)):
                    return f"its {kind} is {new}, and that of the one that serves is {old}"
        if message.streams != self.streams:
            return "one of them answers a request several times, and the other once"
        if message.batchable and self.batchable and _axes_of(message) != self.batch_axes:
            return "they have their rows on different axes"
        return ""

    def describe(self, message: Loaded) -> None:
        """A worker has loaded it, and describes its tensors. The first one's metadata is everyone's; all load
        the same file. Raises InvalidRequest, and nothing has changed, for metadata that no model can have."""
        batchable = message.batchable and not self.disproved
        axes = _axes_of(message) if batchable else [NO_ROWS] * (len(message.inputs) + len(message.outputs))
        if len(axes) != len(message.inputs) + len(message.outputs):
            raise InvalidRequest(f"{len(axes)} batch axes for its inputs and outputs")
        takes, gives = axes[: len(message.inputs)], axes[len(message.inputs) :]
        if batchable and (all(axis < 0 for axis in takes) or any(axis < 0 for axis in gives)):
            raise InvalidRequest("rows that no input has, or some output has not, can't be batched")
        for spec, axis in zip((*message.inputs, *message.outputs), axes, strict=True):
            if axis >= 0 and spec.dtype in dtypes.BY_CODE and spec.dtype not in dtypes.ITEMSIZE:
                raise InvalidRequest(f"rows of {spec} can't be cut")
        if batchable and not all(spec.shape for spec in message.outputs):
            raise InvalidRequest("an output without axes has no rows to batch")
        expected = [_Expected(spec, axis) for spec, axis in zip(message.inputs, takes, strict=True)]
        output_row_nbytes = _row_nbytes(message.outputs, gives)
        padding = message.padding
        ragged = None
        if batchable and padding is not None and padding.axes:
            ragged = Ragged(self.config.pad, padding, message.inputs, self.config.batch_elements_max)
        self.inputs = message.inputs
        self.outputs = message.outputs
        self.batchable = batchable
        self.batch_axes = axes if batchable else []
        self.evidence = message.evidence if batchable else ""
        self.alone_reason = self.disproved or message.alone_reason
        self.streams = message.streams and not batchable
        self.ragged = ragged
        self.pad_reason = padding.reason if padding is not None else ""
        self._expected = expected
        self._counted = next((index for index, axis in enumerate(takes) if axis >= 0), 0)
        self.shared_inputs = [index for index, axis in enumerate(takes) if batchable and axis < 0]
        self._is_plain = batchable and not any(takes)
        self._static = all(one.row_nbytes is not None for one in expected) and not self.shared_inputs
        self._output_row_nbytes = output_row_nbytes
        self.is_uniform = batchable and all(spec.dtype != dtypes.STRING for spec in message.inputs)
        self.has_one_shape = self._static and output_row_nbytes is not None and self.config.function is None
    def runs_alone(self, reason: str) -> None:
        """From now on no two requests of this revision share a run."""
        self.disproved = self.alone_reason = reason
        self.batchable = False
        self.batch_axes = []
        self.ragged = None
        self.evidence = ""
        self.shared_inputs = []
        self._is_plain = self._static = self.has_one_shape = self.is_uniform = False
        self._expected = [_Expected(one.spec, NO_ROWS) for one in self._expected]
        self._output_row_nbytes = None

    # ---- the check of requests ----------------------------------------------------------------

    def check(self, message: Submit, arena_nbytes: int) -> tuple[int, int]:
        """(rows, bytes) of a request that this model can run; raises InvalidRequest otherwise."""
        inputs = message.inputs
        expected = self._expected
        if len(inputs) != len(expected):
            raise InvalidRequest(f"{self.name!r} has {len(expected)} inputs, the request has {len(inputs)}")
        rows = self.rows(inputs)
        total = 0
        for tensor, want in zip(inputs, expected, strict=True):
            shape = tensor.shape
            if tensor.frame:
                raise InvalidRequest("a connection with an arena sends handles, not frames")
            if tensor.dtype != want.dtype:
                if tensor.dtype == ABSENT and want.spec.optional:
                    continue
                raise self._mismatch(want, tensor)
            if want.tail is None:
                nbytes = tensor.nbytes
            else:
                if len(shape) != want.rank:
                    raise self._mismatch(want, tensor)
                tail = shape[1:] if not want.axis else without(shape, want.axis)
                if want.row_nbytes is not None:
                    if tail != want.tail:
                        raise self._mismatch(want, tensor)
                    nbytes = want.row_nbytes * shape[want.axis] if want.axis >= 0 else want.row_nbytes
                else:
                    if not _fits(tail, want.tail):
                        raise self._mismatch(want, tensor)
                    nbytes = nbytes_of(want.dtype, shape)
            if nbytes > arena_nbytes - tensor.offset:
                check_range(tensor.offset, nbytes, arena_nbytes)  # says what is wrong
            total += nbytes
        if message.outputs:
            total += self._check_outputs(message.outputs, arena_nbytes)
        return rows or 1, total

    def check_more(self, message: Submit, more: More, arena_nbytes: int) -> None:
        """As `check`, of the further requests of a message whose first one is right: only their places can be
        wrong. Raises InvalidRequest that does not say which of them is."""
        offsets, width = more.offsets, message.width
        for index, tensor in enumerate(message.inputs):
            if tensor.dtype != ABSENT:
                check_range(max(offsets[index::width]), tensor.nbytes, arena_nbytes)
        for index, slot in enumerate(message.outputs, len(message.inputs)):
            check_range(max(offsets[index::width]), slot.nbytes, arena_nbytes)

    def rows(self, inputs: Sequence[Tensor]) -> int:
        """How many rows a request has; 0: it shares no run, because the model doesn't batch, or because
        its inputs have none, or disagree."""
        if not self.batchable:
            return 0
        axes = self.batch_axes
        shape = inputs[self._counted].shape
        axis = axes[self._counted]
        rows = shape[axis] if axis < len(shape) else 0
        if self.ragged is not None and self.ragged.sizes(inputs) is None:
            return 0
        for tensor, axis in zip(inputs, axes, strict=False):
            if axis >= 0 and (axis >= len(tensor.shape) or tensor.shape[axis] != rows):
                return 0
        return rows

    def _check_outputs(self, slots: Sequence[Slot], arena_nbytes: int) -> int:
        """Whether a worker may write them; it does so only where an output has its slot's size."""
        if len(slots) != len(self.outputs):
            raise InvalidRequest(
                f"{self.name!r} has {len(self.outputs)} outputs, and the request has {len(slots)} slots: "
                "send none, or one for each"
            )
        total = 0
        for slot in slots:
            if slot.nbytes > arena_nbytes - slot.offset:
                check_range(slot.offset, slot.nbytes, arena_nbytes)  # says what is wrong
            total += slot.nbytes
        return total

    def _mismatch(self, want: _Expected, tensor: Tensor) -> InvalidRequest:
        return InvalidRequest(
            f"{self.name!r} expects {want.spec}, the request has {dtypes.name_of(tensor.dtype)}{tensor.shape}"
        )

    def lane_signature(self, inputs: Sequence[Tensor], shared: bytes) -> Any:
        """The signature of the lane whose requests may share a batch with these inputs. `shared`: a digest of
        the inputs that all rows of a batch have in common."""
        if self._static:
            return _NO_FREE_AXES
        if self._is_plain:
            return tuple(tuple(tensor.shape[1:]) for tensor in inputs)
        axes = self.batch_axes
        tails = (
            tensor.dtype and tuple(without(tensor.shape, axis))
            for tensor, axis in zip(inputs, axes, strict=False)
        )
        return (shared, *tails)

    def ragged_signature(
        self, ragged: Ragged, inputs: Sequence[Tensor], bucket: tuple[int, ...], shared: bytes
    ) -> Any:
        """The same of requests that are padded to the same sizes."""
        tails = (
            tensor.dtype and tuple(without(ragged.shape(index, tensor, bucket), axis))
            for index, (tensor, axis) in enumerate(zip(inputs, self.batch_axes, strict=False))
        )
        return (RAGGED, self.revision, shared, *tails)

    def output_shapes(self, rows: int) -> list[tuple[int, list[int]]] | None:
        """(dtype, shape) of every output for so many rows; None when not known before the run."""
        if self._output_row_nbytes is None:
            return None
        axes = self.batch_axes[len(self.inputs) :] or [NO_ROWS] * len(self.outputs)
        return [
            (
                spec.dtype,
                [rows if index == axis else int(size) for index, size in enumerate(spec.shape or ())],
            )
            for spec, axis in zip(self.outputs, axes, strict=True)
        ]


def without(shape: Sequence[Any], axis: int) -> list[Any]:
    """A shape without its batch axis; -1: it has none."""
    return [*shape[:axis], *shape[axis + 1 :]] if axis >= 0 else list(shape)


def _axes_of(message: Loaded) -> list[int]:
    """The batch axis of each input and output."""
    return message.batch_axes or [0] * (len(message.inputs) + len(message.outputs))


def _axes(spec: TensorSpec) -> list[int | None] | None:
    """A shape without the names of its free axes, which do not bind callers."""
    return None if spec.shape is None else [size if isinstance(size, int) else None for size in spec.shape]


def _fits(shape: Sequence[int], tail: Sequence[int | None]) -> bool:
    return all(want is None or have == want for have, want in zip(shape, tail, strict=True))


def _row_nbytes(outputs: Sequence[TensorSpec], axes: Sequence[int]) -> list[int] | None:
    sizes = []
    known = True
    for spec, axis in zip(outputs, axes, strict=True):
        if spec.shape is None or spec.dtype == dtypes.STRING:
            known = False
            continue
        if axis >= len(spec.shape):
            raise InvalidRequest(f"{spec} has no axis {axis} to count rows on")
        tail = without(spec.shape, axis)
        fixed = [size for size in tail if isinstance(size, int)]
        sizes.append(nbytes_of(spec.dtype, fixed))  # refuses impossible sizes
        known = known and len(fixed) == len(tail)
    return sizes if known else None
