"""Who speaks when, in 64 audio streams at once: a sequence of silero-vad for each, and batches of all.

    pip install --no-deps silero-vad      # the model, in a wheel
    python examples/programs/speech.py path/to/silero_vad.onnx recording.wav ...    # 16 kHz, mono, 16 bits

A stream's state stays in this program's shared memory and goes from step to step without a copy; no worker
holds any of it. With fewer recordings than streams, they are shared out.
"""

from __future__ import annotations

import asyncio
import sys
import time
import wave
from pathlib import Path
from typing import Any

import batchyard
import numpy as np

STREAMS = 64
RATE, CHUNK, CONTEXT = 16_000, 512, 64  # the model takes 32 ms, and the 64 samples before them
SPEECH = 0.5  # a probability above it is speech

Array = np.ndarray[Any, Any]


def recording(path: str) -> Array:
    """Samples from -1 to 1."""
    with wave.open(path, "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), path
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


async def listen(client: batchyard.AsyncClient, model: str, audio: Array) -> tuple[list[float], list[int]]:
    """(the probability of speech in each chunk, how many rows ran together with it)."""
    chances, rows = [], []
    padded = np.pad(audio, (CONTEXT, 0))
    async with client.sequence(model, sr=np.int64(RATE)) as vad:
        for start in range(0, len(audio) - CHUNK + 1, CHUNK):
            reply = await vad.request(padded[None, start : start + CONTEXT + CHUNK])
            chances.append(float(reply.outputs["output"][0, 0]))
            rows.append(reply.receipt.rows)
    return chances, rows


async def listen_to_all(yard: batchyard.Yard, model: str, streams: list[Array]) -> list[Any]:
    async with yard.async_client() as client:
        return await asyncio.gather(*(listen(client, model, audio) for audio in streams))


def main() -> None:
    model, *paths = sys.argv[1:] or ["--help"]
    if not paths:
        sys.exit(__doc__)
    recordings = [recording(path) for path in paths]
    streams = [recordings[number % len(recordings)] for number in range(STREAMS)]
    with batchyard.serve({"vad": Path(model)}, max_batch=STREAMS) as yard:
        started_s = time.perf_counter()
        heard = asyncio.run(listen_to_all(yard, "vad", streams))
        took_s = time.perf_counter() - started_s
    for path, (chances, _) in zip(paths, heard, strict=False):
        share = np.mean([chance > SPEECH for chance in chances])
        print(f"{path}: {share:.0%} speech")
    audio_s = sum(len(audio) for audio in streams) / RATE
    together = np.mean([rows for _, each in heard for rows in each])
    print(f"{audio_s:.0f} s of audio in {took_s:.1f} s; {together:.0f} streams ran together on average")


if __name__ == "__main__":
    main()
