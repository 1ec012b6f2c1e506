"""Models whose axis 0 is free and no batch: points, nodes, tokens, samples, time. What one row of the
answer says hangs on the others, on its place, or on how many there are.

Each draws a request of so many rows as its users would send it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

from .graphs import graph, weights

Rng = np.random.Generator
Draw = Callable[[int, Rng], dict[str, Any]]


class Mixing(NamedTuple):
    model: ModelProto
    draw: Draw  # (rows, rng) -> inputs


def _floats(name: str, *tail: int) -> Draw:
    return lambda rows, rng: {name: rng.standard_normal((rows, *tail)).astype(np.float32)}


def _wave(rows: int, rng: Rng) -> dict[str, Any]:
    return {"x": rng.standard_normal(rows).astype(np.float32)}


def _graph_of(rows: int, rng: Rng, edges: int) -> dict[str, Any]:
    return {
        "x": rng.standard_normal((rows, 4)).astype(np.float32),
        "edges": rng.integers(0, rows, (edges, 2)),
    }


def _pieces(rows: int, rng: Rng) -> dict[str, Any]:
    x = rng.standard_normal((rows, 4)).astype(np.float32)
    return {"x": x, "piece": np.sort(rng.integers(0, 3, rows))}


def _pair(left: str, right: str, extra: int) -> Draw:
    """Two inputs with leading axes of their own; of one size where `extra` is 0."""
    return lambda rows, rng: {
        left: rng.standard_normal((rows, 8)).astype(np.float32),
        right: rng.standard_normal((rows + extra, 8)).astype(np.float32),
    }


def _boxes(rows: int, rng: Rng) -> dict[str, Any]:
    corners = rng.random((rows, 2)).astype(np.float32) * 4
    return {"boxes": np.concatenate([corners, corners + 1], 1), "scores": rng.random(rows).astype(np.float32)}


ZERO, ONE = np.array([0]), np.array([1])

KINDS: dict[str, Mixing] = {
    # ---- statistics over the rows
    "softmax over tokens": Mixing(
        graph("(float[tokens,5] x) => (float[tokens,5] y) { y = Softmax <axis=0> (x) }"), _floats("x", 5)
    ),
    "the mean is taken off": Mixing(
        graph(
            "(float[nodes,5] x) => (float[nodes,5] y) { m = ReduceMean <keepdims=1> (x, axes) y = Sub (x, m) }",
            axes=ZERO,
        ),
        _floats("x", 5),
    ),
    "standardized over samples": Mixing(
        graph(
            """(float[samples] x) => (float[samples] y) {
            m = ReduceMean (x, axes) d = Sub (x, m) s = Mul (d, d) v = ReduceMean (s, axes) r = Sqrt (v)
            y = Div (d, r) }""",
            axes=ZERO,
        ),
        lambda rows, rng: _wave(rows + 2, rng),
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
        _floats("x", 3),
    ),
    "divided by the largest": Mixing(
        graph(
            "(float[pixels,3] x) => (float[pixels,3] y) { a = Abs (x) m = ReduceMax (a, axes) y = Div (x, m) }",
            axes=ZERO,
        ),
        _floats("x", 3),
    ),
    "divided by their number": Mixing(
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            s = Shape <end=1> (x) f = Cast <to=1> (s) y = Div (x, f) }"""
        ),
        _floats("x", 4),
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
        _floats("x", 8),
    ),
    # ---- places and orders
    "sums up to here": Mixing(
        graph("(float[samples] x) => (float[samples] y) { y = CumSum (x, a) }", a=np.array(0)), _wave
    ),
    "sums from here on, without itself": Mixing(
        graph(
            "(float[steps,2] x) => (float[steps,2] y) { y = CumSum <reverse=1, exclusive=1> (x, a) }",
            a=np.array(0),
        ),
        _floats("x", 2),
    ),
    "backwards": Mixing(
        graph(
            "(float[frames,4] x) => (float[frames,4] y) { y = Slice (x, from, to, axes, steps) }",
            **{"from": np.array([-1]), "to": np.array([-(2**31)]), "axes": ZERO, "steps": np.array([-1])},
        ),
        _floats("x", 4),
    ),
    "less the one before": Mixing(
        graph(
            """(float[samples] x) => (float[samples] y) {
            p = Pad (x, pads) q = Slice (p, from, to, axes) y = Sub (x, q) }""",
            **{"pads": np.array([1, 0]), "from": ZERO, "to": np.array([-1]), "axes": ZERO},
        ),
        _wave,
    ),
    "a filter along the samples": Mixing(
        graph(
            """(float[samples] x) => (float[samples] y) {
            u = Unsqueeze (x, axes) c = Conv <kernel_shape=[5], pads=[2,2]> (u, w) y = Squeeze (c, axes) }""",
            axes=np.array([0, 1]),
            w=weights(1, 1, 5),
        ),
        _wave,
    ),
    "its place is added": Mixing(
        graph(
            """(float[tokens,6] x) => (float[tokens,6] y) {
            n = Shape <end=1> (x) p = Slice (table, from, n, axes) y = Add (x, p) }""",
            table=weights(2048, 6),
            **{"from": ZERO, "axes": ZERO},
        ),
        _floats("x", 6),
    ),
    "only the lower triangle": Mixing(
        graph("(float[n,5] x) => (float[n,5] y) { y = Trilu <upper=0> (x) }"), _floats("x", 5)
    ),
    "a diagonal": Mixing(
        graph("(float[n,5] x) => (float[n,5] y) { e = EyeLike (x) y = Add (x, e) }"), _floats("x", 5)
    ),
    "sorted": Mixing(
        graph("""(float[n] x) => (float[n] y, int64[n] i) { k = Shape (x) y, i = TopK <axis=0> (x, k) }"""),
        _wave,
    ),
    "how many are less": Mixing(
        graph(
            """(float[n] x) => (int64[n] rank) {
            l = Unsqueeze (x, one) r = Unsqueeze (x, zero) c = Less (r, l) i = Cast <to=7> (c)
            rank = ReduceSum <keepdims=0> (i, one) }""",
            one=ONE,
            zero=ZERO,
        ),
        _wave,
    ),
    "rows and columns of the whole are mixed": Mixing(
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            r = Reshape (x, to) t = Transpose <perm=[1,0]> (r) y = Reshape (t, back) }""",
            to=np.array([4, -1]),
            back=np.array([-1, 4]),
        ),
        _floats("x", 4),
    ),
    "compared with the first": Mixing(
        graph(
            """(float[documents,6] x) => (float[documents] y) {
            f = Slice (x, from, to, axes) p = Mul (x, f) y = ReduceSum <keepdims=0> (p, one) }""",
            **{"from": ZERO, "to": ONE, "axes": ZERO, "one": ONE},
        ),
        _floats("x", 6),
    ),
    # ---- attention, convolution over a graph, sets
    "attention over tokens": Mixing(
        graph(
            """(float[tokens,8] x) => (float[tokens,8] y) {
            t = Transpose <perm=[1,0]> (x) s = MatMul (x, t) p = Softmax <axis=-1> (s) y = MatMul (p, x) }"""
        ),
        _floats("x", 8),
    ),
    "attention, with its weights": Mixing(
        graph(
            """(float[sequence,8] x) => (float[sequence,8] y, float[sequence,keys] p) {
            t = Transpose <perm=[1,0]> (x) s = MatMul (x, t) p = Softmax <axis=-1> (s) y = MatMul (p, x) }"""
        ),
        _floats("x", 8),
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
        _floats("x", 3),
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
        _floats("x", 3),
    ),
    "a point cloud's class": Mixing(
        graph(
            """(float[points,3] x) => (float[1,6] y) {
            h = MatMul (x, w) r = Relu (h) m = ReduceMax <keepdims=1> (r, axes) y = MatMul (m, v) }""",
            w=weights(3, 16),
            v=weights(16, 6),
            axes=ZERO,
        ),
        _floats("x", 3),
    ),
    "a set's sum, without an axis": Mixing(
        graph(
            """(float[elements,3] x) => (float[8] y) {
            h = MatMul (x, w) r = Relu (h) y = ReduceSum <keepdims=0> (r, axes) }""",
            w=weights(3, 8),
            axes=ZERO,
        ),
        _floats("x", 3),
    ),
    "each point beside the whole": Mixing(
        graph(
            """(float[points,3] x) => (float[points,32] y) {
            h = MatMul (x, w) m = ReduceMax <keepdims=1> (h, axes) s = Shape (h) e = Expand (m, s)
            y = Concat <axis=1> (h, e) }""",
            w=weights(3, 16),
            axes=ZERO,
        ),
        _floats("x", 3),
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
        lambda rows, rng: _graph_of(rows, rng, rows),  # as many edges as nodes: nothing gives it away
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
        lambda rows, rng: _graph_of(rows, rng, 2 * rows + 1),
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
        _pieces,
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
        lambda rows, rng: _floats("x", 2)(rows + 2, rng),
    ),
    "which one is the best": Mixing(
        graph("(float[n,5] x) => (int64[5] y) { y = ArgMax <axis=0, keepdims=0> (x) }"), _floats("x", 5)
    ),
    "those above zero": Mixing(
        graph(
            """(float[n,4] x) => (float[kept,4] y) {
            m = ReduceMax <keepdims=0> (x, one) c = Greater (m, zero) y = Compress <axis=0> (x, c) }""",
            one=ONE,
            zero=np.float32(0.9),
        ),
        _floats("x", 4),
    ),
    "those above zero, under the name of all": Mixing(  # a claim: the axis is called n, and is not n long
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            m = ReduceMax <keepdims=0> (x, one) c = Greater (m, zero) y = Compress <axis=0> (x, c) }""",
            checked=False,
            one=ONE,
            zero=np.float32(0.9),
        ),
        _floats("x", 4),
    ),
    "where it is not zero": Mixing(
        graph("(float[n] x) => (int64[1,found] y) { r = Relu (x) y = NonZero (r) }"), _wave
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
        _floats("x", 2),
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
        _boxes,
    ),
    "places of the largest, counted over all": Mixing(
        graph(
            """(float[batch,1,4,4] x) => (float[batch,1,2,2] y, int64[batch,1,2,2] i) {
            y, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) }"""
        ),
        _floats("x", 1, 4, 4),
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
        lambda rows, rng: _wave(rows + 4, rng),
    ),
    # ---- two leading axes
    "images by texts": Mixing(
        graph(
            """(float[image_batch_size,8] image, float[text_batch_size,8] text)
            => (float[image_batch_size,text_batch_size] per_image, float[text_batch_size,image_batch_size] per_text) {
            t = Transpose <perm=[1,0]> (text) per_image = MatMul (image, t)
            per_text = Transpose <perm=[1,0]> (per_image) }"""
        ),
        _pair("image", "text", 0),
    ),
    "images by other texts, and their embeddings": Mixing(
        graph(
            """(float[image_batch_size,8] image, float[text_batch_size,8] text)
            => (float[image_batch_size,text_batch_size] logits, float[image_batch_size,4] i, float[text_batch_size,4] j) {
            i = MatMul (image, w) j = MatMul (text, w) t = Transpose <perm=[1,0]> (j) logits = MatMul (i, t) }""",
            w=weights(8, 4),
        ),
        _pair("image", "text", 3),
    ),
    "queries look at keys": Mixing(
        graph(
            """(float[queries,8] q, float[keys,8] k) => (float[queries,8] y) {
            t = Transpose <perm=[1,0]> (k) s = MatMul (q, t) p = Softmax <axis=-1> (s) y = MatMul (p, k) }"""
        ),
        _pair("q", "k", 0),
    ),
    "five queries look at nine keys": Mixing(
        graph(
            """(float[queries,8] q, float[keys,8] k) => (float[queries,8] y) {
            t = Transpose <perm=[1,0]> (k) s = MatMul (q, t) p = Softmax <axis=-1> (s) y = MatMul (p, k) }"""
        ),
        _pair("q", "k", 4),
    ),
    # ---- recurrent, and control flow over the rows
    "an LSTM over the rows": Mixing(
        graph(
            """(float[seq,batch,3] x) => (float[seq,batch,4] y) {
            h, last, cell = LSTM <hidden_size=4> (x, w, r) y = Squeeze (h, one) }""",
            checked=False,
            w=weights(1, 16, 3),
            r=weights(1, 16, 4),
            one=ONE,
        ),
        _floats("x", 1, 3),
    ),
    "a GRU both ways over the rows": Mixing(
        graph(
            """(float[sequence,batch,3] x) => (float[sequence,2,batch,4] y, float[2,batch,4] last) {
            y, last = GRU <hidden_size=4, direction="bidirectional"> (x, w, r) }""",
            w=weights(2, 12, 3),
            r=weights(2, 12, 4),
        ),
        _floats("x", 2, 3),
    ),
    "a transformer, sequence first": Mixing(
        graph(
            """(float[sequence,batch,8] x) => (float[sequence,batch,8] y) {
            b = Transpose <perm=[1,0,2]> (x) t = Transpose <perm=[1,2,0]> (x) s = MatMul (b, t)
            p = Softmax <axis=-1> (s) o = MatMul (p, b) y = Transpose <perm=[1,0,2]> (o) }"""
        ),
        _floats("x", 3, 8),
    ),
    "a scan that carries a state": Mixing(
        graph(
            """(float[steps,3] x) => (float[steps,3] y, float[3] last) {
            last, y = Scan <num_scan_inputs=1, body = body (float[3] s, float[3] e) => (float[3] n, float[3] o)
            { h = Mul (s, half) n = Add (h, e) o = Identity (n) }> (start, x) }""",
            checked=False,
            start=np.zeros(3, np.float32),
            half=np.float32(0.5),
        ),
        _floats("x", 3),
    ),
    "a branch by the sum of all": Mixing(
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            s = ReduceSum <keepdims=0> (x) c = Greater (s, zero)
            y = If (c) <then_branch = then () => (float[n,4] a) { a = Mul (x, two) },
                        else_branch = else () => (float[n,4] b) { b = Neg (x) }> }""",
            checked=False,
            zero=np.float32(0),
            two=np.float32(2),
        ),
        _floats("x", 4),
    ),
    # ---- what few rows, or other values, do not show
    "less the one five before": Mixing(
        graph(
            """(float[samples,2] x) => (float[samples,2] y) {
            p = Pad (x, pads) q = Slice (p, from, to, axes) y = Sub (x, q) }""",
            **{"pads": np.array([5, 0, 0, 0]), "from": ZERO, "to": np.array([-5]), "axes": ZERO},
        ),
        _floats("x", 2),
    ),
    "a wide filter with a hole in its middle": Mixing(
        graph(
            """(float[samples] x) => (float[samples] y) {
            u = Unsqueeze (x, axes) c = Conv <kernel_shape=[3], dilations=[9], pads=[9,9]> (u, w)
            y = Squeeze (c, axes) }""",
            axes=np.array([0, 1]),
            w=weights(1, 1, 3),
        ),
        _wave,
    ),
    "the first twelve, and the rest otherwise": Mixing(
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            a = Slice (x, zero, twelve, zero) b = Slice (x, twelve, end, zero) c = Neg (b)
            y = Concat <axis=0> (a, c) }""",
            zero=ZERO,
            twelve=np.array([12]),
            end=np.array([1 << 40]),
        ),
        lambda rows, rng: _floats("x", 4)(rows + 6, rng),
    ),
    "in groups of four": Mixing(
        graph(
            """(float[n,3] x) => (float[n,3] y) {
            g = Reshape (x, groups) m = ReduceMean <keepdims=1> (g, one) d = Sub (g, m) y = Reshape (d, back) }""",
            groups=np.array([-1, 4, 3]),
            back=np.array([-1, 3]),
            one=ONE,
        ),
        lambda rows, rng: _floats("x", 3)(4 * rows, rng),
    ),
    "rows past the thirty-third are otherwise": Mixing(  # which only a request that is split could show
        graph(
            """(float[n,4] x) => (float[n,4] y) {
            s = Shape <end=1> (x) q = Squeeze (s) r = Range (a, q, st) m = Div (r, many) c = Cast <to=1> (m)
            u = Unsqueeze (c, one) y = Add (x, u) }""",
            checked=False,
            a=np.array(0),
            st=np.array(1),
            many=np.array(33),
            one=ONE,
        ),
        _floats("x", 4),
    ),
    "a thousandth of the mean is added": Mixing(
        graph(
            """(float[n,5] x) => (float[n,5] y) {
            m = ReduceMean <keepdims=1> (x, axes) s = Mul (m, share) y = Add (x, s) }""",
            axes=ZERO,
            share=np.float32(1e-3),
        ),
        lambda rows, rng: {"x": (rng.standard_normal((rows, 5)) + 3).astype(np.float32)},
    ),
    "a row that was there already is nought": Mixing(
        graph(
            """(int64[n,2] x) => (int64[n,2] y) {
            l = Unsqueeze (x, one) r = Unsqueeze (x, zero) e = Equal (l, r) i = Cast <to=7> (e)
            a = ReduceMin <keepdims=0> (i, two) t = Trilu <upper=0> (a, below)
            s = ReduceMax <keepdims=1> (t, one) k = Sub (single, s) y = Mul (x, k) }""",
            one=ONE,
            zero=ZERO,
            two=np.array([2]),
            below=np.array(-1),
            single=np.array(1),
        ),
        lambda rows, rng: {"x": rng.integers(1, 3, (rows, 2))},
    ),
    "whether it is above the mean": Mixing(
        graph(
            "(float[n] x) => (bool[n] y) { m = ReduceMean <keepdims=0> (x) y = Greater (x, m) }",
        ),
        _wave,
    ),
    "distances of all pairs, under one name": Mixing(
        graph(
            """(float[batch,3] x) => (float[batch,batch] d) {
            l = Unsqueeze (x, one) r = Unsqueeze (x, zero) e = Sub (l, r) s = Mul (e, e)
            d = ReduceSum <keepdims=0> (s, two) }""",
            one=ONE,
            zero=ZERO,
            two=np.array([2]),
        ),
        _floats("x", 3),
    ),
    "a loss of the batch": Mixing(
        graph(
            "(float[batch,3] x) => (float[batch,3] y, float loss) { y = Neg (x) loss = ReduceMean <keepdims=0> (x) }"
        ),
        _floats("x", 3),
    ),
    "above a hundred, the largest decides": Mixing(
        graph(
            """(float[n,3] x) => (float[n,3] y) {
            d = Sub (x, hundred) o = Relu (d) m = ReduceMax <keepdims=1> (o, axes) y = Sub (x, m) }""",
            axes=ZERO,
            hundred=np.float32(100),
        ),
        lambda rows, rng: {"x": (rng.standard_normal((rows, 3)) * 60).astype(np.float32)},
    ),
    # ---- what a batch shares decides
    "mixed when it is told to": Mixing(
        graph(
            """(float[n,4] x, bool mix) => (float[n,4] y) {
            y = If (mix) <then_branch = then () => (float[n,4] a) { a = Softmax <axis=0> (x) },
                          else_branch = other () => (float[n,4] b) { b = Neg (x) }> }""",
            checked=False,
        ),
        lambda rows, rng: _floats("x", 4)(rows, rng) | {"mix": np.array(bool(rng.random() < 0.7))},
    ),
    "mixed when it is told not to keep apart": Mixing(
        graph(
            """(float[n,4] x, bool apart) => (float[n,4] y) {
            y = If (apart) <then_branch = then () => (float[n,4] a) { a = Neg (x) },
                            else_branch = other () => (float[n,4] b) { b = Softmax <axis=0> (x) }> }""",
            checked=False,
        ),
        lambda rows, rng: _floats("x", 4)(rows, rng) | {"apart": np.array(bool(rng.random() < 0.3))},
    ),
    "summed along the axis that the request names": Mixing(
        graph("(float[n,4] x, int64 axis) => (float[n,4] y) { y = CumSum (x, axis) }"),
        lambda rows, rng: _floats("x", 4)(rows, rng) | {"axis": np.array(int(rng.choice([0, 0, 1, -2])))},
    ),
    "mixed above a rate that nobody would draw": Mixing(
        graph(
            """(float[n,4] x, int64 rate) => (float[n,4] y) {
            c = Greater (rate, k) y = If (c) <then_branch = then () => (float[n,4] a) { a = CumSum (x, zero) },
                                 else_branch = other () => (float[n,4] b) { b = Neg (x) }> }""",
            checked=False,
            k=np.array(12345),
            zero=np.array(0),
        ),
        lambda rows, rng: (
            _floats("x", 4)(rows, rng) | {"rate": np.array(int(rng.choice([8000, 16000, 16000])))}
        ),
    ),
    "a loop over the rows": Mixing(
        graph(
            """(float[n,4] x) => (float[4] y) {
            m = Shape <end=1> (x) k = Squeeze (m)
            y = Loop (k, go, start) <body = body (int64 i, bool c, float[4] s) => (bool d, float[4] t)
            { d = Identity (c) e = Gather <axis=0> (x, i) h = Mul (s, half) t = Add (h, e) }> }""",
            checked=False,
            go=np.array(True),
            start=np.zeros(4, np.float32),
            half=np.float32(0.5),
        ),
        _floats("x", 4),
    ),
}

# Inputs of one request have rows of different things, as many as they like, or a switch: two requests' cannot
# be put together.
APART = (
    "a graph's messages along other edges",
    "images by other texts, and their embeddings",
    "mixed when it is told to",
    "mixed when it is told not to keep apart",
    "summed along the axis that the request names",
    "mixed above a rate that nobody would draw",
    "five queries look at nine keys",
    "in groups of four",  # whole groups could be put together, and no row
)
