"""What one backend test becomes: a model's bytes, requests, and plain onnxruntime's answer to each alone.

Two variants of every test:

plain: the model as it is, asked with the test's own inputs.
free: axis 0 free in every input and output (free_axis.py), asked with drawn rows.

Drawn by the seed, the test's name and the variant alone: a test that failed in a shard fails by itself too.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, numpy_helper

from ...plain import Plain, difference
from . import independence
from .corpus import Case
from .free_axis import ROWS_MAX, Drawer, free

PLAIN, FREE = VARIANTS = ("plain", "free")
RUNS = 4  # that must agree, or it is random: the first two of a seeded Dropout do
TRIES_EACH = 3  # draws for one request that is to run; what onnxruntime refuses is not sent
ANSWER_BYTES_MAX = 64 << 20  # of one request: a drawn size may ask for more than any client can hold


class Request(msgspec.Struct):
    """One request and its right answer; tensors as TensorProto's bytes, None: not given."""

    inputs: dict[str, bytes]
    answers: list[bytes]


class Prepared(msgspec.Struct):
    """A test, ready to be served; `unfit` says why it can't be (then there are no requests)."""

    name: str
    variant: str
    operators: list[str] = []
    unfit: str = ""
    model: bytes = b""
    types: list[str] = []  # of inputs and outputs, as onnxruntime writes them
    random: bool = False  # runs of onnxruntime alone differ
    rows: str = ""  # independence.py's verdict on axis 0; "" for the plain variant
    why: str = ""
    requests: list[Request] = []


def encode(array: Any) -> bytes:
    """An array of any type as TensorProto's bytes."""
    return numpy_helper.from_array(np.asarray(array)).SerializeToString()


def decode(data: bytes) -> Any:
    """The reverse of `encode`; strings as Python's."""
    tensor = TensorProto.FromString(data)
    array = numpy_helper.to_array(tensor)
    return array.astype(object) if tensor.data_type == TensorProto.STRING else array


def prepare(case: Case, variant: str, seed: int, count: int) -> Prepared:
    """The test in that variant, with `count` requests where so many can be drawn."""
    made = Prepared(case.name, variant, case.operators)
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode()), VARIANTS.index(variant)])
    model = case.model if variant == PLAIN else free(case.model)
    if model is None:
        made.unfit = "no input has an axis 0"
        return made
    made.model = model.SerializeToString()
    try:
        plain = Plain(made.model)
        own = plain.run(case.inputs)
        made.random = any(text for _ in range(RUNS) for text in map(difference, own, plain.run(case.inputs)))
    except Exception as error:
        made.unfit = f"onnxruntime itself: {error}"[:300]
        return made
    made.types = plain.types()
    if any(not kind.startswith("tensor(") for kind in made.types):
        if variant == FREE:
            made.unfit = "an input or output is no tensor"
        return made  # it runs, so the yard has to say why it doesn't serve it
    if variant == PLAIN:
        given = {name: value for name, value in case.inputs.items() if value is not None}
        made.requests = [_request(given, own)]
        return made
    drawer = Drawer(case.inputs, rng)
    made.rows, made.why = independence.judge(plain, drawer, rng)
    for _ in range(count):
        drawn = _drawn(plain, drawer, rng)
        if drawn is not None:
            made.requests.append(drawn)
    if not made.requests:
        made.unfit = "onnxruntime itself runs no drawn request"
    return made


def _drawn(plain: Plain, drawer: Drawer, rng: np.random.Generator) -> Request | None:
    for _ in range(TRIES_EACH):
        way = drawer.WAYS[int(rng.choice(len(drawer.WAYS), p=(0.6, 0.25, 0.15)))]
        feeds = drawer.request(way, int(rng.integers(1, ROWS_MAX + 1)))
        try:
            answers = plain.run(feeds)
        except Exception:
            continue
        if sum(np.asarray(answer).nbytes for answer in answers if answer is not None) <= ANSWER_BYTES_MAX:
            return _request(feeds, answers)
    return None


def _request(feeds: dict[str, Any], answers: list[Any]) -> Request:
    return Request({name: encode(value) for name, value in feeds.items()}, [encode(each) for each in answers])
