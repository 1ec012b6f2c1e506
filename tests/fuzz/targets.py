"""What is fed, and what must hold whatever it is fed: the oracle of every target.

A target's `check` takes bytes that a peer could send, and says what became of them. It lets nothing
but the documented errors pass for a refusal; anything else that is raised is a broken promise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from math import prod
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import msgspec
from batchyard.broker.config import ModelConfig
from batchyard.broker.models import Model
from batchyard.gpuworker.memory import Memory
from batchyard.transport import codec, dtypes, segments
from batchyard.transport import messages as m
from batchyard.transport.errors import InvalidRequest, MalformedMessage, SegmentRefused, WrongVersion
from batchyard.transport.segments import SegmentHandle
from batchyard.transport.tensors import Slot, Tensor, TensorSpec, nbytes_of
from batchyard.transport.wire import Bounds, zmtp

GOLDEN = Path(__file__).parents[1] / "unit" / "transport" / "golden.json"
ARENA_BYTES = 1 << 16
FLOAT, INT64 = 1, 7
REFUSED = "refused"
ACCEPTED = "accepted"
Check = Callable[[bytes], str]


@dataclass(frozen=True)
class Target:
    """`seeds` are inputs that are accepted; `check` says ACCEPTED or REFUSED of any input, or raises."""

    name: str
    seeds: list[bytes]
    check: Check


# ---- the codec ----------------------------------------------------------------------------------


def golden(direction: str) -> list[bytes]:
    found = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return [bytes.fromhex(text) for name, text in found.items() if name.split(".")[0] == direction]


def decoder_target(direction: str) -> Target:
    decode = getattr(codec, direction).decode

    def check(payload: bytes) -> str:
        """What is accepted can be said again, and means the same."""
        try:
            messages = decode(payload)
        except (MalformedMessage, WrongVersion):
            return REFUSED
        again = codec.encode(messages)
        # By their bytes: a NaN is not equal to itself, and these are.
        assert codec.encode(decode(again)) == again, "what was accepted does not survive being said again"
        return ACCEPTED

    return Target(direction, golden(direction), check)


# ---- handles ------------------------------------------------------------------------------------


def models() -> dict[str, Model]:
    """One whose rows have a fixed size, one with free axes, and one that is not batchable."""

    def loaded(name: str, axes: list[int | str], batchable: bool) -> Model:
        model = Model(ModelConfig(name, Path(f"/{name}.onnx"), 8))
        inputs = [TensorSpec("a", FLOAT, axes), TensorSpec("b", INT64, axes)]
        outputs = [TensorSpec("y", FLOAT, axes)]
        model.loaded(1, 1, m.Loaded(name, 1, inputs, outputs, batchable, "", 8, "cpu", "", {}))
        return model

    return {
        "fixed": loaded("fixed", ["n", 2, 4], True),
        "free": loaded("free", ["n", "height", 4], True),
        "alone": loaded("alone", [3, "length"], False),
    }


def inside(offset: int, nbytes: int, arena_nbytes: int) -> bool:
    return 0 <= offset <= offset + nbytes <= arena_nbytes


def size_of(tensor: Tensor) -> int:
    """Written down a second time, so that the oracle is not what it judges."""
    return prod(tensor.shape) * dtypes.ITEMSIZE[tensor.dtype]


def request_target() -> Target:
    """A Submit and the broker's check of it against its model: tensors.nbytes_of, check_range."""
    known = models()

    def submit(model: str, shape: list[int], outputs: list[Slot]) -> bytes:
        inputs = [Tensor(FLOAT, shape, 0), Tensor(INT64, shape, 4096)]
        return codec.encode([m.Submit(1, model, 2, 0, inputs, outputs)])

    def check(payload: bytes) -> str:
        try:
            messages = codec.client_to_broker.decode(payload)
        except (MalformedMessage, WrongVersion):
            return REFUSED
        accepted = REFUSED
        for message in messages:
            model = known.get(message.model) if isinstance(message, m.Submit) else None
            if model is None:
                continue
            try:
                rows, nbytes = model.check(message, ARENA_BYTES)
            except InvalidRequest:
                continue
            accepted = ACCEPTED
            for tensor in message.inputs:
                assert not tensor.frame, "a frame passed for a handle"
                assert inside(tensor.offset, size_of(tensor), ARENA_BYTES), "an input outside its arena"
            counts = {tensor.shape[0] if tensor.shape else 0 for tensor in message.inputs}
            is_alone = not model.batchable or len(counts) > 1 or 0 in counts
            assert rows == (1 if is_alone else counts.pop()), "rows that are none"
            for slot in message.outputs:
                assert inside(slot.offset, slot.nbytes, ARENA_BYTES), "an output outside its arena"
            taken = [size_of(tensor) for tensor in message.inputs] + [slot.nbytes for slot in message.outputs]
            assert nbytes == sum(taken), "bytes that are not counted"
        return accepted

    seeds = [
        submit("fixed", [2, 2, 4], []),
        submit("fixed", [2, 2, 4], [Slot(8192, 64)]),
        submit("fixed", [8, 2, 4], [Slot(ARENA_BYTES - 256, 256)]),
        submit("free", [2, 5, 4], []),
        submit("free", [1, 0, 4], []),
        submit("alone", [3, 9], []),
    ]
    return Target("request_handles", seeds, check)


