"""silero-vad with 64 streams: a row is a stream's next window of speech, and its state comes back.

Ways: onnxruntime one by one; onnxruntime's own best batch, laid together beforehand (nothing but the run is
counted); a yard whose runs are one row each; a yard that batches, with the state handed back by hand, and
with `client.sequence`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import batchyard
import numpy as np

from ...plain import Plain
from .rates import rates, table

STREAMS = 64
WINDOW = 576
RATE = np.array(16000)
BATCHES = (8, 16, 32, 64)
WANTED = 0.5  # of onnxruntime's own best batch; before streams were batched it was 0.07

Array = np.ndarray[Any, Any]


def windows(count: int) -> Array:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((count, WINDOW)) * 0.1).astype(np.float32)


class Streams:
    """64 streams of one client, a step at a time: every stream's next window under way at once."""

    def __init__(self, client: Any, model: str) -> None:
        self._client, self._model = client, model
        self._audio = windows(STREAMS)
        self._states = [np.zeros((2, 1, 128), np.float32)] * STREAMS

    def step(self) -> int:
        feeds = (
            {"input": self._audio[number : number + 1], "state": self._states[number], "sr": RATE}
            for number in range(STREAMS)
        )
        answers = self._client.map(self._model, feeds, window=STREAMS)
        self._states = [answer["stateN"] for answer in answers]
        return STREAMS


class Tasks:
    """64 tasks of an event loop, each with a stream of its own; `sequence`: by `client.sequence`."""

    STEPS = 8

    def __init__(self, yard: Any, model: str, sequence: bool) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._model, self._audio = model, windows(STREAMS)
        self._states = [np.zeros((2, 1, 128), np.float32)] * STREAMS
        self._client = self._loop.run_until_complete(self._stack.enter_async_context(yard.async_client()))
        self._vads: list[Any] = []
        if sequence:
            self._vads = [self._loop.run_until_complete(self._open()) for _ in range(STREAMS)]

    async def _open(self) -> Any:
        opened = self._client.sequence(self._model)
        return await self._stack.enter_async_context(opened)

    async def _stream(self, number: int) -> None:
        chunk = self._audio[number : number + 1]
        for _ in range(self.STEPS):
            if self._vads:
                await self._vads[number].infer({"input": chunk, "sr": RATE})
                continue
            feeds = {"input": chunk, "state": self._states[number], "sr": RATE}
            self._states[number] = (await self._client.infer(self._model, feeds))["stateN"]

    def step(self) -> int:
        async def all_of_them() -> None:
            await asyncio.gather(*map(self._stream, range(STREAMS)))

        self._loop.run_until_complete(all_of_them())
        return STREAMS * self.STEPS

    def close(self) -> None:
        self._states, self._vads = [], []
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()


def batch_of(plain: Plain, rows: int) -> Callable[[], int]:
    """onnxruntime on so many rows that lie together already; the state goes in as it came out."""
    feeds = {"input": windows(rows), "state": np.zeros((2, rows, 128), np.float32), "sr": RATE}

    def run() -> int:
        _, feeds["state"] = plain.session.run(None, feeds)
        return rows

    return run


def measure(file: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Rows a second of every way."""
    plain = Plain(str(file))
    with ExitStack() as stack:
        single = stack.enter_context(batchyard.serve(file, threads=1, max_batch=1))
        batched = stack.enter_context(batchyard.serve(file, threads=1, max_batch=STREAMS))
        ways: dict[str, Callable[[], int]] = {"onnxruntime, one by one": batch_of(plain, 1)}
        ways |= {f"onnxruntime, {rows} together": batch_of(plain, rows) for rows in BATCHES}
        ways["yard, one by one"] = Streams(stack.enter_context(single.client()), file.stem).step
        client = stack.enter_context(batched.client())
        ways["yard, map"] = Streams(client, file.stem).step
        tasks = Tasks(batched, file.stem, sequence=False)
        stack.callback(tasks.close)
        ways["yard, tasks"] = tasks.step
        sequences = Tasks(batched, file.stem, sequence=True)
        stack.callback(sequences.close)
        ways["yard, sequences"] = sequences.step
        for _ in range(4):  # what the first requests teach the yard is no part of the rate
            ways["yard, map"]()
        (info,) = client.models()
        print(f"silero-vad, {STREAMS} streams; batches: {info.batchable} {info.alone_reason}")
        return rates(ways, rounds, seconds)


def report(measured: dict[str, float]) -> dict[str, float]:
    """Prints the rates and the ratios that are wanted; returns those."""
    best = max((name for name in measured if name.endswith("together")), key=measured.__getitem__)
    print(table(measured, best))
    yard = max(
        rate for name, rate in measured.items() if name.startswith("yard") and "one by one" not in name
    )
    ratios = {
        "of onnxruntime's best batch": yard / measured[best],
        "of the yard one by one": yard / measured["yard, one by one"],
    }
    for name, ratio in ratios.items():
        print(f"  batched: {ratio:.2f} {name}")
    print(f"  (wanted: {WANTED:g} of onnxruntime's best batch)")
    return ratios
