"""The side of a unix socket that connects: to a listener that is there, or will be.

Owns the waiting: for a listener, for the next message, for room to write. stream.py has the socket itself.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence

from ..errors import no_descriptors
from . import Bounds, Connection, Descriptor, Ended, Part, Parts, Why
from .stream import ANCILLARY_BYTES, DONTWAIT, READ_BYTES, Stream, credentials_of
from .watch import gets_signals, wait_for
from .zmtp import DEALER, SHORT

RECONNECT_S = 0.02
QUICK_BYTES_MAX = 255  # a message of no more has a short head
PIECES_MAX = 16  # read without waiting for the rest of a message

_NOT_YET = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.EINTR)


def _is_ours(sock: socket.socket) -> bool:
    """Whether whoever listens is this user, or root. In /tmp another user can make the yard's folder before
    we do, and would be sent our tensors."""
    credentials = credentials_of(sock)
    return credentials is None or os.geteuid() == 0 or credentials[1] in (0, os.geteuid())


class StreamConnection(Connection):
    """A connection to a listening socket that is there, or will be."""

    lends = bool(ANCILLARY_BYTES)
    sends_beside = True

    def __init__(
        self, path: str, bounds: Bounds, descriptor: int | None = None, descriptors_max: int = 0
    ) -> None:
        self._path = path
        self._stream = Stream(None, DEALER, bounds)
        self._stream.descriptors_max = descriptors_max if self.lends else 0
        self._timeout_ms = -1  # as set on the socket
        if descriptor is not None:
            try:
                self._stream.send_along(descriptor)
            except OSError as error:
                raise no_descriptors(error) from error
        try:
            self._connect()
        except BaseException:
            self._stream.close()
            raise

    def _connect(self) -> bool:
        """Try once. Whether it is connected."""
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise no_descriptors(error) from error
        try:
            sock.setblocking(False)  # a listener whose backlog is full must not hold us up
            sock.connect(self._path)
            if not _is_ours(sock):
                raise PermissionError(errno.EPERM, "another user's process listens there")
            sock.setblocking(True)  # for reads with a timeout; every write says that it does not wait
        except OSError as error:
            sock.close()
            if error.errno in _NOT_YET:
                return False
            why: Why = "denied" if error.errno in (errno.EACCES, errno.EPERM) else "closed"
            self._stream.end = Ended(f"the connection failed: {error.strerror}", why)
            return False
        self._poller = select.poll()  # made once: to make one costs more than to ask it
        self._poller.register(sock, select.POLLIN)
        self._stream.socket = sock
        self._stream.flush()
        return True

    @property
    def watched(self) -> tuple[int, ...]:
        sock = self._stream.socket
        return () if sock is None else (sock.fileno(),)

    @property
    def unsent(self) -> bool:
        return self._stream.blocked

    @property
    def unread(self) -> bool:
        return bool(self._stream.inbox)

    @property
    def undelivered(self) -> bool:
        return self._stream.undelivered

    @property
    def blocked_on(self) -> int | None:
        stream = self._stream
        return stream.socket.fileno() if stream.blocked and stream.socket is not None else None

    def send(self, parts: Parts, along: Sequence[Descriptor] = (), along_bytes: int = 0) -> None:
        stream = self._stream
        sock = stream.socket
        if along:
            stream.put(parts, along, along_bytes)
            stream.flush()
            return
        # A lone small message goes in one piece, and nearly always at once: 1 call in place of 5.
        if stream.outbox or sock is None or len(parts) != 1 or not stream.is_quick:
            stream.put(parts)
            stream.flush()
            return
        part = parts[0]
        size = len(part)
        if size > QUICK_BYTES_MAX or type(part) is not bytes:
            stream.put(parts)
            stream.flush()
            return
        data = SHORT[size] + part
        try:
            written = sock.send(data, DONTWAIT)
        except BlockingIOError:
            written = 0
        except OSError:
            stream.undelivered = True  # as in flush
            return
        if written < len(data):
            stream.outbox.append(memoryview(data)[written:])
            stream.outbox_bytes += len(data) - written
            stream.flush()

    def flush(self) -> None:
        stream = self._stream
        if stream.socket is not None and not stream.receiver.is_ready and stream.end is None:
            stream.read()  # READY, behind which nothing comes before we have said something
        stream.flush()

    def receive(self, timeout_ms: int) -> list[Part] | None:
        stream = self._stream
        receiver = stream.receiver
        if (
            timeout_ms == self._timeout_ms
            and not stream.inbox
            and not stream.outbox
            and stream.end is None
            and receiver.room is None
            and not receiver.has_more
        ):
            # What waits is nearly always one whole message: 2 calls in place of 6. Where handlers of signals
            # run, a poll comes first: the receiving call would wait anew after each of them.
            assert stream.socket is not None
            if gets_signals() and not self._poller.poll(timeout_ms):
                return None
            try:
                data = stream.socket.recv(READ_BYTES) if not stream.descriptors_max else stream.recvmsg(0)
            except BlockingIOError:
                return None
            except OSError as error:
                stream.fail(error)
            else:
                messages = receiver.receive(data) if data else []
                if len(messages) == 1 and not receiver.replies and not receiver.violation:
                    return messages[0]
                stream.take(data, messages)
                if data and not self._has_come():
                    self._read_on(timeout_ms)
        elif not stream.inbox and stream.end is None and self._read(timeout_ms) and not self._has_come():
            self._read_on(timeout_ms)
        if stream.inbox:
            return stream.inbox.popleft()
        if stream.end is not None:
            raise stream.end
        return None

    def take_descriptor(self) -> Descriptor | None:
        return self._stream.take_descriptor()

    def _has_come(self) -> bool:
        return bool(self._stream.inbox) or self._stream.end is not None

    def _read_on(self, timeout_ms: int) -> None:
        """A piece of a message has come, or of the handshake, or there was room to write: wait for the rest
        as long again; without waiting, read so many pieces."""
        give_up_s = time.monotonic() + timeout_ms / 1e3
        pieces = 1
        while self._read(timeout_ms) and not self._has_come():
            pieces += 1
            if pieces >= PIECES_MAX if timeout_ms <= 0 else time.monotonic() >= give_up_s:
                return

    def _read(self, timeout_ms: int) -> bool:
        """Read once, and write the outbox. Whether anything happened."""
        stream = self._stream
        if stream.socket is None and not self._await_listener(timeout_ms):
            return False
        assert stream.socket is not None
        if stream.receiver.has_more:
            stream.read_on()
            return True
        if stream.outbox:
            stream.flush()
        if timeout_ms <= 0:
            happened = stream.read()
        elif stream.blocked:
            happened = wait_for(stream.socket.fileno(), timeout_ms, to_write=True)
            stream.read()
        elif sys.platform == "linux":
            if timeout_ms != self._timeout_ms:
                self._timeout_ms = timeout_ms
                timeval = struct.pack("ll", timeout_ms // 1000, timeout_ms % 1000 * 1000)
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            # One system call, but where handlers of signals run: see above.
            happened = (not gets_signals() or bool(self._poller.poll(timeout_ms))) and stream.read(0)
        else:
            happened = wait_for(stream.socket.fileno(), timeout_ms)
            stream.read()
        if stream.outbox:
            stream.flush()  # messages that waited for READY or for room; a PONG
        return happened

    def _await_listener(self, timeout_ms: int) -> bool:
        """Try to connect, now and then. Whether it is connected."""
        give_up_s = time.monotonic() + timeout_ms / 1e3
        while not self._connect():
            left_s = give_up_s - time.monotonic()
            if left_s <= 0 or self._stream.end is not None:
                return False
            time.sleep(min(RECONNECT_S, left_s))
        return True

    def close(self) -> None:
        self._stream.flush()
        self._stream.close()
