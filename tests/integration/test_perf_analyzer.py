"""NVIDIA's perf_analyzer, unmodified, against a gateway: every way that `measure perf-analyzer` sweeps, and
answers in several parts. How quick it is is no test's business."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchyard
import pytest
from batchyard.tools import perf_analyzer
from batchyard.tools.perf_analyzer import WAYS, Load, Point, measure

from ..required import part
from .gateways import Gateway, gateway

ENOUGH = ("--request-count", "60")  # whether they were stable is no matter
THRICE = """
import batchyard

@batchyard.model(inputs={"x": "float32[n, 4]"}, outputs={"y": "float32[n, 4]"})
def thrice(batch):
    for factor in (1, 2, 3):
        yield {"y": batch["x"] * factor}
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    found = perf_analyzer.FOLDER
    there: Path = part("perf_analyzer", found if (found / "perf_analyzer").exists() else None)
    return there


@pytest.fixture(scope="module")
def served(folder: Path, neg_model: Path, tools: Any, tmp_path_factory: Any) -> Iterator[Gateway]:
    program = tmp_path_factory.mktemp("models") / "thrice.py"
    program.write_text(THRICE)
    with (
        batchyard.serve({"neg": neg_model, "thrice": f"{program}:thrice"}, threads=1) as yard,
        gateway(yard.url, tools.free_port(), "--shared-memory") as started,
    ):
        yield started


def run(folder: Path, served: Gateway, way: str, load: Load, model: str, *more: str) -> Point:
    protocol, told = WAYS[way]
    return measure(folder, served.port, protocol, [*told, *more], load, model, ENOUGH)


@pytest.mark.parametrize("load", [Load(False, 2), Load(True, 50)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_at_a_concurrency_and_at_a_rate(folder: Path, served: Gateway, way: str, load: Load) -> None:
    assert run(folder, served, way, load, "neg").rate_per_s > 0
    assert served.gauge("requests_in_yard") == 0


def test_a_model_with_several_answers_over_the_stream(folder: Path, served: Gateway) -> None:
    assert run(folder, served, "gRPC, stream", Load(False, 2), "thrice", "--shape", "x:1,4").rate_per_s > 0


def test_a_model_that_is_not_there_is_said_to_be_missing(folder: Path, served: Gateway) -> None:
    with pytest.raises(batchyard.BatchyardError, match="no model is called 'nobody'"):
        run(folder, served, "HTTP", Load(False, 1), "nobody")
