"""What users of these models send: bytes of files, speech, images, lines of text. Synthetic, and seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MAGIKA_PADDING = 256
MAGIKA_BYTES = 1024  # from the beginning, and as many from the end


def file_features(content: bytes) -> Array:
    """A file's bytes as magika's own reader prepares them: int32[1, 2048]."""
    head = content[:4096].lstrip()[:MAGIKA_BYTES]
    tail = content[-4096:].rstrip()[-MAGIKA_BYTES:]
    row = [*head, *[MAGIKA_PADDING] * (MAGIKA_BYTES - len(head))]
    row += [*[MAGIKA_PADDING] * (MAGIKA_BYTES - len(tail)), *tail]
    return np.array([row], np.int32)


def files(count: int, rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """(kind, bytes) of files: sources of this repository, and pieces of bytes that are none."""
    here = Path(__file__).parents[3]
    sources = [("python", path.read_bytes()) for path in sorted((here / "transport").glob("*.py"))]
    sources += [("markdown", path.read_bytes()) for path in sorted((here / "docs").glob("*.md"))]
    sources += [("", rng.bytes(int(rng.integers(10, 5000)))) for _ in range(8)]
    return [sources[int(index)] for index in rng.integers(0, len(sources), count)]


def speech(samples: int, rng: np.random.Generator, rate: int = 16000) -> Array:
    """float32[samples]: voiced syllables of changing pitch, with pauses and noise between them."""
    time = np.arange(samples) / rate
    pitch = 120 + 40 * np.sin(2 * np.pi * rng.uniform(0.3, 1.0) * time + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * time + rng.uniform(0, 6)), 0, 1)
    noise = rng.standard_normal(samples) * 0.01
    return (0.2 * voice * syllables + noise).astype(np.float32)


def photo(height: int, width: int, rng: np.random.Generator) -> Array:
    """float32[1, 3, height, width] in 0..1: smooth patches of colour with edges."""
    coarse = rng.random((3, height // 16 + 1, width // 16 + 1)).astype(np.float32)
    image = coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return np.clip(image + rng.standard_normal(image.shape).astype(np.float32) * 0.05, 0, 1)[None]


def text_line(text: str, height: int = 48) -> Array:
    """float32[1, 3, height, width] in -1..1: a line of dark text on white, as PP-OCR's recognizer takes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 12 * len(text) + 16
    dpi = 100
    figure = Figure(figsize=(2 * width / dpi, 2 * height / dpi), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    figure.text(
        0.5, 0.5, text, ha="center", va="center", fontsize=0.42 * height * 2 * 72 / dpi, family="DejaVu Sans"
    )
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].astype(np.float32) / 255
    halved = pixels.reshape(height, 2, width, 2, 3).mean((1, 3))
    return np.ascontiguousarray(((halved - 0.5) / 0.5).transpose(2, 0, 1)[None])


WORDS = [
    "tensors",
    "shared",
    "memory",
    "broker",
    "worker",
    "batch",
    "request",
    "row",
    "deadline",
    "priority",
    "queue",
    "lease",
    "credit",
    "slot",
    "arena",
    "segment",
    "the",
    "a",
    "of",
    "in",
    "to",
    "and",
    "every",
    "answer",
    "comes",
    "back",
    "whole",
    "nothing",
    "waits",
    "for",
    "nothing",
    "urgent",
    "low",
    "machine",
    "model",
    "runs",
    "alone",
    "together",
    "small",
    "large",
    "photograph",
    "sentence",
    "question",
    "about",
    "weather",
    "music",
    "river",
    "bridge",
]


def sentence(words: int, rng: np.random.Generator) -> str:
    """A text of so many words."""
    return " ".join(WORDS[int(index)] for index in rng.integers(0, len(WORDS), words)) + "."
