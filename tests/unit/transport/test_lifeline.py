"""The lifeline: EOF on the watched descriptor is the end, however it comes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from batchyard.transport import lifeline

CHILD = """
import threading
from batchyard.transport import lifeline
lifeline.hold()
print("holding", flush=True)
threading.Event().wait()
"""
# Starts CHILD with a pipe, tells its pid, and waits to be killed.
STARTER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
sys.stdin.read()
"""


def test_the_end_of_the_pipe_calls_back_and_bytes_before_it_do_not() -> None:
    read_fd, write_fd = os.pipe()
    ended = threading.Event()
    thread = lifeline.hold(ended.set, read_fd)
    os.write(write_fd, b"nobody should write here")
    assert not ended.is_set()
    os.close(write_fd)
    assert ended.wait(10)
    thread.join(10)
    os.close(read_fd)


def test_a_descriptor_that_is_not_open_is_an_end_as_well() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    os.close(write_fd)
    ended = threading.Event()
    lifeline.hold(ended.set, 1 << 20)
    assert ended.wait(10)


def test_a_child_exits_with_its_own_code_when_the_pipe_is_closed() -> None:
    argv = [sys.executable, "-c", CHILD]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline().strip() == b"holding"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(10) == lifeline.EXIT_CODE


def test_a_grandchild_ends_when_its_starter_is_killed() -> None:
    argv = [sys.executable, "-c", STARTER, CHILD]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline().strip() == b"holding"
        starter.kill()
        starter.wait()
        # The grandchild holds the same stdout: EOF comes when it is gone too.
        assert starter.stdout.read() == b""
