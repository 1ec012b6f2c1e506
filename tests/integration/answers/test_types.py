"""Every type that onnxruntime runs, in and out, by every kind of client; and what can't travel is refused by
a sentence that names it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from batchyard import BatchyardError
from onnx import ModelProto, TensorProto, helper

from ...plain import Plain, difference
from .graphs import cast, graph

T = TensorProto
NUMPY: dict[int, Any] = {
    T.FLOAT: np.float32, T.DOUBLE: np.float64, T.FLOAT16: np.float16, T.BFLOAT16: ml_dtypes.bfloat16,
    T.INT8: np.int8, T.INT16: np.int16, T.INT32: np.int32, T.INT64: np.int64,
    T.UINT8: np.uint8, T.UINT16: np.uint16, T.UINT32: np.uint32, T.UINT64: np.uint64, T.BOOL: np.bool_,
    T.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn, T.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    T.FLOAT8E5M2: ml_dtypes.float8_e5m2, T.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    T.INT4: ml_dtypes.int4, T.UINT4: ml_dtypes.uint4,
}  # fmt: skip
NAMES = {code: T.DataType.Name(code).lower() for code in NUMPY}
FOUR_BITS = (T.INT4, T.UINT4)
OPSET = 23

Array = np.ndarray[Any, Any]


def values(code: int, *shape: int) -> Array:
    """Every value of a small type comes; of a large one, its ends."""
    rng = np.random.default_rng(code)
    kind = np.dtype(NUMPY[code])
    if kind == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if code == T.UINT4:
        return rng.integers(0, 16, shape).astype(kind)
    if code == T.INT4:
        return rng.integers(-8, 8, shape).astype(kind)
    if kind.kind in "iu":
        ends = np.iinfo(kind)
        found = rng.integers(ends.min, ends.max, shape, dtype=kind, endpoint=True)
        found.flat[0], found.flat[-1] = ends.min, ends.max
        return found
    return (rng.standard_normal(shape) * 4).astype(kind)


def carried(code: int, axes: Any) -> ModelProto:
    """`y` is `x`, and no optimizer takes the way out: there and back by a wider type, or a reshape."""
    if code in FOUR_BITS or "float8" in NAMES[code] or code == T.BFLOAT16:
        nodes = [
            helper.make_node("Cast", ["x"], ["wide"], to=T.FLOAT),
            helper.make_node("Neg", ["wide"], ["minus"]),
            helper.make_node("Abs", ["minus"], ["size"]),
            helper.make_node("Cast", ["size"], ["y"], to=code),
        ]
    else:
        nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=-1)]
    tail = axes[-1] if len(nodes) == 4 else 2 * axes[-1]
    infos = [
        helper.make_tensor_value_info(name, code, a) for name, a in (("x", axes), ("y", [*axes[:-1], tail]))
    ]
    made = helper.make_graph(nodes, "main", infos[:1], infos[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)


@pytest.mark.parametrize("code", NUMPY, ids=NAMES.values())
def test_every_type_goes_in_and_comes_out(stand: Any, code: int) -> None:
    with stand.model(carried(code, ["n", 5])) as model:  # five: an odd number of half bytes
        requests = [{"x": values(code, rows, 5)} for rows in (1, 2, 3, 1, 7)]
        assert model.wrong_alone(requests * 2) == []
        assert model.wrong_together(requests * 6) == []


@pytest.mark.parametrize("code", NUMPY, ids=NAMES.values())
def test_every_type_travels_to_other_machines_and_through_an_event_loop(stand: Any, code: int) -> None:
    with stand.model(carried(code, ["n", 5])) as model:
        feeds = {"x": values(code, 3, 5)}
        (want,) = model.plain.run(feeds)
        with stand.yard.client(segment="frames") as remote:  # as over tcp: tensors ride in the message
            assert difference(want, remote.infer(model.name, feeds)) == ""

        async def loop() -> Array:
            async with stand.yard.async_client() as client:
                answer: Array = await client.infer(model.name, feeds)
                return answer

        assert difference(want, asyncio.run(loop())) == ""
        with stand.yard.client() as client:
            for answer in client.map(model.name, [feeds["x"]] * 4):
                assert difference(want, answer) == ""


@pytest.mark.parametrize(
    "code", [T.BFLOAT16, T.FLOAT8E4M3FN, T.FLOAT8E5M2], ids=["bfloat16", "float8e4m3fn", "float8e5m2"]
)
def test_types_that_numpy_lacks_may_come_as_their_bits(stand: Any, code: int) -> None:
    with stand.model(carried(code, ["n", 5])) as model:
        given = values(code, 3, 5)
        bits = given.view(np.uint16 if code == T.BFLOAT16 else np.uint8)
        (want,) = model.plain.run({"x": given})
        assert difference(want, model.infer({"x": bits})) == ""


@pytest.mark.parametrize("code", FOUR_BITS, ids=["int4", "uint4"])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 3), (1, 1, 7), (0, 4)], ids=str)
def test_half_bytes_of_every_number_survive(stand: Any, code: int, shape: tuple[int, ...]) -> None:
    """Two elements share a byte: an odd number leaves half of one."""
    axes = [f"axis{number}" for number in range(len(shape))]
    for to, back in ((T.FLOAT, code), (code, T.FLOAT)):
        with stand.model(cast(back, to, axes, OPSET)) as model:
            given = values(code, *shape) if back == code else values(code, *shape).astype(np.float32)
            assert model.wrong_alone([{"x": given}] * 3) == []


# ---- strings ------------------------------------------------------------------------------------

WORDS = ["tensor", "", "naïve", "列車", "a" * 3000, "two words", "line\nbreak", "😀", "\0 inside"]


def words(*shape: int, seed: int = 0) -> Array:
    rng = np.random.default_rng([seed, *shape])
    found = np.empty(shape, object)
    found.flat[:] = [WORDS[int(index)] for index in rng.integers(0, len(WORDS), found.size)]
    return found


STRINGS: dict[str, tuple[ModelProto, list[dict[str, Any]]]] = {
    "in and out": (
        graph("(string[n] a, string[n] b) => (string[n] y) { y = StringConcat (a, b) }", opset=20),
        [{"a": words(rows), "b": words(rows, seed=1)} for rows in (1, 3, 8)],
    ),
    "out of numbers": (
        graph("(int64[n,2] x) => (string[n,2] y) { y = Cast <to=8> (x) }"),
        [{"x": np.arange(2 * rows).reshape(rows, 2) * 10**9} for rows in (1, 4)],
    ),
    "into numbers": (
        graph("(string[n] x) => (float[n] y) { y = Cast <to=1> (x) }"),
        [{"x": np.array(["1.5", "-3e5", "0"][:rows], object)} for rows in (1, 3)],
    ),
    "compared": (
        graph("(string[n,2] a, string[n,2] b) => (bool[n,2] y) { y = Equal (a, b) }", opset=19),
        [{"a": words(rows, 2), "b": words(rows, 2, seed=2)} for rows in (1, 5)],
    ),
    "a label encoder": (
        graph(
            """(string[n] x) => (int64[n] y) {
            y = ai.onnx.ml.LabelEncoder <keys_strings=["tensor", "", "two words"], values_int64s=[5, 7, 9], default_int64=-1> (x) }""",
            checked=False,
        ),
        [{"x": words(rows)} for rows in (1, 6)],
    ),
    "beside numbers": (
        graph("(string[n] name, float[n,2] x) => (string[n] name2, float[n,2] y) { name2 = Identity (name) y = Neg (x) }"),
        [{"name": words(rows), "x": np.ones((rows, 2), np.float32)} for rows in (1, 3)],
    ),
    "without axes": (
        graph("(string x) => (string y) { y = Identity (x) }"),
        [{"x": np.array("naïve", object)}, {"x": np.array("", object)}],
    ),
    "none at all": (
        graph("(string[n] x) => (string[n] y) { y = Identity (x) }"),
        [{"x": np.empty(0, object)}, {"x": words(2)}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRINGS)
def test_strings_go_in_and_come_out(stand: Any, name: str) -> None:
    model, requests = STRINGS[name]
    with stand.model(model) as served:
        assert served.wrong_alone(requests * 2) == []
        assert served.wrong_together(requests * 6) == []


def test_strings_may_be_numpys_own_or_pythons(stand: Any) -> None:
    with stand.model(STRINGS["in and out"][0]) as served:
        a, b = ["one", "zwei"], ["+1", "+2"]
        for kind in (np.array, list, lambda x: np.array(x, object)):
            answer = served.infer({"a": kind(a), "b": kind(b)})
            assert [str(word) for word in answer] == ["one+1", "zwei+2"]


# ---- what is left out, and what can't be --------------------------------------------------------


def test_an_input_that_has_a_value_of_its_own_may_be_left_out(stand: Any) -> None:
    """An initializer that is an input, too: given it counts, else the file's own."""
    model = graph("(float[n,3] x, float[3] scale) => (float[n,3] y) { y = Mul (x, scale) }")
    model.graph.initializer.append(helper.make_tensor("scale", T.FLOAT, [3], [1, 2, 3]))
    with stand.model(model) as served:
        x = np.ones((2, 3), np.float32)
        requests = [{"x": x}, {"x": x, "scale": np.array([5, 5, 5], np.float32)}, {"x": x}]
        assert served.wrong_alone(requests) == []
        assert served.wrong_together(requests * 8) == []


