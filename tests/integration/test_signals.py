"""A signal's handler raises at any instruction of a call, or of what runs on an event loop: no slot, descriptor, or lock is lost by it, and calls
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
from batchyard.tests.campaigns.reliability.hour import MANY
from batchyard.tests.campaigns.reliability.hour_verbs import MODEL, STREAMED
from batchyard.tests.campaigns.reliability.patience import written

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


@pytest.mark.parametrize("wire", ["ipc", "tcp"])
def test_tasks_on_an_event_loop_that_is_cut_off_lose_nothing(wire: str, run_folder: Path, tools: Any) -> None:
    """Every verb on six tasks, for some seconds; how late is the campaign's affair (reliability hour)."""
    (run_folder / "many.py").write_text(MANY)
    models = {MODEL: written(run_folder), STREAMED: f"{run_folder}/many.py:{STREAMED}"}
    url = None if wire == "ipc" else f"tcp://127.0.0.1:{tools.free_port()}"
    with serve(models, threads=1, url=url, open_to_this_machine=True) as yard:
        command = [sys.executable, "-m", "batchyard.tests.campaigns.reliability.hour_life"]
        command += ["signals in a loop", yard.url, "", "1", "4"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["outcomes"]["cut off in a callback"] > 0
        assert found["outcomes"]["right"] > 0
        assert set(found["faults"]) <= {"late"}, found["texts"]
        tools.until(lambda: yard.snapshot()["clients"] == 0, 30, what="the broker lets go of the connections")
        tools.until(lambda: yard.snapshot()["bytes_held"] == 0, 30, what="the broker lets go of the slots")
    for name in ("many.py", f"{MODEL}.onnx"):
        (run_folder / name).unlink()
