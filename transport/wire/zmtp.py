"""ZMTP 3.1 with the NULL mechanism, as bytes: a peer's bytes become messages, and messages become bytes.

Owns the greeting, the handshake, framing, and commands (rfc.zeromq.org/spec/37; 3.0 is spec/23, and differs
in nothing that is used here). Opens no socket, reads no clock, and keeps no more than its bounds say.

    greeting   64 bytes: FF, 8 of padding, 7F | major 3, minor 1 | mechanism, 20 bytes | as-server | 31 zeros
    frame      flags (1 more, 2 long, 4 command) | size: 1 byte, or 8 where it is long | body
    command    a frame: length of its name | name | data
    READY      properties: length of the name | name | length of the value, 4 bytes | value
    PING       time to live, 2 bytes | context, at most 16 bytes; answered by PONG with that context
    ERROR      length of the reason | reason

Numbers are big-endian. Both sides send greeting and READY without waiting for the other's.
"""

from __future__ import annotations

import mmap
from struct import Struct

from . import Bounds, Part, Parts

GREETING_BYTES = 64
COMMAND_BYTES_MAX = 4096  # of a command's body, READY's properties included
PROPERTIES_MAX = 32  # libzmq sends two
IDENTITY_BYTES_MAX = 255
PING_CONTEXT_BYTES_MAX = 16
REASON_BYTES_MAX = 200  # of an ERROR
EVENTS_MAX = 256  # frames and commands handled in one call: a flood of small ones must not hold up others
PONGS_MAX = 4  # answered in one call: a peer that asks faster wants only to know that we live
LARGE_BYTES = 4096  # an unfinished frame of this size or more is read into a buffer of its own
MAPPED_BYTES = 1 << 20  # and from here on into pages that exist only when they are written

MORE, LONG, COMMAND = 1, 2, 4

DEALER, ROUTER = b"DEALER", b"ROUTER"
COMPATIBLE = {DEALER: {b"ROUTER", b"DEALER", b"REP"}, ROUTER: {b"DEALER", b"REQ", b"ROUTER"}}

_NULL = b"NULL".ljust(20, b"\0")
_GREETING = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x01" + _NULL + b"\0" * 32
_LONG_HEAD = Struct(">BQ")
SHORT = [bytes((0, size)) for size in range(256)]
_SHORT_MORE = [bytes((MORE, size)) for size in range(256)]


def head(size: int, more: bool = False) -> bytes:
    """The head of a frame."""
    if size < 256:
        return _SHORT_MORE[size] if more else SHORT[size]
    return _LONG_HEAD.pack(LONG | MORE if more else LONG, size)


def encode(parts: Parts) -> list[Part]:
    """A message's bytes, in pieces; its parts are not copied."""
    pieces: list[Part] = []
    last = len(parts) - 1
    for index, part in enumerate(parts):
        if type(part) is memoryview:  # whose length may count something else than bytes
            part = part.cast("B") if part.nbytes else b""
        pieces.append(head(len(part), index < last))
        pieces.append(part)
    return pieces


def command(name: bytes, data: bytes = b"") -> bytes:
    """A command's frame."""
    body = bytes((len(name),)) + name + data
    if len(body) < 256:
        return bytes((COMMAND, len(body))) + body
    return _LONG_HEAD.pack(COMMAND | LONG, len(body)) + body


def opening(socket_type: bytes) -> bytes:
    """The first bytes of either side: the greeting, and READY."""
    properties = ((b"Socket-Type", socket_type), (b"Identity", b""))
    data = [bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value for name, value in properties]
    return _GREETING + command(b"READY", b"".join(data))


