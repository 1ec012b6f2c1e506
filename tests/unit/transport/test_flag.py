from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import threading
import warnings

import pytest
from batchyard.transport.flag import Flag
from batchyard.transport.processes import ChildProcess

PROGRAM = """
import os, signal, sys, threading
from batchyard.transport.flag import Flag

flag = Flag()
signal.signal(signal.SIGTERM, lambda *_: flag.set())
os.kill(os.getppid(), 0)
print("waits", flush=True)
while not flag.wait(0.00001):  # most of the time it is in the middle of `wait`
    pass
print("ends")
"""


def test_it_is_set_for_whoever_waits_and_whoever_comes_later() -> None:
    flag = Flag()
    assert not flag.is_set()
    assert not flag.wait(0)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(flag.wait(30))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(100_000):  # far more than its socket holds
        flag.set()
    for thread in threads:
        thread.join(30)
    assert seen == [True] * 3
    assert flag.wait(0)
    assert flag.is_set()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="sentinels")
def test_a_wait_ends_with_a_process_though_the_flag_is_not_set() -> None:
    child = ChildProcess([sys.executable, "-c", "import sys; sys.stdin.read()"])
    child.start()
    assert child.sentinel is not None
    flag = Flag()
    assert not flag.wait(0, [child.sentinel])
    assert child.poll() is None
    os.kill(child.pid or 0, signal.SIGKILL)
    assert not flag.wait(None, [child.sentinel])  # for ever, if nothing came
    child.terminate()
    assert child.sentinel is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_childs_flag_wakes_nobody_in_its_parent() -> None:
    flag = Flag()
    pid = os.fork()
    if pid == 0:
        flag.set()
        os._exit(0 if flag.wait() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not flag.wait(0)
    assert not select.select([flag._woken], [], [], 0)[0]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_signals_that_come_in_the_middle_of_each_other_end_a_wait() -> None:
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            for _ in range(50):
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGTERM)
            assert process.communicate(timeout=30)[0] == "ends\n"


def test_what_it_holds_is_closed_with_it() -> None:
    flag = Flag()
    ring = [flag]
    ring.append(ring)  # type: ignore[arg-type]
    sockets = flag._woken, flag._wake
    del flag, ring
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert [each.fileno() for each in sockets] == [-1, -1]
