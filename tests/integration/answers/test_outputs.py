"""Outputs as onnxruntime gives them: an input handed on, a constant, twice the same, empty, of another shape
or rank than the file says, of more axes than anybody uses. Whatever it is, it comes back whole, and again
for the next request.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from batchyard import BatchyardError
from onnx import ModelProto, TensorProto, helper, numpy_helper

from .graphs import graph, unary, weights

RANKS = (1, 8, 9, 16, 31, 32, 33, 40, 64)
NUMPY_RANK_MAX = 64

F, K = TensorProto.FLOAT, TensorProto.INT64
rng = np.random.default_rng(11)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


class Given(NamedTuple):
    model: ModelProto
    requests: list[dict[str, Any]]


def info(name: str, kind: int, axes: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, axes)


def raw(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any] | None = None
) -> ModelProto:
    """What the text form can't say: unknown ranks, outputs that no node makes."""
    initializers = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()
    ]
    made = helper.make_graph(nodes, "main", inputs, outputs, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def handed_on(width: int) -> Given:
    """Ids and the tensor itself go through; the rest is computed."""
    return Given(
        graph(
            f"""(float[batch,{width}] x, int64[batch,1] id) => (float[batch,{width}] z, int64[batch,1] id, float[batch,{width}] x)
            {{ z = Neg (x) }}""",
            checked=False,
        ),
        [{"x": floats(rows, width), "id": rng.integers(0, 9, (rows, 1))} for rows in (2, 1, 5, 2)],
    )


def branches(then: list[Any], other: list[Any]) -> ModelProto:
    """`y` of a rank that hangs on the condition."""
    graphs = [
        helper.make_graph(nodes, name, [], [info(f"{name}_out", F, None)])
        for name, nodes in (("then", then), ("other", other))
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    return raw([node], [info("x", F, ["n", 4]), info("c", TensorProto.BOOL, [])], [info("y", F, None)])


def stale(declared: Any, request: Any, to: list[int]) -> Given:
    """A detector whose declared output is one image size's, and the input is free."""
    reshape = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    axes = ["batch", *["free"] * (request.ndim - 1)]
    return Given(
        raw(reshape, [info("x", F, axes)], [info("y", F, declared)], {"to": np.array(to)}),
        [{"x": request}] * 3,
    )


KINDS: dict[str, Given] = {
    "an input, small": handed_on(4),
    "an input, bound where it lies": handed_on(1 << 16),
    "only an input": Given(
        raw([], [info("x", F, ["n", 3])], [info("x", F, ["n", 3])]),
        [{"x": floats(rows, 3)} for rows in (1, 4, 2)],
    ),
    "an input of a model without axes": Given(
        raw(
            [helper.make_node("Neg", ["x"], ["y"])],
            [info("x", F, []), info("k", K, [])],
            [info("k", K, []), info("y", F, [])],
        ),
        [{"x": np.float32(3), "k": np.array(7)}, {"x": np.float32(-1), "k": np.array(8)}],
    ),
    "an initializer": Given(
        raw(
            [helper.make_node("Relu", ["x"], ["y"])],
            [info("x", F, ["batch", 4])],
            [info("y", F, ["batch", 4]), info("anchors", F, [3, 2])],
            {"anchors": np.arange(6, dtype=np.float32).reshape(3, 2)},
        ),
        [{"x": floats(rows, 4)} for rows in (2, 3, 1)],
    ),
    "an initializer, declared with the batch's axis": Given(
        raw(
            [helper.make_node("Relu", ["x"], ["y"])],
            [info("x", F, ["batch", 4])],
            [info("y", F, ["batch", 4]), info("classes", K, ["batch"])],
            {"classes": np.arange(3)},
        ),
        [{"x": floats(rows, 4)} for rows in (2, 3, 1)],
    ),
    "a constant's node": Given(
        graph(
            """(float[n,2] x) => (float[n,2] y, int64[3] shape) {
            y = Neg (x) shape = Constant <value = int64[3] {1, 2, 3}> () }"""
        ),
        [{"x": floats(rows, 2)} for rows in (1, 2)],
    ),
    "the same tensor under two names": Given(
        graph(
            "(float[n,4] x) => (float[n,4] a, float[n,4] b) { h = Exp (x) a = Identity (h) b = Identity (h) }"
        ),
        [{"x": floats(rows, 4)} for rows in (1, 3)],
    ),
    "an output that another output is made of": Given(
        graph(
            "(float[n,4] x) => (float[n,4] a, float[n,4] b, float[n] c) { a = Relu (x) b = Neg (a) c = ReduceSum <keepdims=0> (b, one) }",
            one=np.array([1]),
        ),
        [{"x": floats(rows, 4)} for rows in (1, 3)],
    ),
    "its own size": Given(
        graph("(float[n,w] x) => (int64[2] shape, int64 size) { shape = Shape (x) size = Size (x) }"),
        [{"x": floats(2, 3)}, {"x": floats(4, 1)}],
    ),
    "of other size than declared": stale([800, 2], floats(1, 2, 10, 10).reshape(1, 200), [-1, 2]),
    "of other size than declared, behind the batch": stale(["batch", 10], floats(2, 5), [-1, 5]),
    "of a rank that another is declared": stale(["a", "b"], floats(2, 4), [2, 2, 2]),
    "of a rank that nobody declared": stale(None, floats(2, 6), [3, 4]),
    "of a rank that each request says": Given(
        raw(
            [helper.make_node("Reshape", ["x", "to"], ["y"])],
            [info("x", F, ["n", 4]), info("to", K, ["k"])],
            [info("y", F, None)],
        ),
        [{"x": floats(2, 4), "to": np.array(to)} for to in ([4, 2], [8], [2, 2, 2], [1, 1, 8, 1])],
    ),
    "of the rank of the branch that was taken": Given(
        branches(
            [helper.make_node("Identity", ["x"], ["then_out"])],
            [helper.make_node("ReduceSum", ["x"], ["other_out"], keepdims=0)],
        ),
        [{"x": floats(3, 4), "c": np.array(flag)} for flag in (True, False, True)],
    ),
    "for an input of any rank": Given(
        raw([helper.make_node("Relu", ["x"], ["y"])], [info("x", F, None)], [info("y", F, None)]),
        [
            {"x": x}
            for x in (floats(2, 3), floats(5), np.float32(-1).reshape(()), floats(1, 2, 3, 4), floats(0, 2))
        ],
    ),
    "for inputs of any rank, one of them": Given(
        raw(
            [helper.make_node("Add", ["x", "b"], ["y"])],
            [info("x", F, None), info("b", F, ["n", 3])],
            [info("y", F, None)],
        ),
        [
            {"x": x, "b": floats(2, 3)}
            for x in (floats(2, 3), floats(3), np.float32(4).reshape(()), floats(4, 2, 3))
        ],
    ),
    "rows that were filtered": Given(
        graph(
            """(float[boxes,4] x) => (float[kept,4] y, int64[kept] which) {
            m = ReduceMin <keepdims=0> (x, one) k = Greater (m, zero) y = Compress <axis=0> (x, k)
            r = NonZero (k) which = Squeeze (r, axes) }""",
            one=np.array([1]),
            axes=np.array([0]),
            zero=np.float32(-0.5),
        ),
        [{"x": floats(rows, 4)} for rows in (6, 1, 20)] + [{"x": np.full((2, 4), -1, np.float32)}],
    ),
    "of no elements, on axis 1": Given(
        graph("(float[n,w] x) => (float[n,w] y) { y = Neg (x) }"), [{"x": floats(3, 0)}, {"x": floats(2, 2)}]
    ),
    "of no elements, on the last of three": Given(
        graph("(float[n,4,w] x) => (float[n,w,4] y) { y = Transpose <perm=[0,2,1]> (x) }"),
        [{"x": floats(3, 4, 0)}, {"x": floats(1, 4, 5)}],
    ),
    "of no rows": Given(
        graph("(float[n,4] x) => (float[n,4] y) { y = Neg (x) }"), [{"x": floats(0, 4)}, {"x": floats(2, 4)}]
    ),
    "of no rows, with weights behind": Given(
        graph(
            "(float[n,4] x) => (float[n,2] y, float[2] total) { y = MatMul (x, w) total = ReduceSum <keepdims=0> (y, zero) }",
            w=weights(4, 2),
            zero=np.array([0]),
        ),
        [{"x": floats(0, 4)}, {"x": floats(3, 4)}],
    ),
    "of no elements in a model of fixed sizes": Given(
        graph("(float[2,0] x) => (float[0,2] y) { y = Transpose (x) }"), [{"x": floats(2, 0)}] * 2
    ),
    "of no elements beside others": Given(
        graph(
            "(float[n,4] x) => (float[n,0] none, float[n,4] all) { none, all = Split <axis=1> (x, sizes) }",
            sizes=np.array([0, 4]),
        ),
        [{"x": floats(rows, 4)} for rows in (1, 3)],
    ),
    "numbers without axes": Given(
        graph(
            "(float x, int64 k) => (float y, bool more) { f = Cast <to=1> (k) y = Mul (x, f) more = Greater (x, f) }"
        ),
        [{"x": np.float32(2.5).reshape(()), "k": np.array(k)} for k in (1, 4)],
    ),
    "twice as long as what went in": Given(
        graph("(float[n,2] x) => (float[m,2] y) { y = Concat <axis=0> (x, x) }"),
        [{"x": floats(rows, 2)} for rows in (1, 3)],
    ),
    "as long as the request's number says": Given(
        graph(
            "(int64 count) => (float[m] y) { s = Unsqueeze (count, axes) y = ConstantOfShape <value = float[1] {2.5}> (s) }",
            axes=np.array([0]),
        ),
        [{"count": np.array(count)} for count in (3, 0, 70000, 1)],
    ),
    "from a range": Given(
        graph("(int64 start, int64 end) => (int64[m] y) { y = Range (start, end, step) }", step=np.array(1)),
        [{"start": np.array(3), "end": np.array(end)} for end in (9, 3, 4)],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_outputs_come_back_as_onnxruntime_gives_them(stand: Any, name: str) -> None:
    kind = KINDS[name]
    with stand.model(kind.model) as model:
        assert model.wrong_alone(kind.requests * 3) == []
        assert model.wrong_together(kind.requests * 8) == []


@pytest.mark.parametrize("width", [4, 1 << 16])
def test_an_output_that_is_an_input_never_shows_what_was_there_before(stand: Any, width: int) -> None:
    """onnxruntime does not write an output that is an input: what lay in the slot would be another's."""
    with (
        stand.model(handed_on(width).model) as model,
        stand.yard.client() as first,
        stand.yard.client() as second,
    ):
        secret = {"x": np.full((2, width), 1234.5, np.float32), "id": np.array([[111], [222]])}
        plain = {"x": np.zeros((2, width), np.float32), "id": np.array([[1], [2]])}
        for _ in range(4):
            first.infer(model.name, secret)
            answer = second.infer(model.name, plain)
            assert answer["id"].ravel().tolist() == [1, 2]
            assert not answer["x"].any()


@pytest.mark.parametrize("rank", RANKS)
def test_an_answer_may_have_as_many_axes_as_numpy_has(stand: Any, rank: int) -> None:
    model = raw(
        [helper.make_node("ConstantOfShape", ["s"], ["y"])], [info("s", K, ["k"])], [info("y", F, ["a"])]
    )
    if rank > 8:
        model = raw(
            [helper.make_node("Reshape", ["x", "s"], ["y"])],
            [info("x", F, ["n"]), info("s", K, ["k"])],
            [info("y", F, None)],
        )
    feeds: dict[str, Any] = {"s": np.ones(rank, np.int64)}
    if rank > 8:
        feeds["x"] = floats(1)
    with stand.model(model) as served:
        assert served.wrong_alone([feeds] * 3) == []


def test_an_answer_of_more_axes_than_numpy_has_is_refused_and_hurts_nobody(stand: Any) -> None:
    model = raw(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [info("x", F, ["n"]), info("s", K, ["k"])],
        [info("y", F, None)],
    )
    with stand.model(model) as served:
        for _ in range(3):
            started_s = time.monotonic()
            with pytest.raises(BatchyardError, match=r"\b(65|axes|rank)"):
                served.infer({"x": floats(1), "s": np.ones(NUMPY_RANK_MAX + 1, np.int64)}, timeout=30)
            assert time.monotonic() - started_s < 20, "its end was its time-out's"
            assert stand.pilot_answers(), "a model beside it waits"
        assert served.wrong_alone([{"x": floats(1), "s": np.ones(2, np.int64)}]) == []


def test_an_input_may_have_as_many_axes_as_numpy_has(stand: Any) -> None:
    for rank in (33, NUMPY_RANK_MAX):
        with stand.model(unary("Neg", F, ["n", *[1] * (rank - 1)])) as model:
            assert model.wrong_alone([{"x": floats(rows, *[1] * (rank - 1))} for rows in (1, 3)]) == []


def test_sizes_that_are_not_declared_get_slots_once_they_are_known(stand: Any) -> None:
    model = graph("(float[n,w] x) => (float[n,v] y) { y = Concat <axis=1> (x, x) }", checked=False)
    with stand.model(model) as served, stand.yard.client() as client:
        places = []
        for rows, width in ((1, 5), (3, 5), (2, 7), (4, 7)):
            x = np.random.default_rng(rows).random((rows, width)).astype(np.float32)
            answer = client.infer(served.name, x)
            assert np.array_equal(answer, np.concatenate([x, x], 1))
            places.append(client._sessions.current.memory.offset_of(answer) is not None)
            del answer
        assert places == [False, True, False, True]


def test_a_shape_that_was_foreseen_is_not_put_upon_another_of_the_same_size(stand: Any) -> None:
    model = graph("(float[6] x, int64[2] s) => (float[a,b] y) { y = Reshape (x, s) }", checked=False)
    x = np.arange(6, dtype=np.float32)
    with stand.model(model) as served, stand.yard.client() as client:
        for shape in ([2, 3], [2, 3], [3, 2], [3, 2], [1, 6], [6, 1], [2, 3]):
            answer = client.infer(served.name, {"x": x, "s": np.array(shape)})
            assert answer.tolist() == x.reshape(shape).tolist()
