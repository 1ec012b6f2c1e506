"""What the kernel says of whoever is behind a descriptor."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from batchyard.broker.peers import credentials


@pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED is Linux's")
def test_the_kernel_names_the_process_behind_a_unix_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials(ours.fileno()) == (os.getpid(), os.getuid())


def test_a_number_that_is_no_socket_any_more_belongs_to_nobody(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        assert credentials(file.fileno()) is None
    assert credentials(1 << 30) is None
