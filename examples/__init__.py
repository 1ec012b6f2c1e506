"""examples/: programs to start from (docs/examples.md), the model and the scans of `batchyard demo`, a
configuration.

The folders below are for a checkout: the wheel has none of them.
"""
