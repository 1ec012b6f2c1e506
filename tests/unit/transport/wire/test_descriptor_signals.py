"""A signal's handler may raise anywhere while descriptors are received: each is owned by then, or closed later."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator

import pytest
from batchyard.transport.wire import Bounds
from batchyard.transport.wire.stream import Stream
from batchyard.transport.wire.zmtp import DEALER

from ....striking import struck

PASSED = 3


@pytest.fixture(autouse=True)
def _no_garbage_of_other_tests() -> Iterator[None]:
    """Whose descriptors a collection would close in between."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are passed on Linux")
def test_no_descriptor_is_lost_wherever_an_exception_comes() -> None:
    places = 0
    while True:
        ours, theirs = socket.socketpair()
        with theirs:
            before = sorted(os.listdir("/proc/self/fd"))
            pipes = [os.pipe() for _ in range(PASSED)]
            socket.send_fds(theirs, [b"x"], [read for read, _ in pipes])
            for pipe in pipes:
                for number in pipe:
                    os.close(number)
            stream = Stream(ours, DEALER, Bounds(1000, 2))
            stream.descriptors_max = PASSED
            places += 1
            is_within = struck(lambda stream=stream: stream.recvmsg(0), places)
            if not is_within:
                assert len(stream.descriptors) == PASSED
            stream.socket = None
            stream.close()
            assert sorted(os.listdir("/proc/self/fd")) == before, f"struck at the look {places}"
            ours.close()
        if not is_within:
            assert places > 5
            return
