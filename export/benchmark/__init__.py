"""benchmark/: exports, evaluates, times, and ranks many candidate architectures.

Exports run in child processes, because a candidate may crash its process. Evaluation and timing happen in
this process, while no child works.
"""

from .order import Plan, benchmark

__all__ = ["Plan", "benchmark"]
