"""A folder of candidate architectures for the handwritten digits, to rank by accuracy and latency:

    batchyard export --all examples/architectures out/ --benchmark --evaluate examples/digits_test.npz

`digits.toml` names a dozen by their parameters, `softmax.py` is one by itself. Each is trained for a few
seconds when it is made; real candidates would rather load weights that were trained elsewhere.
"""
