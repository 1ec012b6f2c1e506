"""A signal's handler raises at any instruction of a call: no slot, descriptor, or lock is lost by it, and calls
of other threads do not notice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batchyard import serve
from batchyard.client import Yard

from .signals_program import MORE_MAX

PROGRAM = Path(__file__).with_name("signals_program.py")
HANGS_S = 120.0


@pytest.fixture(scope="module")
def yard(neg_model: Path) -> Iterator[Yard]:
    with serve({"neg": neg_model}, threads=1) as made:
        yield made


@pytest.mark.parametrize("segment", ["", "frames"])
def test_a_call_that_is_cut_off_at_any_instruction_loses_nothing(yard: Yard, segment: str, tools: Any) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), yard.url, "1", segment],
        capture_output=True, text=True, timeout=HANGS_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["outcomes"]) <= {"right", "cut off"}
    assert found["outcomes"]["cut off"] > 0
    assert found["beside"] == []
    assert found["used"] == 0
    assert found["descriptors"] <= MORE_MAX
    tools.until(lambda: yard.snapshot()["clients"] == 0, 30, what="the broker lets go of the connections")
    tools.until(lambda: yard.snapshot()["bytes_held"] == 0, 30, what="the broker lets go of the slots")
