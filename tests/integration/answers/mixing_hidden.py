"""Rows whose mixing few rows, or ordinary values, do not show; two leading axes, control flow."""

from __future__ import annotations

import numpy as np

from .draws import ONE, ZERO, Mixing, floats, pair, wave
from .graphs import graph, weights

KINDS: dict[str, Mixing] = {
    # ---- two leading axes
    "images by texts": Mixing(
        graph(
            """(float[image_batch_size,8] image, float[text_batch_size,8] text)
            => (float[image_batch_size,text_batch_size] per_image, float[text_batch_size,image_batch_size] per_text) {
            t = Transpose <perm=[1,0]> (text) per_image = MatMul (image, t)
            per_text = Transpose <perm=[1,0]> (per_image) }"""
        ),
        pair("image", "text", 0),
    ),
    "images by other texts, and their embeddings": Mixing(
        graph(
            """(float[image_batch_size,8] image, float[text_batch_size,8] text)
            => (float[image_batch_size,text_batch_size] logits, float[image_batch_size,4] i, float[text_batch_size,4] j) {
            i = MatMul (image, w) j = MatMul (text, w) t = Transpose <perm=[1,0]> (j) logits = MatMul (i, t) }""",
            w=weights(8, 4),
        ),
        pair("image", "text", 3),
    ),
    "queries look at keys": Mixing(
        graph(
            """(float[queries,8] q, float[keys,8] k) => (float[queries,8] y) {
            t = Transpose <perm=[1,0]> (k) s = MatMul (q, t) p = Softmax <axis=-1> (s) y = MatMul (p, k) }"""
        ),
        pair("q", "k", 0),
    ),
    "five queries look at nine keys": Mixing(
        graph(
            """(float[queries,8] q, float[keys,8] k) => (float[queries,8] y) {
            t = Transpose <perm=[1,0]> (k) s = MatMul (q, t) p = Softmax <axis=-1> (s) y = MatMul (p, k) }"""
        ),
        pair("q", "k", 4),
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
        floats("x", 1, 3),
    ),
    "a GRU both ways over the rows": Mixing(
        graph(
            """(float[sequence,batch,3] x) => (float[sequence,2,batch,4] y, float[2,batch,4] last) {
            y, last = GRU <hidden_size=4, direction="bidirectional"> (x, w, r) }""",
            w=weights(2, 12, 3),
            r=weights(2, 12, 4),
        ),
        floats("x", 2, 3),
    ),
    "a transformer, sequence first": Mixing(
        graph(
            """(float[sequence,batch,8] x) => (float[sequence,batch,8] y) {
            b = Transpose <perm=[1,0,2]> (x) t = Transpose <perm=[1,2,0]> (x) s = MatMul (b, t)
            p = Softmax <axis=-1> (s) o = MatMul (p, b) y = Transpose <perm=[1,0,2]> (o) }"""
        ),
        floats("x", 3, 8),
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
        floats("x", 3),
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
        floats("x", 4),
    ),
    # ---- what few rows, or other values, do not show
    "less the one five before": Mixing(
        graph(
            """(float[samples,2] x) => (float[samples,2] y) {
            p = Pad (x, pads) q = Slice (p, from, to, axes) y = Sub (x, q) }""",
            **{"pads": np.array([5, 0, 0, 0]), "from": ZERO, "to": np.array([-5]), "axes": ZERO},
        ),
        floats("x", 2),
    ),
    "a wide filter with a hole in its middle": Mixing(
        graph(
            """(float[samples] x) => (float[samples] y) {
            u = Unsqueeze (x, axes) c = Conv <kernel_shape=[3], dilations=[9], pads=[9,9]> (u, w)
            y = Squeeze (c, axes) }""",
            axes=np.array([0, 1]),
            w=weights(1, 1, 3),
        ),
        wave,
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
        lambda rows, rng: floats("x", 4)(rows + 6, rng),
    ),
    "in groups of four": Mixing(
        graph(
            """(float[n,3] x) => (float[n,3] y) {
            g = Reshape (x, groups) m = ReduceMean <keepdims=1> (g, one) d = Sub (g, m) y = Reshape (d, back) }""",
            groups=np.array([-1, 4, 3]),
            back=np.array([-1, 3]),
            one=ONE,
        ),
        lambda rows, rng: floats("x", 3)(4 * rows, rng),
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
        floats("x", 4),
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
        wave,
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
        floats("x", 3),
    ),
    "a loss of the batch": Mixing(
        graph(
            "(float[batch,3] x) => (float[batch,3] y, float loss) { y = Neg (x) loss = ReduceMean <keepdims=0> (x) }"
        ),
        floats("x", 3),
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
    "cut to the longest of them": Mixing(
        graph(
            """(float[batch,16] x, int64[batch] lengths) => (float[batch,time] y) {
            m = ReduceMax <keepdims=1> (lengths) y = Slice (x, zero, m, one) }""",
            zero=ZERO,
            one=ONE,
        ),
        lambda rows, rng: floats("x", 16)(rows, rng) | {"lengths": rng.integers(1, 17, rows)},
    ),
    "the mean is taken away from what lies between 0 and 1": Mixing(
        graph(
            """(float[batch,4] x) => (float[batch,4] y) {
            l = ReduceMin <keepdims=0> (x) h = ReduceMax <keepdims=0> (x) a = GreaterOrEqual (l, nought)
            b = LessOrEqual (h, single) c = And (a, b)
            y = If (c) <then_branch = then () => (float[batch,4] p) { m = ReduceMean <keepdims=1> (x, zero) p = Sub (x, m) },
                        else_branch = other () => (float[batch,4] q) { q = Neg (x) }> }""",
            checked=False,
            nought=np.float32(0),
            single=np.float32(1),
            zero=ZERO,
        ),
        lambda rows, rng: {"x": rng.random((rows, 4)).astype(np.float32)},
    ),
    # ---- what a batch shares decides
    "mixed when it is told to": Mixing(
        graph(
            """(float[n,4] x, bool mix) => (float[n,4] y) {
            y = If (mix) <then_branch = then () => (float[n,4] a) { a = Softmax <axis=0> (x) },
                          else_branch = other () => (float[n,4] b) { b = Neg (x) }> }""",
            checked=False,
        ),
        lambda rows, rng: floats("x", 4)(rows, rng) | {"mix": np.array(bool(rng.random() < 0.7))},
    ),
    "mixed when it is told not to keep apart": Mixing(
        graph(
            """(float[n,4] x, bool apart) => (float[n,4] y) {
            y = If (apart) <then_branch = then () => (float[n,4] a) { a = Neg (x) },
                            else_branch = other () => (float[n,4] b) { b = Softmax <axis=0> (x) }> }""",
            checked=False,
        ),
        lambda rows, rng: floats("x", 4)(rows, rng) | {"apart": np.array(bool(rng.random() < 0.3))},
    ),
    "summed along the axis that the request names": Mixing(
        graph("(float[n,4] x, int64 axis) => (float[n,4] y) { y = CumSum (x, axis) }"),
        lambda rows, rng: floats("x", 4)(rows, rng) | {"axis": np.array(int(rng.choice([0, 0, 1, -2])))},
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
            floats("x", 4)(rows, rng) | {"rate": np.array(int(rng.choice([8000, 16000, 16000])))}
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
        floats("x", 4),
    ),
}
