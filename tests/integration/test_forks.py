"""Programs that fork: a child and its parent never see or spoil each other's results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import batchyard
import pytest
from batchyard.client import python_models

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


HALF_READ = """
import itertools, os, signal, sys
import numpy as np
import batchyard
from batchyard.transport.errors import BrokerLost

ROWS = 100
COUNT = 64


def main():
    x = np.ones((ROWS, 4), np.float32)
    segment = None if sys.argv[1] == "http" else sys.argv[1]
    with batchyard.Client(sys.argv[2], segment=segment) as client:
        mapped = client.map("neg", (x * n for n in range(COUNT)), window=COUNT)
        streamed = client.stream("many", np.ones((1, 1), np.float32))
        next(mapped), next(streamed)
        futures = [client.submit("neg", x * n) for n in range(COUNT)]
        child = os.fork()
        if not child:
            signal.alarm(40)
            for what, rest in (("map", mapped), ("stream", streamed)):
                try:
                    print(f"the child went on with its parent's {what}:", len(list(rest)))
                except BrokerLost as error:
                    assert "fork" in str(error), error
            for future in futures:
                try:
                    assert future.done() or future.result() is None, "the child has an answer of its parent's"
                except BrokerLost as error:
                    assert "fork" in str(error), error
            assert (client.infer("neg", x) == -1).all()
            assert len(list(client.stream("many", np.ones((1, 1), np.float32)))) == 50
            sys.exit(7)  # through its parent's frames, with its parent's iterators
        # While the child has come to its end, or to where it steals.
        signal.alarm(80)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for n, y in zip(itertools.count(1), mapped):
            assert (y == -n).all(), n
        assert n == COUNT - 1, n
        assert [float(y[0, 0]) for y in streamed] == [1.0 + n for n in range(1, 50)]
        for n, future in enumerate(futures):
            assert (future.result(30) == -n).all(), n
        assert status == 7, status


main()
"""
MANY = """
import batchyard

@batchyard.model(inputs={"x": "float32[batch, 1]"}, outputs={"y": "float32[batch, 1]"})
def many(batch):
    for n in range(50):
        yield {"y": batch["x"] + n}
"""


def forking(
    text: str, request: pytest.FixtureRequest, yard: batchyard.Yard, folder: Path, segment: str
) -> subprocess.CompletedProcess[str]:
    """A program that forks, run to its end; `segment`: how its tensors travel, or "http" for a gateway."""
    url = yard.url
    if segment == "http":
        pytest.importorskip("httpx", reason="pip install 'batchyard[fleet]'")
        url = f"http://{request.getfixturevalue('served').http}"
    program = folder / "forking.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, program, segment, url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("segment", ["memfd", "frames", "http"])  # grpcio itself does not survive a fork
def test_a_child_does_not_go_on_with_what_its_parent_has_half_read(
    request: pytest.FixtureRequest, yard: batchyard.Yard, tmp_path: Path, segment: str
) -> None:
    """It read its parent's answers from its parent's socket, and cancelled its parent's requests at its end."""
    done = forking(HALF_READ, request, yard, tmp_path, segment)
    assert "Traceback" not in done.stderr, done.stderr
    assert "went on" not in done.stdout, done.stdout


FINALLY = """
import os, sys
from batchyard.client import ending
from batchyard.transport.errors import BrokerLost


def begin():
    try:
        yield from range(9)
    finally:
        os.write(1, b"parent" if os.getpid() == parent else b"child")


parent = os.getpid()
goes_on, is_left = ending.own(begin), ending.own(begin)
next(goes_on), next(is_left)
if not os.fork():
    try:
        next(goes_on)
    except BrokerLost:
        del goes_on
    sys.exit()
assert os.wait()[1] == 0
goes_on.close()
is_left.close()
"""


def test_what_its_parent_has_half_read_is_not_ended_in_a_child(tmp_path: Path) -> None:
    """Neither when the child goes on with it nor at its exit: that would cancel the parent's requests."""
    program = tmp_path / "finally.py"
    program.write_text(FINALLY)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "parentparent", "")


@pytest.mark.parametrize("segment", ["memfd", "named", "frames", "http"])
def test_results_and_inputs_are_private_after_a_fork(
    request: pytest.FixtureRequest, yard: batchyard.Yard, tmp_path: Path, segment: str
) -> None:
    done = forking(PROGRAM, request, yard, tmp_path, segment)
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def yard(neg_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[batchyard.Yard]:
    (folder := tmp_path_factory.mktemp("many")).joinpath("m.py").write_text(MANY)
    arguments = ["--model", f"neg={neg_model}", "--model", f"many={folder}/m.py:many", "--named-segments"]
    environment = python_models.environment()
    with batchyard.client.Yard(arguments, 1, 1, worker_environment=environment) as yard:
        yard.await_models(["neg", "many"], 60)
        yield yard
