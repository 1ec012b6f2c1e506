"""One inference of the Open Inference Protocol, over HTTP or gRPC: its parameters, tensors, and run.

HTTP and gRPC convert their messages to an `Asked`, and an `Answered` to their messages. The shared part is
here.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import ModelInfo, Priority
from ..client.remote.calls import LEFT_HEADER, bytes_of
from .classification import classes, labels_of
from .datatypes import BY_NAME, Array, Datatype, check_shape, datatype_of, from_bytes
from .described import batches_as_triton
from .errors import Refusal, invalid
from .regions import SHARED_MEMORY_OFF, Place, Regions
from .yard import Yard, check_version

TIMEOUT_S = 30.0  # of a request that names none
TIMEOUT_MAX_S = 3600.0
DEADLINE_MS_MAX = TIMEOUT_MAX_S * 1000
RECEIPT = "receipt"  # a request's parameter: true asks for the receipt in the answer's parameters
STRINGS_BYTES_MAX = 64 << 20  # of a BYTES tensor in a client's shared memory
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
NO_SEQUENCES = (
    "this server keeps no state between requests: ask for the model's state outputs, and send them as the "
    "next request's inputs, as `client.sequence` of batchyard's own client does (docs/sequences.md)"
)
_PLACE = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(slots=True)
class Wanted:
    """An output that was requested by name."""

    name: str
    binary: bool = False
    place: Place | None = None
    classes: int = 0  # so many of the best instead of the tensor


@dataclass(slots=True)
class Asked:
    """A request whose inputs are arrays."""

    info: ModelInfo
    inputs: dict[str, Array]
    priority: int
    timeout_s: float
    outputs: list[Wanted] | None  # None: all of them
    traceparent: str | None = None  # whose trace it belongs to, as W3C writes it
    receipt: bool = False  # whether the answer says where its time went

    def end_by(self, until_s: float) -> None:
        """Its sender waits no longer than this: what it has waited for until now is part of its time."""
        self.timeout_s = max(0.001, min(self.timeout_s, until_s - time.monotonic()))


@dataclass(slots=True)
class Output:
    """One output as it is answered. `written`: it lies in this place, and is not sent."""

    name: str
    datatype: Datatype
    array: Array
    binary: bool
    written: Place | None = None

    @property
    def raw(self) -> memoryview:
        return bytes_of(self.array)


@dataclass(slots=True)
class Answered:
    info: ModelInfo
    outputs: list[Output] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)  # the receipt, where it was asked for


def priority_of(given: Any) -> int:
    """A priority class: by name, or as Triton counts: 1 is the highest, 0 the default.
    Raises Refusal."""
    names = [priority.name for priority in Priority]
    if isinstance(given, str) and given.upper() in names:
        return names.index(given.upper())
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= len(names):
        return given - 1 if given else int(Priority.NORMAL)
    listed = ", ".join(f"{number} or {name.lower()!r}" for number, name in enumerate(names, 1))
    raise invalid(f"priority is {listed} (0: the default), not {str(given)[:40]!r}")


def deadline_s_of(milliseconds: Any) -> float:
    """A deadline in seconds; None: the default. Raises Refusal."""
    if milliseconds is None:
        return TIMEOUT_S
    good = isinstance(milliseconds, int | float) and not isinstance(milliseconds, bool)
    if not good or not 0 < milliseconds <= DEADLINE_MS_MAX:
        raise invalid(
            f"deadline_ms is a number above 0 and up to {DEADLINE_MS_MAX:g}, not {str(milliseconds)[:40]!r}"
        )
    return float(milliseconds) / 1e3


def options_of(parameters: Mapping[str, Any]) -> tuple[int, float]:
    """(priority, timeout in seconds) of a request's parameters; `timeout` counts microseconds.
    Backend-specific ones are ignored. Raises Refusal for those that would need a feature we lack."""
    for name in _SEQUENCE:
        if parameters.get(name):
            raise invalid(f"{name}: {NO_SEQUENCES}")
    timeout = parameters.get("timeout", 0)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout < 0:
        raise invalid(f"timeout is a number of microseconds, not {str(timeout)[:40]!r}")
    timeout_s = min(timeout, TIMEOUT_MAX_S * 1e6) / 1e6 if timeout else TIMEOUT_S
    return priority_of(parameters.get("priority", 0)), timeout_s


def until_s_of(header: str | None) -> float:
    """When a request ends whose sender waits for so many milliseconds from now on, by time.monotonic.
    Raises Refusal."""
    if header is None:
        return math.inf
    if not header.isdecimal() or not 0 < int(header[:12]) <= DEADLINE_MS_MAX or len(header) > 12:
        allowed = f"a whole number of milliseconds, 1 to {DEADLINE_MS_MAX:.0f}"
        raise invalid(f"{LEFT_HEADER} is {allowed}, not {header[:40]!r}")
    return time.monotonic() + int(header) / 1e3


def place_of(parameters: Mapping[str, Any], regions: Regions | None, what: str) -> Place | None:
    """The tensor's place in a client's shared memory, or None. Raises Refusal."""
    if _PLACE[0] not in parameters:
        return None
    if regions is None:
        raise invalid(f"{what}: {SHARED_MEMORY_OFF}")
    name, nbytes, offset = (parameters.get(key, 0) for key in _PLACE)
    if not isinstance(name, str) or type(nbytes) is not int or type(offset) is not int:
        raise invalid(f"{what}: a region is a name, shared_memory_byte_size and _offset are numbers")
    return regions.place(name, offset, nbytes)


def wanted_of(name: str, parameters: Mapping[str, Any], binary: bool, regions: Regions | None) -> Wanted:
    """Raises Refusal."""
    what = f"output {name[:80]!r}"
    asked = parameters.get("binary_data", binary)
    if not isinstance(asked, bool):
        raise invalid(f"{what}: binary_data is true or false")
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise invalid(f"{what}: classification is how many classes are wanted, not {str(count)[:40]!r}")
    place = place_of(parameters, regions, what)
    if count and place is not None:
        raise invalid(f"{what}: classes are not written to shared memory; ask for one or the other")
    return Wanted(name, asked, place, count)


def declared(info: ModelInfo, name: str, datatype: str, shape: Sequence[int]) -> Datatype:
    """The type of an input that is to be read. Raises Refusal unless the model has such an input."""
    what = f"input {name[:80]!r}"
    check_shape(shape, what)
    for spec in info.inputs:
        if spec.name == name:
            want = datatype_of(spec.dtype, what)
            if want.name != datatype:
                raise invalid(f"{what} of {info.name!r} takes {want.name}, not {datatype[:20]}")
            return want
    names = ", ".join(spec.name for spec in info.inputs)
    raise invalid(f"{info.name!r} has no {what}; its inputs are {names}")


async def from_place(
    yard: Yard, regions: Regions, place: Place, datatype: Datatype, shape: list[int]
) -> Array:
    """An input that lies in a client's shared memory, read into ours. Raises Refusal."""
    if datatype.numpy.hasobject:
        if place.nbytes > STRINGS_BYTES_MAX:
            raise Refusal(413, "TOO_LARGE", f"BYTES in shared memory have at most {STRINGS_BYTES_MAX} bytes")
        raw = bytearray(place.nbytes)
        await regions.read(place, memoryview(raw))
        return from_bytes(raw, datatype.numpy, shape, f"region {place.region!r}")
    array = await yard.client.empty(shape, datatype.numpy)
    if array.nbytes != place.nbytes:
        raise invalid(f"region {place.region!r}: {place.nbytes} bytes are not {datatype.name}{shape}")
    await regions.read(place, bytes_of(array))
    return array