def test_inputs_that_nobody_reads_are_taken_all_the_same(stand: Any) -> None:
    model = graph("(float[n,3] x, float[n,9] unused) => (float[n,3] y) { y = Neg (x) }")
    with stand.model(model) as served:
        requests = [{"x": np.ones((2, 3), np.float32), "unused": np.ones((2, 9), np.float32)}]
        assert served.wrong_together(requests * 16) == []


def typed(make_type: Any, node: Any, opset: int = 18) -> ModelProto:
    """A model from a float tensor to a value of another type."""
    made = helper.make_graph(
        [node],
        "main",
        [helper.make_tensor_value_info("x", T.FLOAT, ["n"])],
        [helper.make_value_info("y", make_type)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(made, opset_imports=imports, ir_version=10)


TENSOR = helper.make_tensor_type_proto(T.FLOAT, None)
REFUSED = {
    "sequence": typed(
        helper.make_sequence_type_proto(TENSOR), helper.make_node("SequenceConstruct", ["x"], ["y"])
    ),
    "optional": typed(helper.make_optional_type_proto(TENSOR), helper.make_node("Optional", ["x"], ["y"])),
    "map": typed(
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.FLOAT, []))
        ),
        helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0]),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_tensor_is_refused_by_a_sentence(stand: Any, kind: str) -> None:
    Plain(REFUSED[kind].SerializeToString())  # onnxruntime loads it: the refusal is ours
    word = {"sequence": "seq", "optional": "optional", "map": "map"}[kind]
    with pytest.raises(BatchyardError, match=rf"'y'.*{word}"), stand.model(REFUSED[kind]):
        pass
    assert stand.pilot_answers()
