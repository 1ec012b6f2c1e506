"""Plain onnxruntime in a process of its own, beside the yard: it draws requests and answers them.

Apart, because a drawn input may end or hang onnxruntime itself, and that is no fault of the yard's. Run as
a module it is the child: a line `index variant` in, a length and a `Prepared` out.
"""

from __future__ import annotations

import queue
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from .requests import Prepared, prepare

PREPARE_S = 30.0
MEMORY_BYTES_MAX = 6 << 30  # of the child: a drawn size may ask for the moon
AHEAD = 8  # tests that are prepared while one is served
_LENGTH = struct.Struct("<Q")


class Beside:
    """The child, started again when it dies. `names` are all tests, in the order of their indices."""

    def __init__(self, seed: int, count: int) -> None:
        self._arguments = [str(seed), str(count)]
        self.names: list[str] = []
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "batchyard.tests.campaigns.operators.beside", *self._arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )  # onnxruntime says there what it thinks of drawn sizes
        try:
            self.names = msgspec.msgpack.decode(_read(self._process.stdout), type=list[str])
        except EOFError:
            raise RuntimeError(f"it ends at once; to see why: {' '.join(command)}") from None

    def prepare(self, index: int, variant: str) -> Prepared:
        """One test; unfit where onnxruntime died or hung over it."""
        process = self._process
        timer = threading.Timer(PREPARE_S, process.kill)
        timer.start()
        try:
            assert process.stdin is not None
            process.stdin.write(f"{index} {variant}\n".encode())
            process.stdin.flush()
            return msgspec.msgpack.decode(_read(process.stdout), type=Prepared)
        except (EOFError, BrokenPipeError):
            status = process.wait()
            name = self.names[index]
            self._start()
            return Prepared(name, variant, unfit=f"onnxruntime itself died or hung (status {status})")
        finally:
            timer.cancel()

    def all(self, wanted: Iterable[tuple[int, str]]) -> Iterator[Prepared]:
        """These tests in turn, a few prepared ahead."""
        ready: queue.Queue[Prepared | BaseException | None] = queue.Queue(AHEAD)

        def fill() -> None:
            try:
                for index, variant in wanted:
                    ready.put(self.prepare(index, variant))
                ready.put(None)
            except BaseException as error:
                ready.put(error)

        threading.Thread(target=fill, name="beside", daemon=True).start()
        while (made := ready.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _read(pipe: IO[bytes] | None) -> bytes:
    assert pipe is not None
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    body = pipe.read(length)
    if len(body) < length:
        raise EOFError
    return body


def main() -> None:
    from .corpus import cases

    seed, count = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # what a test prints is no answer
    tests = list(cases())

    def answer(body: bytes) -> None:
        out.write(_LENGTH.pack(len(body)) + body)
        out.flush()

    answer(msgspec.msgpack.encode([case.name for case in tests]))
    for line in sys.stdin:
        index, variant = line.split()
        answer(msgspec.msgpack.encode(prepare(tests[int(index)], variant, seed, count)))


if __name__ == "__main__":
    assert Path(__file__).stem == "beside"
    main()