async def model_of(yard: Yard, name: str, version: str) -> ModelInfo:
    """The model that a request is for. Raises Refusal, UnknownModel, ModelFailed."""
    info = await yard.model(name)
    check_version(info, version)
    return info


async def run(yard: Yard, asked: Asked, regions: Regions | None) -> Answered:
    """Run it, and write outputs where the request wants them. Raises Refusal and the client's errors."""
    if asked.outputs is not None:
        _check_names(asked.info, asked.outputs)
    info, reply = await yard.infer(
        asked.info, asked.inputs, asked.priority, asked.timeout_s, asked.traceparent
    )
    answered = await _answered(info, reply.outputs, asked.outputs, regions)
    if asked.receipt:
        answered.parameters = asdict(reply.receipt)
    return answered


async def answers(yard: Yard, asked: Asked, regions: Regions | None) -> AsyncGenerator[Answered, None]:
    """Run a model that answers several times; otherwise as `run`."""
    if asked.outputs is not None:
        _check_names(asked.info, asked.outputs)
    stream = yard.stream(asked.info, asked.inputs, asked.priority, asked.timeout_s, asked.traceparent)
    async with aclosing(stream):
        async for arrays in stream:
            yield await _answered(asked.info, arrays, asked.outputs, regions)


async def _answered(
    info: ModelInfo, arrays: dict[str, Array], outputs: Sequence[Wanted] | None, regions: Regions | None
) -> Answered:
    answered = Answered(info)
    for wanted, code, array in _chosen(info, arrays, outputs):
        datatype = datatype_of(code, f"output {wanted.name!r}")
        if wanted.classes:
            by_row = batches_as_triton(info) and array.ndim > 0
            labels = labels_of(info.origin.metadata) if info.origin is not None else {}
            array = classes(array, datatype, wanted.classes, labels, by_row, f"output {wanted.name!r}")
            datatype = BY_NAME["BYTES"]
        output = Output(wanted.name, datatype, array, wanted.binary, wanted.place)
        if wanted.place is not None:
            assert regions is not None  # it was it that made the place
            await regions.write(wanted.place, output.raw)
        answered.outputs.append(output)
    return answered


def _check_names(info: ModelInfo, outputs: Sequence[Wanted]) -> None:
    names = [spec.name for spec in info.outputs]
    asked: set[str] = set()
    for wanted in outputs:
        if wanted.name in asked:  # a thousand times, it would make an answer of gigabytes
            raise invalid(f"output {wanted.name!r} is asked for twice")
        asked.add(wanted.name)
        if wanted.name not in names:
            listed = ", ".join(names)
            raise invalid(f"{info.name!r} has no output {wanted.name[:80]!r}; its outputs are {listed}")


def _chosen(
    info: ModelInfo, arrays: dict[str, Array], outputs: Sequence[Wanted] | None
) -> list[tuple[Wanted, int, Array]]:
    """(what was asked for, its ONNX type, its array), in the order of asking."""
    codes = {spec.name: spec.dtype for spec in info.outputs}
    asked = [Wanted(name) for name in arrays] if outputs is None else outputs
    missing = [wanted.name for wanted in asked if wanted.name not in arrays or wanted.name not in codes]
    if missing:
        raise invalid(f"{info.name!r} was swapped meanwhile and no longer has the output {missing[0]!r}")
    return [(wanted, codes[wanted.name], arrays[wanted.name]) for wanted in asked]
