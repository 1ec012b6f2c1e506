"""The comparisons of `batchyard bench`: each a function that measures and returns a Finding.

Owns what is compared with what. The order of slices is compare.py's, the load is loops.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from .. import BatchyardError
from . import models
from .bare import Bare
from .compare import Comparison, Contender, Slice, interleave
from .loops import closed_loop, mapped_loop
from .report import Finding, Line
from .statistics import (
    Measured,
    format_rate,
    format_ratio,
    format_share,
    format_time,
    p50_ns,
    rate_per_s,
    rows_per_s,
    summary_of,
)
from .target import Target, Targets

Say = Callable[[str], None]

FUTURES = "batchyard, submit"  # the second way of ours where there are two
OURS = "batchyard"
BARE = "bare onnxruntime"
TINY_IN_FLIGHT = 64
CNN_IN_FLIGHT = 16
CNN_BARE_ROWS = 8
TOLERANCE = 1e-4  # one row alone and one in a batch may take different kernels


def tiny_latency(
    targets: Targets, rounds: int, seconds: float, say: Say, others: Sequence[Contender] = ()
) -> Finding:
    """`tiny`, one request in flight: the overhead of a request, beside `others` (else the runtime alone)."""
    others = others or [bare_tiny(targets)]
    contenders = [Contender(OURS, partial(open_yard, targets, "tiny", 8, 1)), *others]
    comparison = interleave(contenders, rounds, seconds, say=say)
    finding = finding_of("tiny-latency", comparison)
    ours = comparison.summary(OURS)
    for other in others:
        ratio = comparison.ratio(OURS, other.name, p50_ns)
        finding.figures["ratios"][f"p50, to {other.name}"] = asdict(ratio)
        theirs_ns = comparison.summary(other.name).p50_ns
        # Next to a model that computes next to nothing a ratio says little: the overhead is a time.
        more = f"{format_time(ours.p50_ns - theirs_ns)} of overhead"
        finding.lines.append(
            Line(
                "tiny, 1 in flight: p50",
                f"{format_time(ours.p50_ns)} (p99 {format_time(ours.p99_ns)})",
                other.name,
                format_time(theirs_ns),
                more if other.name == BARE else f"{format_ratio(ratio)} the time",
            )
        )
    return finding


def tiny_throughput(
    targets: Targets, rounds: int, seconds: float, say: Say, others: Sequence[Contender] = ()
) -> Finding:
    """`tiny`, 64 in flight from one client process: requests/s, beside `others` (else the runtime alone)."""
    others = others or [bare_tiny(targets)]
    ways = {OURS: mapped_loop, FUTURES: closed_loop}
    contenders = [
        Contender(name, partial(open_yard, targets, "tiny", 32, TINY_IN_FLIGHT, loop=loop))
        for name, loop in ways.items()
    ]
    comparison = interleave([*contenders, *others], rounds, seconds, say=say)
    finding = finding_of("tiny-throughput", comparison)
    for other, ours in product(reversed(others), ways):
        ratio = comparison.ratio(ours, other.name, rate_per_s)
        how = "map" if ours == OURS else "submit"
        finding.figures["ratios"][f"requests/s by {how}, to {other.name}"] = asdict(ratio)
        finding.lines.append(
            Line(
                f"tiny, {TINY_IN_FLIGHT} in flight, {how}: requests",
                format_rate(comparison.summary(ours).rate_per_s),
                other.name,
                format_rate(comparison.summary(other.name).rate_per_s),
                f"{format_ratio(ratio)} the rate",
            )
        )
    return finding


def cnn(
    targets: Targets, rounds: int, seconds: float, say: Say, max_batches: Sequence[int] = (8,)
) -> Finding:
    """`cnn`, 16 in flight: requests per second as a share of the runtime alone, fed batches of 8."""
    names = {size: f"{OURS} (max batch {size})" for size in max_batches}
    contenders = [
        Contender(name, partial(open_yard, targets, "cnn", size, CNN_IN_FLIGHT, check=True))
        for size, name in names.items()
    ]
    contenders.append(Contender(BARE, partial(open_bare, "cnn", CNN_BARE_ROWS, targets.threads)))
    comparison = interleave(contenders, rounds, seconds, say=say)

    finding = finding_of("cnn", comparison)
    for size, name in names.items():
        ratio = comparison.ratio(name, BARE, rows_per_s)
        finding.figures["ratios"][f"{name}: rows/s, to {BARE}"] = asdict(ratio)
        finding.lines.append(
            Line(
                f"cnn, {CNN_IN_FLIGHT} in flight, max batch {size}",
                format_rate(comparison.summary(name).rate_per_s),
                f"{BARE}, batch {CNN_BARE_ROWS}",
                format_rate(rows_per_s(comparison.pooled[BARE])),
                f"{format_share(ratio)} of the rate",
            )
        )
    return finding


def frame(targets: Targets, rounds: int, seconds: float, say: Say) -> Finding:
    """`frame`, 24.9 MB written in place with `client.empty`: p50 beside the runtime on the very same tensor.

    Both sides read the same bytes of shared memory. The copy counters of client and workers are read
    around all of it: a tensor in place is copied by nobody, so both must stay where they are.
    """
    tensor: list[Any] = []  # of the round that is open: ours writes it, the bare runtime reads it too
    copied = {"client": 0, "worker": 0, "requests": 0}

    @contextmanager
    def open_yard() -> Iterator[Slice]:
        with targets.open("frame", max_batch=8) as target:
            x = target.client.empty((1, *models.ROW_SHAPES["frame"]), np.float32)
            x[:] = models.sample("frame")
            _check_answer(target, "frame", x)
            tensor[:] = [target.path, x]
            client_before, worker_before = target.client.bytes_copied, target.worker_copied_bytes()

            def run(duration_s: float) -> Measured:
                measured = closed_loop(target.client, "frame", [x], 1, duration_s)
                copied["requests"] += len(measured.latencies_ns)
                return measured

            yield run
            copied["client"] += target.client.bytes_copied - client_before
            if worker_before is not None:
                copied["worker"] += (target.worker_copied_bytes() or 0) - worker_before
            tensor.clear()

    @contextmanager
    def open_bare() -> Iterator[Slice]:
        yield Bare(tensor[0], tensor[1], targets.threads).slice

    contenders = [Contender(OURS, open_yard), Contender(BARE, open_bare)]  # entered in this order
    comparison = interleave(contenders, rounds, seconds, say=say)
    finding = finding_of("frame", comparison)
    ratio = comparison.ratio(OURS, BARE, p50_ns)
    finding.figures["ratios"][f"p50, to {BARE}"] = asdict(ratio)
    finding.figures["copied_bytes"] = copied
    ours = comparison.summary(OURS)
    worker_text = (
        f"{copied['worker']:,} by workers" if targets.url is None else "workers' counter is not ours"
    )
    finding.lines += [
        Line(
            "frame in place: p50",
            f"{format_time(ours.p50_ns)} (p99 {format_time(ours.p99_ns)})",
            f"{BARE}, same tensor",
            format_time(comparison.summary(BARE).p50_ns),
            f"{format_ratio(ratio)} the time",
        ),
        Line(
            "frame in place: bytes copied",
            f"{copied['client']:,} by client, {worker_text}",
            "",
            "",
            f"in {copied['requests']:,} requests of {tensor_bytes('frame'):,} bytes",
        ),
    ]
    return finding


def tensor_bytes(model: str) -> int:
    return int(np.prod(models.ROW_SHAPES[model])) * np.dtype(np.float32).itemsize


@contextmanager
def open_yard(
    targets: Targets, model: str, max_batch: int, in_flight: int, check: bool = False, loop: Any = closed_loop
) -> Iterator[Slice]:
    x = models.sample(model)
    with targets.open(model, max_batch) as target:
        if check:
            _check_answer(target, model, x)
        else:
            target.client.infer(model, x)  # a wrong name or a dead yard ends the benchmark here
        yield lambda duration_s: loop(target.client, model, [x], in_flight, duration_s)


def bare_tiny(targets: Targets) -> Contender:
    return Contender(BARE, partial(open_bare, "tiny", 1, targets.threads))


@contextmanager
def open_bare(model: str, rows: int, threads: int) -> Iterator[Slice]:
    with models.written(model) as path:
        x = models.sample(model, rows)
        yield Bare(path, x, threads).slice


def _check_answer(target: Target, model: str, x: Any) -> None:
    """Raises BatchyardError if the yard's answer is not the bare runtime's."""
    if not np.allclose(target.client.infer(model, x), Bare(target.path, x).run(), atol=TOLERANCE):
        raise BatchyardError(f"the yard's answer to {model} is not that of the bare runtime")


def finding_of(name: str, comparison: Comparison) -> Finding:
    """Every contender's figures, pooled and by round, and what failed."""
    finding = Finding(name)
    finding.figures = {
        "pooled": {contender: asdict(comparison.summary(contender)) for contender in comparison.pooled},
        "rounds": [
            {contender: asdict(summary_of(measured)) for contender, measured in by_name.items()}
            for by_name in comparison.rounds
        ],
        "ratios": {},  # by the other side; which figure was compared is the benchmark's to say
    }
    for measured in comparison.pooled.values():
        finding.count_errors(measured)
    return finding