def batch_target() -> Target:
    """A Batch and the worker's check of its handles: `gpuworker.memory.Memory.range`."""
    sizes = {1: ARENA_BYTES, 2: 4096}
    made = {number: segments.create(nbytes) for number, nbytes in sizes.items()}
    memory = Memory()
    for number, segment in made.items():
        memory.attach(number, segment.handle, os.getpid())
    decode_items = msgspec.msgpack.Decoder(list[m.Item]).decode

    def check(payload: bytes) -> str:
        try:
            messages = codec.broker_to_worker.decode(payload)
        except (MalformedMessage, WrongVersion):
            return REFUSED
        accepted = REFUSED
        for message in messages:
            if not isinstance(message, m.LentBatch):
                continue
            try:
                items = decode_items(bytes(message.items))
            except msgspec.MsgspecError:
                continue
            for item in items:
                try:
                    for tensor in item.inputs:
                        nbytes = nbytes_of(tensor.dtype, tensor.shape)
                        arena = memory.range(item.arena, tensor.offset, nbytes)
                        assert inside(tensor.offset, size_of(tensor), arena.nbytes), "an input outside"
                    for slot in item.outputs:
                        arena = memory.range(item.arena, slot.offset, slot.nbytes)
                        assert inside(slot.offset, slot.nbytes, arena.nbytes), "an output outside"
                except InvalidRequest:
                    continue
                assert not item.inputs or item.arena in sizes, "an arena that nobody announced"
                accepted = ACCEPTED
        return accepted

    def batch(*items: m.Item) -> bytes:
        return codec.encode([m.Batch(1, "fixed", 1, 2, list(items), 10**9)])

    seeds = [
        batch(m.Item(1, [Tensor(FLOAT, [2, 4], 0)], [Slot(64, 32)])),
        batch(
            m.Item(1, [Tensor(FLOAT, [2, 4], ARENA_BYTES - 32)], []), m.Item(2, [Tensor(INT64, [1], 8)], [])
        ),
        batch(m.Item(2, [Tensor(FLOAT, [0, 4], 4096)], [Slot(4096, 0)], b"digest")),
    ]
    return Target("batch_handles", seeds, check)


def segment_target() -> Target:
    """A SegmentHandle and the reading of it: descriptor numbers, inodes, names, sizes."""
    made = [segments.create(nbytes, backend) for nbytes, backend in ((4096, "memfd"), (8192, "named"))]
    for segment in made:
        Finalize(
            None, segment.close, exitpriority=0
        )  # a name outlives its process; atexit is not for a pool's
        segment.commit(0, 8)
        segment.buffer[:8] = b"ours" + segment.nbytes.to_bytes(4, "little")
    decode = msgspec.msgpack.Decoder(SegmentHandle).decode

    def check(payload: bytes) -> str:
        try:
            handle = decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return REFUSED  # the codec's to judge
        try:
            segment = segments.attach(handle, os.getpid(), os.getuid())
        except SegmentRefused:
            return REFUSED
        with segment:
            found = segment.buffer[:8]
            assert segment.nbytes == handle.nbytes, "a segment of another size"
            assert found == b"ours" + segment.nbytes.to_bytes(4, "little"), "memory that was not offered"
        return ACCEPTED

    return Target("segment_handles", [msgspec.msgpack.encode(segment.handle) for segment in made], check)


