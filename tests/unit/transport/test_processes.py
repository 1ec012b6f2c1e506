"""Back-off as numbers, and one real child."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from batchyard.transport.processes import Backoff, ChildProcess

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")

WAITING_CHILD = """
import threading
from batchyard.transport import lifeline
lifeline.hold()
print("holding", flush=True)
threading.Event().wait()
"""
STUBBORN_CHILD = """
import signal, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
threading.Event().wait()
"""


def test_delays_double_from_a_tenth_to_five_seconds_for_a_child_that_dies_at_once() -> None:
    backoff = Backoff()
    now_s = 100.0
    delays = []
    for _ in range(8):
        delays.append(backoff.next_delay_s(now_s))
        now_s += delays[-1]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_a_child_that_lived_long_starts_the_row_anew() -> None:
    backoff = Backoff()
    now_s = 0.0
    for _ in range(5):
        now_s += backoff.next_delay_s(now_s)
    assert backoff.next_delay_s(now_s + 9.9) == 3.2  # lived 9.9 s: not long enough
    now_s += 9.9 + 3.2
    assert backoff.next_delay_s(now_s + 10.0) == 0.1
    assert backoff.next_delay_s(now_s + 10.0 + 0.1 + 0.5) == 0.2


def test_the_wait_itself_does_not_count_as_life() -> None:
    backoff = Backoff(first_s=20.0, max_s=80.0)
    assert backoff.next_delay_s(0.0) == 20.0
    assert backoff.next_delay_s(20.0) == 40.0


def started(code: str) -> ChildProcess:
    child = ChildProcess([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.start()
    assert child.stdout is not None
    assert child.stdout.readline()
    return child


def test_a_child_that_was_never_started_has_no_pid_and_ends_quietly() -> None:
    child = ChildProcess([sys.executable, "-c", ""], name="idle")
    assert child.pid is None
    assert child.poll() is None
    assert child.terminate() is None


@posix_only
def test_terminate_asks_first_and_reaps() -> None:
    child = started(WAITING_CHILD)
    assert child.poll() is None
    assert child.wait(0) is None
    assert child.terminate(grace_s=10) == -signal.SIGTERM
    assert child.poll() == -signal.SIGTERM
    assert child.terminate() == -signal.SIGTERM


@posix_only
def test_a_child_that_was_asked_to_end_ends_without_being_waited_for() -> None:
    child = started(WAITING_CHILD)
    child.ask_to_end()
    assert child.wait(10) == -signal.SIGTERM
    child.ask_to_end()  # nobody else's process by now
    assert child.terminate() == -signal.SIGTERM


@posix_only
def test_a_deaf_child_is_killed_after_the_grace() -> None:
    child = started(STUBBORN_CHILD)
    assert child.terminate(grace_s=0.01) == -signal.SIGKILL


def test_a_dead_child_can_be_started_again_and_gets_its_environment() -> None:
    code = "import os, sys; sys.exit(int(os.environ['CODE']))"
    child = ChildProcess([sys.executable, "-c", code], env={"CODE": "7", "SYSTEMROOT": ""})
    pids = set()
    for _ in range(2):
        child.start()
        pids.add(child.pid)
        assert child.wait(30) == 7
    assert len(pids) == 2
    child.terminate()


def test_a_missing_program_is_an_error_at_the_start() -> None:
    with pytest.raises(OSError, match="no-such-program"):
        ChildProcess(["/no-such-program"]).start()


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are closed otherwise there")
def test_closed_standard_streams_are_opened_before_a_socket_takes_their_numbers() -> None:
    code = (
        "import os, sys\n"
        "from batchyard.transport.processes import open_standard_streams\n"
        "open_standard_streams()\n"
        "print('nobody hears this', file=sys.stderr)\n"
        "taken = os.open(os.devnull, os.O_RDONLY)\n"
        "sys.exit(0 if taken > 2 and sys.stdin.read() == '' else taken)"
    )
    shell = f'exec "{sys.executable}" -c "$1" >&- 2>&- <&-'
    assert subprocess.run(["sh", "-c", shell, "sh", code], check=False).returncode == 0


AS_PROCESS_1 = """
import os, sys
from pathlib import Path
from batchyard.transport.processes import ChildProcess, reap_orphans

def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

own = ChildProcess([sys.executable, "-c", "raise SystemExit(3)"])
own.start()
reader, writer = os.pipe()
if (parent := os.fork()) == 0:
    if (orphan := os.fork()) == 0:
        os._exit(0)
    os.write(writer, str(orphan).encode())
    os._exit(0)
os.waitpid(parent, 0)
orphan = int(os.read(reader, 20))
while state(orphan) != "Z" or state(own.pid) != "Z":
    os.sched_yield()
reap_orphans()
print(os.getpid(), Path(f"/proc/{orphan}").exists(), own.wait())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="process 1 is Linux containers' matter")
def test_process_1_waits_for_orphans_and_leaves_its_own_children_to_their_owners() -> None:
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no namespace for processes")
    done = subprocess.run(
        [*apart, sys.executable, "-c", AS_PROCESS_1], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["1", "False", "3"], "")
