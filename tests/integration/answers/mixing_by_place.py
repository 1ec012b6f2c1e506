"""Rows whose answer hangs on all of them, or on their places: statistics, order, time."""

from __future__ import annotations

import numpy as np

from .draws import ONE, ZERO, Mixing, floats, wave
from .graphs import graph, weights

KINDS: dict[str, Mixing] = {
    # ---- statistics over the rows
    "softmax over tokens": Mixing(
        graph("(float[tokens,5] x) => (float[tokens,5] y) { y = Softmax <axis=0> (x) }"), floats("x", 5)
    ),
    "the mean is taken off": Mixing(
        graph(
            "(float[nodes,5] x) => (float[nodes,5] y) { m = ReduceMean <keepdims=1> (x, axes) y = Sub (x, m) }",
            axes=ZERO,
        ),
        floats("x", 5),
    ),
    "standardized over samples": Mixing(
        graph(
            """(float[samples] x) => (float[samples] y) {
            m = ReduceMean (x, axes) d = Sub (x, m) s = Mul (d, d) v = ReduceMean (s, axes) r = Sqrt (v)
            y = Div (d, r) }""",
            axes=ZERO,
        ),
        lambda rows, rng: wave(rows + 2, rng),
    ),
    "batch norm in training": Mixing(  # its old averages are computed: onnxruntime writes over constant ones
        graph(
            """(float[n,3] x) => (float[n,3] y) {
            m = ReduceMean <keepdims=0> (x, axes) z = Mul (m, zero) o = Exp (z)
            y, running_mean, running_var = BatchNormalization <training_mode=1> (x, s, b, z, o) }""",
            checked=False,
            axes=ZERO,
            zero=np.float32(0),
            s=np.ones(3, np.float32),
            b=np.zeros(3, np.float32),
        ),
        floats("x", 3),
    ),
    "divided by the largest": Mixing(
        graph(
            "(float[pixels,3] x) => (float[pixels,3] y) { a = Abs (x) m = ReduceMax (a, axes) y = Div (x, m) }",
            axes=ZERO,
        ),
        floats("x", 3),
    ),
    "divided by their number": Mixing(
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            s = Shape <end=1> (x) f = Cast <to=1> (s) y = Div (x, f) }"""
        ),
        floats("x", 4),
    ),
    "quantized by the range of all": Mixing(
        graph(
            """(float[batch,8] x) => (float[batch,6] y) {
            q, s, z = DynamicQuantizeLinear (x) i = MatMulInteger (q, w, z) f = Cast <to=1> (i) y = Mul (f, s) }""",
            w=np.random.default_rng(1).integers(-90, 90, (8, 6)).astype(np.int8),
        ),
        lambda rows, rng: {
            "x": (rng.standard_normal((rows, 8)) * rng.choice([0.1, 1, 30], (rows, 1))).astype(np.float32)
        },
    ),
    "quantized by the range of all, codes out": Mixing(
        graph(
            "(float[batch,8] x) => (uint8[batch,8] q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear (x) }"
        ),
        floats("x", 8),
    ),
    # ---- places and orders
    "sums up to here": Mixing(
        graph("(float[samples] x) => (float[samples] y) { y = CumSum (x, a) }", a=np.array(0)), wave
    ),
    "sums from here on, without itself": Mixing(
        graph(
            "(float[steps,2] x) => (float[steps,2] y) { y = CumSum <reverse=1, exclusive=1> (x, a) }",
            a=np.array(0),
        ),
        floats("x", 2),
    ),
    "backwards": Mixing(
        graph(
            "(float[frames,4] x) => (float[frames,4] y) { y = Slice (x, from, to, axes, steps) }",
            **{"from": np.array([-1]), "to": np.array([-(2**31)]), "axes": ZERO, "steps": np.array([-1])},
        ),
        floats("x", 4),
    ),
    "less the one before": Mixing(
        graph(
            """(float[samples] x) => (float[samples] y) {
            p = Pad (x, pads) q = Slice (p, from, to, axes) y = Sub (x, q) }""",
            **{"pads": np.array([1, 0]), "from": ZERO, "to": np.array([-1]), "axes": ZERO},
        ),
        wave,
    ),
    "a filter along the samples": Mixing(
        graph(
            """(float[samples] x) => (float[samples] y) {
            u = Unsqueeze (x, axes) c = Conv <kernel_shape=[5], pads=[2,2]> (u, w) y = Squeeze (c, axes) }""",
            axes=np.array([0, 1]),
            w=weights(1, 1, 5),
        ),
        wave,
    ),
    "its place is added": Mixing(
        graph(
            """(float[tokens,6] x) => (float[tokens,6] y) {
            n = Shape <end=1> (x) p = Slice (table, from, n, axes) y = Add (x, p) }""",
            table=weights(2048, 6),
            **{"from": ZERO, "axes": ZERO},
        ),
        floats("x", 6),
    ),
    "only the lower triangle": Mixing(
        graph("(float[n,5] x) => (float[n,5] y) { y = Trilu <upper=0> (x) }"), floats("x", 5)
    ),
    "a diagonal": Mixing(
        graph("(float[n,5] x) => (float[n,5] y) { e = EyeLike (x) y = Add (x, e) }"), floats("x", 5)
    ),
    "sorted": Mixing(
        graph("""(float[n] x) => (float[n] y, int64[n] i) { k = Shape (x) y, i = TopK <axis=0> (x, k) }"""),
        wave,
    ),
    "how many are less": Mixing(
        graph(
            """(float[n] x) => (int64[n] rank) {
            l = Unsqueeze (x, one) r = Unsqueeze (x, zero) c = Less (r, l) i = Cast <to=7> (c)
            rank = ReduceSum <keepdims=0> (i, one) }""",
            one=ONE,
            zero=ZERO,
        ),
        wave,
    ),
    "rows and columns of the whole are mixed": Mixing(
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            r = Reshape (x, to) t = Transpose <perm=[1,0]> (r) y = Reshape (t, back) }""",
            to=np.array([4, -1]),
            back=np.array([-1, 4]),
        ),
        floats("x", 4),
    ),
    "compared with the first": Mixing(
        graph(
            """(float[documents,6] x) => (float[documents] y) {
            f = Slice (x, from, to, axes) p = Mul (x, f) y = ReduceSum <keepdims=0> (p, one) }""",
            **{"from": ZERO, "to": ONE, "axes": ZERO, "one": ONE},
        ),
        floats("x", 6),
    ),
}
