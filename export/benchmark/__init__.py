"""benchmark/: many candidate architectures exported, evaluated, timed in turn, and ranked.

Exporting happens in processes of its own, because a candidate may take its process with it; evaluating and
timing happen here, when nothing of ours works beside.
"""

from .order import Plan, benchmark

__all__ = ["Plan", "benchmark"]
