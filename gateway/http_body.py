"""Reads a request's body within bounds on size, time, and the memory of all bodies together.

A big tensor is not collected first: `fill` writes chunks straight to their destination.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Any, Self

from starlette.requests import Request

from .errors import ClientGone, Refusal, invalid

PIECE_BYTES = 1 << 16  # decompressed at once: what is behind a member's end is copied
MEMBERS_MAX = 1000  # of a gzip body; an empty one takes 20 bytes
PATIENCE_S = 60.0  # for a whole body; who sends slower holds memory that others need


class Budget:
    """Bytes that all bodies together may take at one time."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.used_bytes = 0

    def take(self, nbytes: int) -> None:
        """Raises Refusal when there is no room now."""
        if self.used_bytes + nbytes > self._bytes_max:
            raise Refusal(503, "OVERLOADED", "too many bytes are being received; try again", 1.0)
        self.used_bytes += nbytes

    def give_back(self, nbytes: int) -> None:
        self.used_bytes -= nbytes


class Body:
    """A body that is being received. A context manager: what it took of the budget is given back.

    Everything raises Refusal (408 too slow, 413 too long, 400 too short) and ClientGone.
    """

    def __init__(self, request: Request, bytes_max: int, budget: Budget) -> None:
        self._receive = request.receive
        self._bytes_max = bytes_max
        self._budget = budget
        self._reserved = 0
        self._received = 0
        self._chunk = memoryview(b"")  # what has come and was not asked for yet
        self._more = True
        self._give_up_s = asyncio.get_running_loop().time() + PATIENCE_S
        text = request.headers.get("content-length")
        self.length = int(text) if text is not None and text.isdigit() else None  # None: chunked
        self.encoding = request.headers.get("content-encoding", "identity").lower()

    def __enter__(self) -> Self:
        if self.length is not None:
            self._check(self.length)
            self._reserve(self.length)
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._reserved)

    def _check(self, nbytes: int) -> None:
        if nbytes > self._bytes_max:
            raise Refusal(413, "TOO_LARGE", f"a body may have at most {self._bytes_max} bytes")

    def _reserve(self, nbytes: int) -> None:
        if nbytes > self._reserved:
            self._budget.take(nbytes - self._reserved)
            self._reserved = nbytes

    async def _next(self) -> bool:
        """Wait for the next chunk; False at the end."""
        while self._more:
            try:
                async with asyncio.timeout_at(self._give_up_s):
                    message = await self._receive()
            except TimeoutError:
                raise Refusal(408, "TOO_SLOW", f"the body did not come within {PATIENCE_S:g} s") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._more = message.get("more_body", False)
            chunk = message.get("body", b"")
            self._received += len(chunk)
            self._check(self._received)
            self._reserve(self._received)
            if chunk:
                self._chunk = memoryview(chunk)
                return True
        return False

    async def fill(self, view: memoryview) -> None:
        """Write the next bytes of the body over all of `view`."""
        at = 0
        while at < len(view):
            if not self._chunk and not await self._next():
                raise invalid(f"the body ends {len(view) - at} bytes too early")
            part = self._chunk[: len(view) - at]
            view[at : at + len(part)] = part
            self._chunk = self._chunk[len(part) :]
            at += len(part)

    async def take(self, nbytes: int) -> bytes:
        """Read the next bytes of the body."""
        self._check(nbytes)
        if len(self._chunk) >= nbytes:
            taken, self._chunk = self._chunk[:nbytes], self._chunk[nbytes:]
            return bytes(taken)
        taken_bytes = bytearray(nbytes)
        await self.fill(memoryview(taken_bytes))
        return bytes(taken_bytes)

    async def rest(self) -> bytes:
        """Everything that is left, decompressed."""
        parts = [bytes(self._chunk)]
        self._chunk = memoryview(b"")
        while await self._next():
            parts.append(bytes(self._chunk))
            self._chunk = memoryview(b"")
        raw = parts[-1] if len(parts) == 2 and not parts[0] else b"".join(parts)
        return raw if self.encoding == "identity" else self._decompressed(raw)

    async def end(self) -> None:
        """Raises Refusal when anything is left."""
        if self._chunk or await self._next():
            raise invalid("the body has more bytes than the request says")

    def _decompressed(self, raw: bytes) -> bytes:
        """Never more than a body may have: some bytes can stand for a thousand times as many."""
        if self.encoding not in ("gzip", "x-gzip", "deflate"):
            raise Refusal(415, "UNSUPPORTED_ENCODING", "Content-Encoding may be gzip, deflate, or identity")
        parts: list[bytes] = []
        nbytes = members = 0
        unpack: Any = None
        for start in range(0, len(raw), PIECE_BYTES):
            piece = raw[start : start + PIECE_BYTES]
            while piece:
                if unpack is None or unpack.eof:  # a gzip file may have several members, one behind the other
                    members += 1
                    if members > MEMBERS_MAX:
                        raise invalid(f"the body has more than {MEMBERS_MAX} {self.encoding} members")
                    # 32: gzip or zlib, as its first bytes say
                    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
                try:
                    parts.append(unpack.decompress(piece, self._bytes_max + 1 - nbytes))
                except zlib.error as error:
                    raise invalid(f"the body is not {self.encoding}: {error}") from None
                nbytes += len(parts[-1])
                self._check(nbytes)
                piece = unpack.unused_data
        if unpack is not None and not unpack.eof:
            raise invalid(f"the body ends within its {self.encoding} stream")
        plain = b"".join(parts)
        self._reserve(len(raw) + len(plain))
        return plain