class Receiver:
    """The receiving half of one side of one connection.

    `violation`: the rule that the peer broke; from then on nothing of it is read. `farewell`: to be sent
    before the connection is closed. `replies`: to be sent now.
    `room`: where the next bytes are to be read to, instead of being passed to `receive`; then `filled`.
    """

    __slots__ = (
        "_bounds",
        "_buffer",
        "_greeted",
        "_large",
        "_large_more",
        "_message_bytes",
        "_parts",
        "_socket_type",
        "farewell",
        "has_more",
        "identity",
        "is_ready",
        "replies",
        "room",
        "violation",
    )  # fmt: skip

    def __init__(self, socket_type: bytes, bounds: Bounds) -> None:
        self._socket_type = socket_type
        self._bounds = bounds
        self._buffer = b""  # less than a frame, or the rest of an earlier call
        self._parts: list[Part] = []  # of the message that is not whole yet
        self._message_bytes = 0  # of those
        self._large: memoryview | None = None
        self._large_more = False
        self._greeted = False
        self.room: memoryview | None = None
        self.has_more = False  # `receive(b"")` may have something
        self.is_ready = False  # the handshake is done
        self.identity = b""  # that the peer chose
        self.violation = ""
        self.farewell = b""
        self.replies: list[bytes] = []

    def receive(self, data: bytes) -> list[list[Part]]:
        """The messages that these bytes complete, of EVENTS_MAX frames at most: see `has_more`."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at = 0
        if self.violation:
            return []
        if not self.is_ready:
            at = self._shake_hands(data)
            if not self.is_ready:
                self._buffer = data[at:] if not self.violation else b""
                return []
        messages: list[list[Part]] = []
        end = len(data)
        for _ in range(EVENTS_MAX):
            start = at + 2
            if start > end:
                break
            flags = data[at]
            size = data[at + 1]
            stop = start + size
            if not flags and stop <= end and not self._parts:  # most frames: 0.2 us of 0.4
                messages.append([data[start:stop]])
                at = stop
                continue
            if flags & LONG:
                start = at + 9
                if start > end:
                    break
                size = int.from_bytes(data[at + 1 : start], "big")
                stop = start + size
            if flags >= COMMAND:
                if not self._may_come(flags, size) or stop > end:
                    break
                if not self._command(data[start:stop]):
                    break
            else:
                if size > self._bounds.frame_bytes or size > self._bounds.message_bytes - self._message_bytes:
                    self._violate(f"a frame of {size} bytes is more than is taken here")
                    break
                if stop > end:
                    if size >= LARGE_BYTES:
                        self._begin_large(data, start, size, bool(flags & MORE))
                        at = end
                    break
                self._add_part(data[start:stop])
                if not flags & MORE:
                    messages.append(self._whole())
            at = stop
        else:
            self.has_more = True
            self._buffer = data[at:]
            return messages
        self.has_more = False
        if at < end and not self.violation:
            self._buffer = data[at:]
        return messages

    # ---- frames that come in many pieces --------------------------------------------------------

    def _begin_large(self, data: bytes, start: int, size: int, more: bool) -> None:
        """A frame of which only a part is here: the rest is read to where it belongs. A frame that is
        only announced costs nothing: pages exist when they are written."""
        try:
            large = memoryview(mmap.mmap(-1, size) if size >= MAPPED_BYTES else bytearray(size))
        except (OSError, MemoryError):
            self._violate(f"there is no memory for a frame of {size} bytes")
            return
        here = len(data) - start
        large[:here] = memoryview(data)[start:]
        self._large = large
        self._large_more = more
        self.room = large[here:]

    def filled(self, count: int) -> list[list[Part]]:
        """`count` bytes were read to `room`: the message that they complete, if they do."""
        assert self.room is not None
        assert self._large is not None
        if count < len(self.room):
            self.room = self.room[count:]
            return []
        self.room = None
        large, self._large = self._large, None
        self._add_part(large)
        return [] if self._large_more else [self._whole()]

    def _add_part(self, part: Part) -> None:
        if len(self._parts) <= self._bounds.parts:  # one too many is kept, to be seen
            self._parts.append(part)
            self._message_bytes += len(part)

    def _whole(self) -> list[Part]:
        parts, self._parts = self._parts, []
        self._message_bytes = 0
        return parts

    # ---- greeting, handshake, commands ----------------------------------------------------------

    def _violate(self, text: str) -> None:
        self.violation = text
        self._parts = []
        self.has_more = False

    def _refuse(self, reason: str) -> None:
        """The same for a peer that speaks ZMTP: it is sent the reason."""
        self._violate(reason)
        text = reason[:REASON_BYTES_MAX].encode("ascii", "replace")
        self.farewell = command(b"ERROR", bytes((len(text),)) + text)

    def _shake_hands(self, data: bytes) -> int:
        """Read the greeting and READY, as far as they are here. How many bytes were read."""
        at = 0
        if not self._greeted:
            if data[:1] not in (b"", b"\xff") or (len(data) > 9 and not data[9] & 1):
                self._violate("no ZMTP greeting")
            elif len(data) > 10 and data[10] < 3:
                self._violate(f"ZMTP {data[10]}: 3.0 or later is spoken here")
            elif len(data) >= GREETING_BYTES:
                mechanism = data[12:32]
                at = GREETING_BYTES
                if mechanism == _NULL:
                    self._greeted = True
                else:
                    self._refuse("this side speaks the NULL mechanism only")
            if not self._greeted:
                return at
        if len(data) - at < 2:
            return at
        flags = data[at]
        start = at + (9 if flags & LONG else 2)
        if start > len(data):
            return at
        size = int.from_bytes(data[at + 1 : start], "big")
        if flags < COMMAND:
            self._refuse("a message before READY")
            return at
        if not self._may_come(flags, size) or start + size > len(data):
            return at
        body = data[start : start + size]
        name, rest = _split(body)
        if name == b"READY":
            self._ready(rest)
        elif name == b"ERROR":
            self._violate(f"the peer refuses: {_reason(rest)}")
        else:
            self._refuse("a command other than READY before READY")
        return start + size

    def _ready(self, data: bytes) -> None:
        properties = _properties(data)
        if properties is None:
            self._refuse("the properties of READY are damaged")
            return
        socket_type = properties.get(b"socket-type", b"")
        if socket_type not in COMPATIBLE[self._socket_type]:
            self._refuse(f"a {self._socket_type.decode()} does not talk to a socket of this type")
            return
        identity = properties.get(b"identity", b"")
        if len(identity) > IDENTITY_BYTES_MAX:
            self._refuse("an identity has 255 bytes at most")
            return
        self.identity = identity
        self.is_ready = True

    def _may_come(self, flags: int, size: int) -> bool:
        """Whether a frame with these flags can be a command of ours."""
        if flags & ~LONG != COMMAND:
            self._violate(f"a frame with the flags {flags:#x}")
        elif size > COMMAND_BYTES_MAX:
            self._violate(f"a command of {size} bytes: {COMMAND_BYTES_MAX} are the most")
        else:
            return True
        return False

    def _command(self, body: bytes) -> bool:
        """Whether the peer may go on."""
        name, data = _split(body)
        if name == b"PING":
            if not 2 <= len(data) <= 2 + PING_CONTEXT_BYTES_MAX:
                self._violate("a PING that is none")
            elif len(self.replies) < PONGS_MAX:
                self.replies.append(command(b"PONG", data[2:]))
        elif name == b"ERROR":
            self._violate(f"the peer gives up: {_reason(data)}")
        elif name == b"READY":
            self._violate("a second READY")
        elif name is None:
            self._violate("a command without a name")
        # Any other command (PONG, SUBSCRIBE, those of later versions) is ignored.
        return not self.violation


def _split(body: bytes) -> tuple[bytes | None, bytes]:
    """(name, data) of a command; (None, b"") when it has no name."""
    length = body[0] if body else 0
    if not length or 1 + length > len(body):
        return None, b""
    return body[1 : 1 + length], body[1 + length :]


def _properties(data: bytes) -> dict[bytes, bytes] | None:
    """Properties by their names in lower case; None when they are damaged, or too many."""
    properties: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        name_stop = at + 1 + data[at]
        value_start = name_stop + 4
        if name_stop == at + 1 or value_start > len(data) or len(properties) >= PROPERTIES_MAX:
            return None
        value_stop = value_start + int.from_bytes(data[name_stop:value_start], "big")
        if value_stop > len(data):
            return None
        properties[data[at + 1 : name_stop].lower()] = data[value_start:value_stop]
        at = value_stop
    return properties


def _reason(data: bytes) -> str:
    """Of an ERROR, as text that can be shown."""
    return repr(data[1 : 1 + data[0]].decode("ascii", "replace"))[1:-1] if data else ""
