"""Programs that fork: a child and its parent never see or spoil each other's results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import batchyard
import pytest

PROGRAM = """
import multiprocessing, sys
import numpy as np
import batchyard

ROWS = 10_000  # some pages of a result, and of what `empty` gave


def child(array, given, expected, go, written):
    if not (np.array_equal(array, expected) and np.array_equal(given, expected)):
        sys.exit("the child does not see what was there")
    array += 1.0
    given += 1.0
    written.set()
    go.wait()
    if not (np.array_equal(array, expected + 1.0) and np.array_equal(given, expected + 1.0)):
        sys.exit("the parent has spoilt the child's array")
    with batchyard.Client(sys.argv[2]) as client:  # of its own; the inherited one begins anew as well
        for each in (client, inherited):
            if not np.array_equal(each.infer("neg", array), -array):
                sys.exit("a wrong answer in the child")


def main():
    global inherited
    multiprocessing.set_start_method("fork")
    x = np.random.default_rng(0).random((ROWS, 4), np.float32)
    segment = None if sys.argv[1] == "http" else sys.argv[1]
    with batchyard.Client(sys.argv[2], segment=segment) as inherited:
        kept = inherited.infer("neg", x)
        given = inherited.empty(x.shape, np.float32)
        given[:] = -x
        go, written = multiprocessing.Event(), multiprocessing.Event()
        process = multiprocessing.Process(target=child, args=(kept, given, -x, go, written))
        process.start()
        written.wait()
        assert np.array_equal(kept, -x), "the child has spoilt the parent's result"
        assert np.array_equal(given, -x), "the child has spoilt the parent's input"
        kept -= 5.0
        given[:] = 7.0
        del kept, given
        for n in range(50):  # the slots are used again
            y = inherited.infer("neg", x[: ROWS - n])
            assert np.array_equal(y, -x[: ROWS - n]), "a wrong answer in the parent"
        go.set()
        process.join(60)
        assert process.exitcode == 0, process.exitcode


main()
"""


@pytest.mark.parametrize("segment", ["memfd", "named", "frames", "http"])
def test_results_and_inputs_are_private_after_a_fork(
    request: pytest.FixtureRequest, yard: batchyard.Yard, tmp_path: Path, segment: str
) -> None:
    url = yard.url
    if segment == "http":
        pytest.importorskip("httpx", reason="pip install 'batchyard[fleet]'")
        url = f"http://{request.getfixturevalue('served').http}"
    program = tmp_path / "forks.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, segment, url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def yard(neg_model: Path) -> Iterator[batchyard.Yard]:
    with batchyard.client.Yard(["--model", f"neg={neg_model}", "--named-segments"], 1, 1) as yard:
        yard.await_models(["neg"], 60)
        yield yard
