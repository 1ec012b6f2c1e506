"""Texts of different lengths through a yard that pads, one that does not, plain onnxruntime one by one, and a
padded batcher as one writes it by hand; in turns, so that a busy machine slows all alike.

`python -m batchyard.tests.campaigns.padding MODEL.onnx [--lengths zipf|short] [--texts N] [--rounds N]
[--flight N]`. The model takes input_ids, attention_mask and token_type_ids, int64[batch, sequence]. Every
answer of the padded yard is compared with plain onnxruntime's. Prints a line for each round, and medians:
texts a second by the clock, and, in brackets, by the processor time of whoever runs the model, which a busy
machine stretches less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import onnxruntime

Array = np.ndarray[Any, Any]
Text = dict[str, Array]

TO = [16, 32, 64, 128, 256, 512]
OPTIONS = {"texts": {"pad": {"sequence": {"to": TO}}, "batch_elements_max": 4096}}
BY_HAND = (4, 8, 32)  # rows of the hand-written batches
SHORTEST, LONGEST = 8, 256
TOLERANCE = 0.01


def lengths(kind: str, count: int, rng: np.random.Generator) -> list[int]:
    if kind == "short":
        return [int(n) for n in rng.integers(4, 25, count)]
    drawn = rng.zipf(1.3, 40 * count)
    return [int(n) for n in SHORTEST - 1 + drawn[drawn <= LONGEST - SHORTEST + 1][:count]]


def text(length: int, rng: np.random.Generator) -> Text:
    return {
        "input_ids": rng.integers(100, 20_000, (1, length)),
        "attention_mask": np.ones((1, length), np.int64),
        "token_type_ids": np.zeros((1, length), np.int64),
    }


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Clock:
    """Texts a second since it was made, by the clock and by processor time: of this process, or another."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid
        self._started_s, self._busy_s = time.perf_counter(), self._cpu_s()

    def rates(self, texts: int) -> tuple[float, float]:
        took_s, busy_s = time.perf_counter() - self._started_s, self._cpu_s() - self._busy_s
        return texts / took_s, texts / max(busy_s, 1e-3)

    def _cpu_s(self) -> float:
        if self._pid is None:
            return time.process_time()
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def through(
    client: batchyard.Client, texts: Sequence[Text], flight: int
) -> tuple[tuple[float, float], list[Any]]:
    """(texts a second, replies), `flight` of them under way."""
    clock = Clock(client.models()[0].workers[0].pid)
    futures: list[Any] = []
    for number, each in enumerate(texts):
        futures.append(client.submit("texts", each, timeout=300))
        if number >= flight:
            futures[number - flight].result(300)
    for future in futures:
        future.result(300)
    return clock.rates(len(texts)), [future.reply for future in futures]


def one_by_one(plain: Any, texts: Sequence[Text]) -> tuple[tuple[float, float], list[Array]]:
    clock = Clock()
    answers = [plain.run(None, each)[0] for each in texts]
    return clock.rates(len(texts)), answers


def by_hand(plain: Any, texts: Sequence[Text], rows: int, flight: int) -> tuple[float, float]:
    """As many as are under way, sorted by length, in batches of so many rows padded to their longest."""
    clock = Clock()
    for start in range(0, len(texts), flight):
        window = sorted(texts[start : start + flight], key=lambda each: each["input_ids"].shape[1])
        for at in range(0, len(window), rows):
            some = window[at : at + rows]
            longest = some[-1]["input_ids"].shape[1]
            feeds = {name: np.zeros((len(some), longest), np.int64) for name in some[0]}
            for row, each in enumerate(some):
                for name, array in each.items():
                    feeds[name][row, : array.shape[1]] = array[0]
            output = plain.run(None, feeds)[0]
            for row, each in enumerate(some):
                output[row, : each["input_ids"].shape[1]].copy()
    return clock.rates(len(texts))


def said(line: dict[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {clock:.3g} ({busy:.3g})" for name, (clock, busy) in line.items())


def main() -> int:
    parser = argparse.ArgumentParser(prog="padding", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lengths", choices=("zipf", "short"), default="zipf")
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flight", type=int, default=64)
    options = parser.parse_args()
    plain = session(options.model)
    rng = np.random.default_rng(20_261_130)
    found: dict[str, list[tuple[float, float]]] = {}
    wrong = 0
    models = {"texts": options.model}
    with (
        batchyard.serve(models, threads=1, options=OPTIONS) as padded,
        batchyard.serve(models, threads=1) as apart,
        padded.client() as mine,
        apart.client() as other,
    ):
        for _ in range(options.rounds):
            texts = [text(length, rng) for length in lengths(options.lengths, options.texts, rng)]
            before = mine.models()[0]
            rate, replies = through(mine, texts, options.flight)
            after = mine.models()[0]
            alone, answers = one_by_one(plain, texts)
            for reply, answer in zip(replies, answers, strict=True):
                off = np.abs(reply.arrays[0] - answer).max() / np.abs(answer).max()
                wrong += reply.arrays[0].shape != answer.shape or not off <= TOLERANCE
            line = {
                "padded": rate,
                "not padded": through(other, texts, options.flight)[0],
                "one by one": alone,
                **{f"by hand, {rows}": by_hand(plain, texts, rows, options.flight) for rows in BY_HAND},
            }
            for rows in BY_HAND:
                theirs = line[f"by hand, {rows}"]
                line[f"of {rows} by hand"] = rate[0] / theirs[0], rate[1] / theirs[1]
            share = (after.padding - before.padding) / (after.elements - before.elements)
            line["padding"] = share, share
            print(said(line), flush=True)
            for name, value in line.items():
                found.setdefault(name, []).append(value)
    medians = {
        name: (statistics.median(a for a, _ in values), statistics.median(b for _, b in values))
        for name, values in found.items()
    }
    print(f"{options.lengths}, medians: {said(medians)}; {wrong} answers are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
