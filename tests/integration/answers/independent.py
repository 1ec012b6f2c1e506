"""Models whose rows have nothing to do with each other, in the shapes in which exporters write them: they
have to share runs, or a yard is no faster than one request after the other.

Each draws a request of so many rows as its users would send it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .draws import Mixing as Independent
from .draws import Rng
from .graphs import graph, weights

Array = np.ndarray[Any, Any]


def _floats(rng: Rng, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _stream(rows: int, rng: Rng) -> dict[str, Any]:
    return {"input": _floats(rng, rows, 3), "state": _floats(rng, 2, rows, 4), "sr": np.array(16000)}


def _tokens(rows: int, rng: Rng, most: int = 9) -> dict[str, Any]:
    length = int(rng.integers(3, most))
    used = rng.integers(1, length + 1, rows)
    mask = (np.arange(length) < used[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(0, 50, (rows, length)), "attention_mask": mask}


def _unnamed(model: Any) -> Any:
    """The same with its free axes nameless, as some exporters leave them."""
    for info in (*model.graph.input, *model.graph.output):
        for axis in info.type.tensor_type.shape.dim:
            if axis.HasField("dim_param"):
                axis.Clear()
    return model


STEP = """{
    a, b = Split <axis=0, num_outputs=2> (state) s = Squeeze (a, zero) c = Squeeze (b, zero)
    i = MatMul (input, w) j = MatMul (s, u) k = Add (i, j) g = Tanh (k) f = Sigmoid (c) m = Mul (g, f)
    o = ReduceMean <keepdims=1> (m, one) p = Unsqueeze (g, zero) q = Unsqueeze (m, zero)
    r = Cast <to=1> (sr) t = Div (r, thousand) output = Mul (o, t) stateN = Concat <axis=0> (p, q) }"""
STEP_WEIGHTS = {
    "w": weights(3, 4),
    "u": weights(4, 4),
    "zero": np.array([0]),
    "one": np.array([1]),
    "thousand": np.float32(16000),
}

KINDS: dict[str, Independent] = {
    "a layer": Independent(
        graph(
            "(float[batch,8] x) => (float[batch,4] y) { y = Gemm (x, w, b) }", w=weights(8, 4), b=weights(4)
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 8)},
    ),
    "a layer whose axes have other names": Independent(
        graph(
            "(float[unk__1,8] x) => (float[unk__2,4] y, float[unk__3,8] z) { y = MatMul (x, w) z = Relu (x) }",
            w=weights(8, 4),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 8)},
    ),
    "a layer whose axes have no names": Independent(
        _unnamed(graph("(float[n,8] x) => (float[n,4] y) { y = MatMul (x, w) }", w=weights(8, 4))),
        lambda rows, rng: {"x": _floats(rng, rows, 8)},
    ),
    "two inputs, three outputs": Independent(
        graph(
            """(float[n,4] a, float[n,4] b) => (float[n,4] d, int64[n,1] i, bool[n,4] c) {
            d = Sub (a, b) i = ArgMax <axis=1> (a) c = Less (a, b) }"""
        ),
        lambda rows, rng: {"a": _floats(rng, rows, 4), "b": _floats(rng, rows, 4)},
    ),
    "numbers without further axes": Independent(
        graph("(float[n] x, int64[n] k) => (float[n] y) { f = Cast <to=1> (k) y = Mul (x, f) }"),
        lambda rows, rng: {"x": _floats(rng, rows), "k": rng.integers(-5, 5, rows)},
    ),
    "an image classifier": Independent(
        graph(
            """(float[batch,3,16,16] image) => (float[batch,5] scores) {
            c = Conv <pads=[1,1,1,1]> (image, k) r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p)
            l = MatMul (f, w) scores = Softmax <axis=-1> (l) }""",
            k=weights(8, 3, 3, 3),
            w=weights(8, 5),
        ),
        lambda rows, rng: {"image": _floats(rng, rows, 3, 16, 16)},
    ),
    "images whose sizes divide by eight": Independent(
        graph(
            """(float[batch,3,height,width] x) => (float[batch,3,height,width] y) {
            p = AveragePool <kernel_shape=[8,8], strides=[8,8]> (x) u = Resize <mode="nearest"> (p, , scales)
            y = Sub (x, u) }""",
            scales=np.array([1, 1, 8, 8], np.float32),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 3, *(8 * rng.integers(1, 3, 2)))},
    ),
    "normalized over its own values": Independent(
        graph(
            "(float[n,6] x) => (float[n,6] y) { y = LayerNormalization <axis=-1> (x, s, b) }",
            s=weights(6),
            b=weights(6, seed=1),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 6)},
    ),
    "batch norm as it is served": Independent(
        graph(
            "(float[n,3,5] x) => (float[n,3,5] y) { y = BatchNormalization (x, s, b, m, v) }",
            s=np.ones(3, np.float32),
            b=weights(3),
            m=weights(3, seed=1),
            v=np.array([0.5, 1, 2], np.float32),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 3, 5)},
    ),
    "an embedding of ids inside a vocabulary": Independent(
        graph(
            """(int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask)
            => (float[batch,sequence,6] last_hidden_state, float[batch,6] pooled) {
            last_hidden_state = Gather (table, input_ids) m = Cast <to=1> (attention_mask)
            u = Unsqueeze (m, two) w = Mul (last_hidden_state, u) s = ReduceSum <keepdims=0> (w, one)
            n = ReduceSum <keepdims=1> (m, one) pooled = Div (s, n) }""",
            table=weights(50, 6),
            one=np.array([1]),
            two=np.array([2]),
        ),
        _tokens,
    ),
    "attention within each row": Independent(
        graph(
            """(float[batch,sequence,8] x) => (float[batch,sequence,8] y) {
            t = Transpose <perm=[0,2,1]> (x) s = MatMul (x, t) p = Softmax <axis=-1> (s) y = MatMul (p, x) }"""
        ),
        lambda rows, rng: {"x": _floats(rng, rows, int(rng.integers(2, 5)), 8)},
    ),
    "sorted, summed up, and chosen within each row": Independent(
        graph(
            """(float[n,7] x, int64[n,2] i) => (float[n,3] best, int64[n,3] k, float[n,7] sums, float[n,2] picked) {
            best, k = TopK <axis=1> (x, three) sums = CumSum (x, axis)
            picked = GatherElements <axis=1> (x, i) }""",
            three=np.array([3]),
            axis=np.array(1),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 7), "i": rng.integers(0, 7, (rows, 2))},
    ),
    "a state on axis 1, and a rate for all": Independent(
        graph(
            f"(float[batch,3] input, float[2,batch,4] state, int64 sr) => (float[batch,1] output, float[2,batch,4] stateN) {STEP}",
            **STEP_WEIGHTS,
        ),
        _stream,
    ),
    "a state on axis 1 of another name at the end": Independent(
        graph(
            f"(float[batch,3] input, float[2,batch,4] state, int64 sr) => (float[batch,1] output, float[d0,batch,d2] stateN) {STEP}",
            **STEP_WEIGHTS,
        ),
        _stream,
    ),
    "an LSTM's step, with h and c": Independent(
        graph(
            """(float[batch,3] x, float[1,batch,4] h, float[1,batch,4] c)
            => (float[batch,4] y, float[1,batch,4] hn, float[1,batch,4] cn) {
            u = Unsqueeze (x, zero) o, hn, cn = LSTM <hidden_size=4> (u, w, r, , , h, c) y = Squeeze (hn, zero) }""",
            w=weights(1, 16, 3),
            r=weights(1, 16, 4),
            zero=np.array([0]),
        ),
        lambda rows, rng: {
            "x": _floats(rng, rows, 3),
            "h": _floats(rng, 1, rows, 4),
            "c": _floats(rng, 1, rows, 4),
        },
    ),
    "an LSTM over its own steps": Independent(
        graph(
            """(float[batch,5,3] x) => (float[batch,4] y) {
            t = Transpose <perm=[1,0,2]> (x) o, h, c = LSTM <hidden_size=4> (t, w, r) y = Squeeze (h, zero) }""",
            w=weights(1, 16, 3),
            r=weights(1, 16, 4),
            zero=np.array([0]),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 5, 3)},
    ),
    "a branch that the whole batch shares": Independent(
        graph(
            """(float[n,4] x, bool double) => (float[n,4] y) {
            y = If (double) <then_branch = then () => (float[n,4] a) { a = Add (x, x) },
                             else_branch = else () => (float[n,4] b) { b = Neg (x) }> }""",
            checked=False,
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 4), "double": np.array(bool(rng.integers(2)))},
    ),
    "a scan over its own steps": Independent(
        graph(
            """(float[n,5] x) => (float[n,5] y, float[n] last) {
            s = Shape <end=1> (x) z = ConstantOfShape (s)
            last, y = Scan <num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
                body = body (float[n] h, float[n] e) => (float[n] g, float[n] o)
                { m = Mul (h, half) g = Add (m, e) o = Identity (g) }> (z, x) }""",
            checked=False,
            half=np.float32(0.5),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 5)},
    ),
    "half precision": Independent(
        graph(
            "(float16[n,8] x) => (float16[n,4] y) { y = MatMul (x, w) }", w=weights(8, 4).astype(np.float16)
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 8).astype(np.float16)},
    ),
    "weights of one byte": Independent(
        graph(
            "(float[n,8] x) => (float[n,4] y) { d = DequantizeLinear (w, s) y = MatMul (x, d) }",
            w=np.random.default_rng(0).integers(-100, 100, (8, 4)).astype(np.int8),
            s=np.float32(0.02),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 8)},
    ),
    "ids that go in and out as they are": Independent(
        graph(
            "(float[n,4] x, int64[n,1] id) => (float[n,4] y, int64[n,1] id) { y = Neg (x) }", checked=False
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 4), "id": rng.integers(0, 1 << 40, (rows, 1))},
    ),
    "a mean over a length of its own": Independent(
        graph(
            "(float[batch,tokens,8] x) => (float[batch,8] y) { y = ReduceMean <keepdims=0> (x, one) }",
            one=np.array([1]),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, int(rng.integers(1, 6)), 8)},
    ),
    "an answer that lies across": Independent(
        graph(
            "(float[batch,4] x) => (float[4,batch] y, float[batch] s) { y = Transpose (x) s = ReduceSum <keepdims=0> (x, one) }",
            one=np.array([1]),
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 4)},
    ),
    "time first, the batch behind": Independent(
        graph(
            "(float[time,batch,3] x) => (float[time,batch,3] y) { y = CumSum (x, axis) }", axis=np.array(0)
        ),
        lambda rows, rng: {"x": _floats(rng, 5, rows, 3)},
    ),
    "a clip whose bounds are inputs": Independent(
        graph("(float[n,4] x, float least, float most) => (float[n,4] y) { y = Clip (x, least, most) }"),
        lambda rows, rng: {
            "x": _floats(rng, rows, 4),
            "least": np.array(-0.5, np.float32),
            "most": np.array(0.5, np.float32),
        },
    ),
    "a temperature for all": Independent(
        graph(
            "(float[n,6] x, float temperature) => (float[n,6] y) { d = Div (x, temperature) y = Softmax <axis=-1> (d) }"
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 6), "temperature": np.array(0.7, np.float32)},
    ),
    "dropout as it is served": Independent(
        graph(
            "(float[n,6] x) => (float[n,6] y) { d = Dropout (x, ratio) y = Neg (d) }", ratio=np.float32(0.5)
        ),
        lambda rows, rng: {"x": _floats(rng, rows, 6)},
    ),
}
