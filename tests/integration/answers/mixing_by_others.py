"""Rows that look at some others, or choose them: attention, graphs, sets, selections."""

from __future__ import annotations

import numpy as np

from .draws import ONE, ZERO, Mixing, boxes, floats, graph_of, pieces, wave
from .graphs import graph, weights

KINDS: dict[str, Mixing] = {
    # ---- attention, convolution over a graph, sets
    "attention over tokens": Mixing(
        graph(
            """(float[tokens,8] x) => (float[tokens,8] y) {
            t = Transpose <perm=[1,0]> (x) s = MatMul (x, t) p = Softmax <axis=-1> (s) y = MatMul (p, x) }"""
        ),
        floats("x", 8),
    ),
    "attention, with its weights": Mixing(
        graph(
            """(float[sequence,8] x) => (float[sequence,8] y, float[sequence,keys] p) {
            t = Transpose <perm=[1,0]> (x) s = MatMul (x, t) p = Softmax <axis=-1> (s) y = MatMul (p, x) }"""
        ),
        floats("x", 8),
    ),
    "distances of all pairs": Mixing(
        graph(
            """(float[points,3] x) => (float[points,others] d) {
            l = Unsqueeze (x, one) r = Unsqueeze (x, zero) e = Sub (l, r) s = Mul (e, e)
            d = ReduceSum <keepdims=0> (s, two) }""",
            one=ONE,
            zero=ZERO,
            two=np.array([2]),
        ),
        floats("x", 3),
    ),
    "the nearest of the others": Mixing(
        graph(
            """(float[points,3] x) => (int64[points] nearest) {
            l = Unsqueeze (x, one) r = Unsqueeze (x, zero) e = Sub (l, r) s = Mul (e, e)
            d = ReduceSum <keepdims=0> (s, two) n = EyeLike (d) b = Mul (n, far) f = Add (d, b)
            nearest = ArgMin <axis=1, keepdims=0> (f) }""",
            one=ONE,
            zero=ZERO,
            two=np.array([2]),
            far=np.float32(1e9),
        ),
        floats("x", 3),
    ),
    "a point cloud's class": Mixing(
        graph(
            """(float[points,3] x) => (float[1,6] y) {
            h = MatMul (x, w) r = Relu (h) m = ReduceMax <keepdims=1> (r, axes) y = MatMul (m, v) }""",
            w=weights(3, 16),
            v=weights(16, 6),
            axes=ZERO,
        ),
        floats("x", 3),
    ),
    "a set's sum, without an axis": Mixing(
        graph(
            """(float[elements,3] x) => (float[8] y) {
            h = MatMul (x, w) r = Relu (h) y = ReduceSum <keepdims=0> (r, axes) }""",
            w=weights(3, 8),
            axes=ZERO,
        ),
        floats("x", 3),
    ),
    "each point beside the whole": Mixing(
        graph(
            """(float[points,3] x) => (float[points,32] y) {
            h = MatMul (x, w) m = ReduceMax <keepdims=1> (h, axes) s = Shape (h) e = Expand (m, s)
            y = Concat <axis=1> (h, e) }""",
            w=weights(3, 16),
            axes=ZERO,
        ),
        floats("x", 3),
    ),
    "a graph's messages": Mixing(
        graph(
            """(float[nodes,4] x, int64[edges,2] edges) => (float[nodes,4] y) {
            f = Gather <axis=1> (edges, zero) t = Gather <axis=1> (edges, one) m = Gather <axis=0> (x, f)
            u = Unsqueeze (t, axes) y = ScatterND <reduction="add"> (x, u, m) }""",
            zero=np.array(0),
            one=np.array(1),
            axes=ONE,
        ),
        lambda rows, rng: graph_of(rows, rng, rows),  # as many edges as nodes: nothing gives it away
    ),
    "a graph's messages along other edges": Mixing(
        graph(
            """(float[nodes,4] x, int64[edges,2] edges) => (float[nodes,4] y) {
            f = Gather <axis=1> (edges, zero) t = Gather <axis=1> (edges, one) m = Gather <axis=0> (x, f)
            u = Unsqueeze (t, axes) y = ScatterND <reduction="add"> (x, u, m) }""",
            zero=np.array(0),
            one=np.array(1),
            axes=ONE,
        ),
        lambda rows, rng: graph_of(rows, rng, 2 * rows + 1),
    ),
    "a graph's edges": Mixing(
        graph(
            "(float[nodes,4] x, int64[edges] i) => (float[edges,4] y) { y = Gather <axis=0> (x, i) }",
        ),
        lambda rows, rng: {
            "x": rng.standard_normal((rows, 4)).astype(np.float32),
            "i": rng.integers(0, rows, rows),
        },
    ),
    "nodes pooled by graph": Mixing(
        graph(
            """(float[nodes,4] x, int64[nodes] piece) => (float[3,4] y) {
            u = Unsqueeze (piece, axes) y = ScatterND <reduction="add"> (z, u, x) }""",
            z=np.zeros((3, 4), np.float32),
            axes=ONE,
        ),
        pieces,
    ),
    "counted into bins": Mixing(
        graph(
            """(int64[n] x) => (int64[10] y) {
            u = Unsqueeze (x, axes) s = Shape (x) o = ConstantOfShape <value = int64[1] {1}> (s)
            y = ScatterND <reduction="add"> (z, u, o) }""",
            z=np.zeros(10, np.int64),
            axes=ONE,
        ),
        lambda rows, rng: {"x": rng.integers(0, 10, rows)},
    ),
    # ---- rows that go, come, or are chosen
    "the three best": Mixing(
        graph(
            "(float[n,2] x) => (float[3,2] y, int64[3,2] i) { y, i = TopK <axis=0> (x, k) }", k=np.array([3])
        ),
        lambda rows, rng: floats("x", 2)(rows + 2, rng),
    ),
    "which one is the best": Mixing(
        graph("(float[n,5] x) => (int64[5] y) { y = ArgMax <axis=0, keepdims=0> (x) }"), floats("x", 5)
    ),
    "those above zero": Mixing(
        graph(
            """(float[n,4] x) => (float[kept,4] y) {
            m = ReduceMax <keepdims=0> (x, one) c = Greater (m, zero) y = Compress <axis=0> (x, c) }""",
            one=ONE,
            zero=np.float32(0.9),
        ),
        floats("x", 4),
    ),
    "those above zero, under the name of all": Mixing(  # a claim: the axis is called n, and is not n long
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            m = ReduceMax <keepdims=0> (x, one) c = Greater (m, zero) y = Compress <axis=0> (x, c) }""",
            checked=False,
            one=ONE,
            zero=np.float32(0.9),
        ),
        floats("x", 4),
    ),
    "where it is not zero": Mixing(
        graph("(float[n] x) => (int64[1,found] y) { r = Relu (x) y = NonZero (r) }"), wave
    ),
    "every value once": Mixing(
        graph(
            """(int64[n] x) => (int64[m] y, int64[m] first, int64[n] place, int64[m] count) {
            y, first, place, count = Unique <sorted=1> (x) }"""
        ),
        lambda rows, rng: {"x": rng.integers(0, 6, rows)},
    ),
    "every row twice": Mixing(
        graph("(float[n,2] x) => (float[twice,2] y) { y = Tile (x, by) }", by=np.array([2, 1])),
        floats("x", 2),
    ),
    "boxes that do not overlap": Mixing(
        graph(
            """(float[n,4] boxes, float[n] scores) => (int64[m,3] y) {
            b = Unsqueeze (boxes, zero) s = Unsqueeze (scores, both)
            y = NonMaxSuppression (b, s, k, iou, least) }""",
            zero=ZERO,
            both=np.array([0, 1]),
            k=np.array([100]),
            iou=np.array([0.5], np.float32),
            least=np.array([0.1], np.float32),
        ),
        boxes,
    ),
    "places of the largest, counted over all": Mixing(
        graph(
            """(float[batch,1,4,4] x) => (float[batch,1,2,2] y, int64[batch,1,2,2] i) {
            y, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) }"""
        ),
        floats("x", 1, 4, 4),
    ),
    "frames of a recording": Mixing(
        graph(
            """(float[samples] x) => (float[frames,8] y) {
            u = Unsqueeze (x, axes) c = Conv <kernel_shape=[4], strides=[2]> (u, w) s = Squeeze (c, zero)
            y = Transpose <perm=[1,0]> (s) }""",
            axes=np.array([0, 1]),
            zero=ZERO,
            w=weights(8, 1, 4),
        ),
        lambda rows, rng: wave(rows + 4, rng),
    ),
}
