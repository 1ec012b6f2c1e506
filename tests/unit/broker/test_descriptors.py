"""The limit on descriptors, and connections that are ended from another thread than their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from batchyard.broker.descriptors import hang_up

RAISED = """
import resource
from batchyard.broker.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 800))
assert raise_limit() == 700, "an eighth is kept free"
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (800, 800)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_the_limit_is_raised_to_the_most_and_an_eighth_of_it_is_kept_free() -> None:
    subprocess.run([sys.executable, "-c", RAISED], check=True, timeout=60)


def test_who_is_hung_up_on_sees_the_end_and_the_descriptor_stays_its_owners() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hang_up(ours.fileno())
        assert theirs.recv(1) == b""
        os.fstat(ours.fileno())
        hang_up(ours.fileno())


def test_a_number_that_is_no_socket_any_more_is_left_alone() -> None:
    read, write = os.pipe()
    try:
        hang_up(read)
        hang_up(1 << 30)
        os.write(write, b"x")
        assert os.read(read, 1) == b"x"
    finally:
        os.close(read)
        os.close(write)
