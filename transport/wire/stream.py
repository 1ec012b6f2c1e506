"""ZMTP over unix sockets, without libzmq: no helper thread, and one system call a message each way.

Owns one connected socket: reading, an outbox whose contents leave together, a descriptor that comes along
(SCM_RIGHTS). stream_connection.py has the side that connects, stream_listener.py the one that accepts.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Sequence
from itertools import islice, repeat
from typing import Any

from . import ALONG_MAX, Bounds, Carrier, Connection, Descriptor, Ended, Full, Listener, Part, Parts, owned
from .watch import Watch
from .zmtp import SHORT, Receiver, encode, head, opening

READ_BYTES = 1 << 16
COPY_BYTES_MAX = 1 << 16  # a message of no more is copied into one piece
GATHER_MAX = 64  # pieces in one sendmsg

DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_READ_BYTES = (READ_BYTES,)
ANCILLARY_BYTES = socket.CMSG_SPACE(4 * ALONG_MAX) if hasattr(socket, "CMSG_SPACE") else 0
_ANCILLARY_BYTES = (ANCILLARY_BYTES,)
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)


def credentials_of(sock: socket.socket) -> tuple[int, int] | None:
    """(pid, user) of the other side, by the kernel's word; None where it says nothing."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


class Stream:
    """One socket with its inbox and its outbox. It never waits: that is its users' affair.

    `end`: why nothing more comes; the messages in `inbox` came before.
    """

    __slots__ = (
        "_along", "_bounds", "_heard", "_numbers", "_opening", "along_bytes", "blocked", "descriptors",
        "descriptors_max", "end", "inbox", "is_quick", "outbox", "outbox_bytes", "receiver", "socket",
        "undelivered",
    )  # fmt: skip

    def __init__(self, sock: socket.socket | None, socket_type: bytes, bounds: Bounds) -> None:
        self.socket = sock
        self._bounds = bounds
        self.receiver = Receiver(socket_type, bounds)
        self.inbox: deque[list[Part]] = deque()
        self.outbox: deque[Part] = deque()
        self.outbox_bytes = 0
        self.blocked = False  # the kernel takes no more of it now
        self.is_quick = False  # the handshake is done, and nothing goes along: a message may go as it is
        self.undelivered = False  # the other side was gone before it was taken
        self._opening: Part = opening(socket_type)  # goes first; the rest waits for the other side's READY
        self.end: Ended | None = None
        self.descriptors: deque[Descriptor] = deque()  # that came along
        self.descriptors_max = 0  # so many are kept; 0: the kernel drops them
        self._heard: deque[tuple[bytes, list[tuple[int, int, bytes]], int, Any]] = deque()  # see recvmsg
        self._numbers = array("i")  # of descriptors that nobody owns
        self.along_bytes = 0
        # (a piece of the outbox, the descriptors to go with its first byte, for how many bytes), in order.
        # No piece: the first one there is, and without them if need be.
        self._along: deque[tuple[Part | None, Sequence[Descriptor], int]] = deque()

    # ---- out ------------------------------------------------------------------------------------

    def put(self, parts: Parts, along: Sequence[Descriptor] = (), along_bytes: int = 0) -> None:
        """Keep a message for `flush`. A large one is written at once, as far as that goes, so that it is not
        copied. Raises Full."""
        outbox = self.outbox
        kept_bytes = self.outbox_bytes + self.along_bytes
        if len(outbox) >= self._bounds.outbox_messages or kept_bytes > self._bounds.outbox_bytes:
            raise Full(f"{len(outbox)} messages, {kept_bytes} bytes, have not been read")
        if along:
            piece = b"".join(encode(parts))
            outbox.append(piece)
            self.outbox_bytes += len(piece)
            self._along.append((piece, along, along_bytes))
            self.along_bytes += along_bytes
            self.is_quick = False
            return
        if len(parts) == 1 and type(part := parts[0]) is bytes:
            size = len(part)
            if size <= COPY_BYTES_MAX:
                outbox.append(b"".join((SHORT[size] if size < 256 else head(size), part)))
                self.outbox_bytes += size + 9
                return
        pieces = encode(parts)
        size = sum(map(len, pieces))
        if size <= COPY_BYTES_MAX:
            outbox.append(b"".join(pieces))
            self.outbox_bytes += size
            return
        outbox.extend(pieces)
        self.outbox_bytes += size
        self.flush()
        if outbox:  # the caller gets its memory back: the rest of this message is copied
            left = [outbox.pop() for _ in range(min(len(pieces), len(outbox)))]
            outbox.append(b"".join(reversed(left)))

    def flush(self) -> None:
        """Write as much as the kernel takes."""
        outbox = self.outbox
        sock = self.socket
        self.blocked = False
        if sock is None:
            return
        try:
            while self._opening:
                self._opening = self._opening[sock.send(self._opening, DONTWAIT) :]
            if not self.receiver.is_ready and not self.receiver.violation:
                return  # libzmq takes a message that comes before its own READY for a violation
            self.is_quick = not self._along
            while outbox:
                if self._along:
                    written = self._send_along(sock)
                elif len(outbox) == 1:
                    piece = outbox[0]
                    written = sock.send(piece, DONTWAIT)
                    if written == len(piece):
                        outbox.clear()
                        break
                else:
                    written = sock.sendmsg(list(islice(outbox, GATHER_MAX)), (), DONTWAIT)
                self._written(written)
        except BlockingIOError:
            self.blocked = True
            return
        except OSError:
            # The other side is gone. Its last messages are read first; then its end is reported.
            self.undelivered = bool(outbox)
            outbox.clear()
            self._along.clear()
        self.outbox_bytes = 0  # heads were counted roughly
        self.is_quick = not self._along

    def _send_along(self, sock: socket.socket) -> int:
        """Write the next piece by itself, with the descriptors that go along with it."""
        piece = self.outbox[0]
        marked, along, along_bytes = self._along[0]
        if marked is not None and marked is not piece:
            return sock.send(piece, DONTWAIT)
        numbers = array("i", [descriptor.number for descriptor in along])
        try:
            written = sock.sendmsg([piece], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)], DONTWAIT)
        except BlockingIOError:
            raise
        except OSError as error:  # too many are under way
            if marked is not None:
                self.fail(error)
                raise
            written = 0  # the broker finds the memory by its number, if it can
        self._along.popleft()
        self.along_bytes -= along_bytes
        return written

    def _written(self, count: int) -> None:
        outbox = self.outbox
        self.outbox_bytes = max(0, self.outbox_bytes - count)
        while outbox and count >= len(outbox[0]):
            count -= len(outbox.popleft())
        if count:
            outbox[0] = memoryview(outbox[0])[count:]

    def send_along(self, descriptor: int) -> None:
        """Let a copy of this descriptor go with the first message."""
        # In one piece, so that no signal's error comes between: see transport/segments/memfd.py.
        copy = Descriptor(next(map(owned, map(os.dup, (descriptor,)))))
        self._along.append((None, (copy,), 0))

    # ---- in -------------------------------------------------------------------------------------

    def read(self, flags: int = DONTWAIT) -> bool:
        """Read once. Whether the kernel had something: bytes, or the end."""
        receiver = self.receiver
        assert self.socket is not None
        try:
            if receiver.room is not None:
                count = self.socket.recv_into(receiver.room, 0, flags)
                if not count:
                    self._finish("the other side closed the connection amid a message")
                    return True
                messages = receiver.filled(count)
            else:
                data = self.recvmsg(flags) if self.descriptors_max else self.socket.recv(READ_BYTES, flags)
                if not data:
                    self._finish("the other side closed the connection")
                    return True
                messages = receiver.receive(data)
        except BlockingIOError:
            return False
        except OSError as error:
            self.fail(error)
            return True
        if receiver.replies or receiver.violation:
            self._took(messages)
        else:
            self.inbox.extend(messages)
        return True

    def fail(self, error: OSError) -> None:
        """Reading has failed."""
        self._finish(f"the connection failed: {error.strerror}")

    def take(self, data: bytes, messages: list[list[Part]]) -> None:
        """These bytes were read, and are these messages; no bytes are the end."""
        if data:
            self._took(messages)
        else:
            self._finish("the other side closed the connection")

    def read_on(self) -> None:
        """Go on with bytes that were read, and left for later."""
        self._took(self.receiver.receive(b""))

    def _took(self, messages: list[list[Part]]) -> None:
        self.inbox.extend(messages)
        receiver = self.receiver
        if receiver.replies:
            replies, receiver.replies = receiver.replies, []
            self.outbox.extend(replies)
            self.outbox_bytes += sum(map(len, replies))
            if len(self.outbox) > self._bounds.outbox_messages:
                receiver.violation = "it sends PINGs, and does not read the answers"
        if receiver.violation:
            if receiver.farewell:
                self.outbox.append(receiver.farewell)
                self.flush()
            self._finish(receiver.violation, protocol=True)

    def _finish(self, text: str, protocol: bool = False) -> None:
        if self.end is None:
            self.end = Ended(text, "protocol" if protocol else "closed")

    def recvmsg(self, flags: int) -> bytes:
        """As recv; keeps the descriptors that come along, as many as are wanted.

        A signal's exception may come behind any call. So what the kernel has said is kept by the very call
        that asks it; numbers are taken out of an array by the one that makes owners of them.
        """
        assert self.socket is not None
        heard = self._heard
        heard.extend(map(self.socket.recvmsg, _READ_BYTES, _ANCILLARY_BYTES, (flags | _CLOEXEC,)))
        data, ancillary = heard[0][:2]
        if not ancillary:
            heard.clear()
            return data
        self._numbers = _numbers_of(ancillary)
        heard.clear()
        came = list(map(Descriptor, self._owners()))
        self.descriptors.extend(came[: self.descriptors_max - len(self.descriptors)])
        return data

    def _owners(self) -> list[Any]:
        numbers = self._numbers
        return list(map(owned, map(numbers.pop, repeat(0, len(numbers)))))

    def take_descriptor(self) -> Descriptor | None:
        return self.descriptors.popleft() if self.descriptors else None

    def close(self) -> None:
        """Idempotent."""
        if self._heard and not self._numbers:  # an exception came in between
            self._numbers = _numbers_of(self._heard[0][1])
        self._heard.clear()
        self._owners()
        self._along.clear()
        self.descriptors.clear()
        self.outbox.clear()
        self._finish("this side closed the connection")
        sock, self.socket = self.socket, None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)  # a forked child may hold a copy, and must not keep it open
            except OSError:
                pass  # the other side was faster
            sock.close()


def _numbers_of(ancillary: list[tuple[int, int, bytes]]) -> array[int]:
    numbers = array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
    return numbers


class Streams(Carrier):
    """Addresses are `ipc:///path`."""

    def listen(self, address: str, watch: Watch, bounds: Bounds) -> Listener:
        from .stream_listener import StreamListener

        return StreamListener(_path_of(address), watch, bounds)

    def connect(
        self, address: str, bounds: Bounds, descriptor: int | None = None, descriptors_max: int = 0
    ) -> Connection:
        from .stream_connection import StreamConnection

        return StreamConnection(_path_of(address), bounds, descriptor, descriptors_max)

    def close(self) -> None:
        pass


def _path_of(address: str) -> str:
    return address.removeprefix("ipc://")
