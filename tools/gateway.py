"""`python3 run measure gateway`: what HTTP costs, beside the client and the runtime alone, in one run.

Owns this comparison. Other servers were measured by the same share of the bare runtime (docs/gateway.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import numpy as np

from .. import BatchyardError
from ..bench import models, suite
from ..bench.bare import Bare
from ..bench.compare import Contender, Slice, interleave
from ..bench.report import Finding, Line
from ..bench.statistics import format_rate, format_share, format_time, rate_per_s, rows_per_s
from ..bench.target import Targets
from .served import gateway
from .wire import HttpLoad, output_of, request_of

HTTP = "gateway, HTTP"
MAX_BATCH = 8


def over_http(
    targets: Targets, model: str, in_flight: int, rounds: int, seconds: float, say: Callable[[str], None]
) -> Finding:
    """A model through the gateway with binary tensors: requests per second as a share of the bare runtime."""
    rows = suite.CNN_BARE_ROWS if model == "cnn" else 1
    contenders = [
        Contender(HTTP, partial(_open_http, targets, model, in_flight)),
        Contender(suite.OURS, partial(suite.open_yard, targets, model, MAX_BATCH, in_flight, check=True)),
        Contender(suite.BARE, partial(suite.open_bare, model, rows, targets.threads)),
    ]
    comparison = interleave(contenders, rounds, seconds, say=say)
    finding = suite.finding_of("gateway", comparison)
    for name in (HTTP, suite.OURS):
        ratio = comparison.ratio(name, suite.BARE, rows_per_s)
        finding.figures["ratios"][f"{name}: rows/s, to {suite.BARE}"] = asdict(ratio)
        summary = comparison.summary(name)
        finding.lines.append(
            Line(
                f"{model}, {in_flight} in flight: {name}",
                f"{format_rate(rate_per_s(comparison.pooled[name]))}, p50 {format_time(summary.p50_ns)}",
                f"{suite.BARE}, batch {rows}",
                format_rate(rows_per_s(comparison.pooled[suite.BARE])),
                f"{format_share(ratio)} of the rate",
            )
        )
    return finding


@contextmanager
def _open_http(targets: Targets, model: str, in_flight: int) -> Iterator[Slice]:
    x = models.sample(model)
    with targets.open(model, MAX_BATCH) as target:
        (name,) = [spec.name for spec in target.client.wait_ready(model).inputs]
        with (
            gateway(target.where) as port,
            HttpLoad(port, request_of(model, name, x), in_flight) as load,
        ):
            if not np.allclose(output_of(load.once()), Bare(target.path, x).run(), atol=suite.TOLERANCE):
                raise BatchyardError("the gateway's answer is not that of the bare runtime")
            yield load.slice