# ---- the wire -----------------------------------------------------------------------------------

WIRE_BOUNDS = Bounds(frame_bytes=6_000, parts=5, message_bytes=9_000)


def wire_target() -> Target:
    """A peer's bytes and what our ZMTP makes of them, whole and in pieces."""

    def read(data: bytes, *steps: int) -> tuple[list[list[bytes]], bool]:
        """(messages, whether all was in order); as stream.py reads: to its room, where there is one."""
        one = zmtp.Receiver(zmtp.ROUTER, WIRE_BOUNDS)
        found: list[list[Any]] = []
        at = 0
        for step in cycle(steps):
            if at >= len(data):
                break
            if one.room is not None:
                count = min(len(one.room), len(data) - at, step)
                one.room[:count] = data[at : at + count]
                found += one.filled(count)
            else:
                count = min(step, len(data) - at)
                found += one.receive(data[at : at + count])
            at += count
            while one.has_more:
                found += one.receive(b"")
            kept = len(one._buffer) + sum(map(len, one._parts)) + len(one._large or b"")
            most = WIRE_BOUNDS.message_bytes + WIRE_BOUNDS.frame_bytes + zmtp.COMMAND_BYTES_MAX + 9
            assert kept <= most, f"{kept} bytes are kept of one peer"
            assert sum(map(len, one.replies)) <= zmtp.PONGS_MAX * 32, "answers without end"
            one.replies.clear()
        return [[bytes(part) for part in parts] for parts in found], not one.violation

    def check(payload: bytes) -> str:
        whole, in_order = read(payload, 1 << 20)
        for steps in ((1, 1, 61, 2), (300, 1, 5_000)):
            assert read(payload, *steps) == (whole, in_order), f"pieces of {steps} bytes mean something else"
        for parts in whole:
            assert 1 <= len(parts) <= WIRE_BOUNDS.parts + 1, "more parts than there may be"
            assert sum(map(len, parts)) <= WIRE_BOUNDS.message_bytes, "more bytes than there may be"
        if in_order and whole:
            again = b"".join(b"".join(zmtp.encode(parts)) for parts in whole)
            assert read(zmtp.opening(zmtp.DEALER) + again, 1 << 20) == (whole, True)
        return ACCEPTED if in_order and whole else REFUSED

    def peer(*messages: list[bytes], minor: int = 1) -> bytes:
        opening = bytearray(zmtp.opening(zmtp.DEALER))
        opening[11] = minor
        return bytes(opening) + b"".join(b"".join(zmtp.encode(parts)) for parts in messages)

    ping = zmtp.command(b"PING", b"\0\x0acontext")
    seeds = [
        peer([b""], [b"hello"]),
        peer([b"payload", b"x" * 255, b"y" * 256], [b"", b""], minor=0),
        peer([b"x" * 4200]),
        peer([b"a"]) + ping + peer([b"b", b"c"])[len(peer()) :] + ping,
        peer([b"p"] * 5),
    ]
    return Target("zmtp", seeds, check)


DIRECTIONS = (
    *("client_to_broker", "broker_to_client", "worker_to_broker"),
    *("broker_to_worker", "admin_to_broker", "broker_to_admin"),
)
_MAKERS: dict[str, Callable[[], Target]] = {
    **{name: lambda name=name: decoder_target(name) for name in DIRECTIONS},  # type: ignore[misc]
    "request_handles": request_target,
    "batch_handles": batch_target,
    "segment_handles": segment_target,
    "zmtp": wire_target,
}
NAMES = tuple(_MAKERS)


@cache
def target(name: str) -> Target:
    """The target of that name, made once in a process: some hold segments open."""
    made: Any = _MAKERS[name]()
    return made  # type: ignore[no-any-return]
