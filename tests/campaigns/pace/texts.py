"""MiniLM on texts of many lengths, 64 under way at once: with padding in the yard, without, one by one, and
a padded batcher written by hand.

Two loads: `mixed`, lengths by Zipf from 8 to 256 tokens; `short`, 4 to 16 tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import batchyard
import numpy as np

from ...plain import Plain, difference
from .rates import rates, table

BUCKETS = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
WINDOW = 64  # under way at once
TEXTS = 128  # in one piece of work
BATCHES = (8, 32)
ROUNDING = 1e-5
WANTED = {"of the padded batcher by hand": 0.85, "padding, at most": 0.15}

Array = np.ndarray[Any, Any]


def zipf_lengths(count: int, rng: np.random.Generator, least: int = 8, most: int = 256) -> list[int]:
    """Ranks drawn by Zipf's law: length `least` is the most frequent, `most` the rarest."""
    ranks = np.arange(1, most - least + 2)
    weights = 1 / ranks
    return [int(length) for length in rng.choice(least - 1 + ranks, count, p=weights / weights.sum())]


def loads(rng: np.random.Generator) -> dict[str, list[dict[str, Array]]]:
    lengths = {"mixed": zipf_lengths(TEXTS, rng), "short": [int(n) for n in rng.integers(4, 17, TEXTS)]}
    return {name: [text_of(length, rng) for length in each] for name, each in lengths.items()}


def text_of(length: int, rng: np.random.Generator) -> dict[str, Array]:
    """Token ids as a tokenizer gives them: [CLS], words, [SEP]."""
    ids = np.array([[101, *rng.integers(1000, 30000, length - 2), 102]])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def padded(texts: Sequence[dict[str, Array]], to: int) -> dict[str, Array]:
    return {
        name: np.concatenate([np.pad(text[name], ((0, 0), (0, to - text[name].shape[1]))) for text in texts])
        for name in texts[0]
    }


def length_of(text: dict[str, Array]) -> int:
    return int(text["input_ids"].shape[1])


def bucket_of(length: int) -> int:
    return next(bucket for bucket in BUCKETS if bucket >= length)


def by_arrival(texts: Sequence[dict[str, Array]], batch: int) -> Iterator[tuple[list[int], int]]:
    """(texts, length to pad to): as they come, to the longest among them."""
    for start in range(0, len(texts), batch):
        members = list(range(start, min(start + batch, len(texts))))
        yield members, max(length_of(texts[index]) for index in members)


def by_bucket(texts: Sequence[dict[str, Array]], batch: int) -> Iterator[tuple[list[int], int]]:
    """The same by length, among the 64 that are there at once."""
    for start in range(0, len(texts), WINDOW):
        waiting: dict[int, list[int]] = defaultdict(list)
        for index in range(start, min(start + WINDOW, len(texts))):
            waiting[bucket_of(length_of(texts[index]))].append(index)
        for bucket, members in sorted(waiting.items()):
            for first in range(0, len(members), batch):
                chosen = members[first : first + batch]
                yield chosen, min(bucket, max(length_of(texts[index]) for index in chosen))


def by_hand(plain: Plain, texts: Sequence[dict[str, Array]], order: Any, batch: int) -> Callable[[], int]:
    """A padded batcher around onnxruntime: pads, runs, cuts."""

    def run() -> int:
        for members, to in order(texts, batch):
            (states,) = plain.session.run(None, padded([texts[index] for index in members], to))
            for row, index in enumerate(members):
                states[row, : length_of(texts[index])].copy()
        return len(texts)

    return run


def through(client: Any, model: str, texts: Sequence[dict[str, Array]]) -> Callable[[], int]:
    def run() -> int:
        return sum(1 for _ in client.map(model, texts, window=WINDOW))

    return run


def measure(file: Path, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Texts a second of every way, by load."""
    plain = Plain(str(file))
    found = {}
    for load, texts in loads(np.random.default_rng(0)).items():
        with ExitStack() as stack:
            ways: dict[str, Callable[[], int]] = {"onnxruntime, one by one": one_by_one(plain, texts)}
            for batch in BATCHES:
                ways[f"by hand, {batch} as they come"] = by_hand(plain, texts, by_arrival, batch)
                ways[f"by hand, {batch} of a length"] = by_hand(plain, texts, by_bucket, batch)
            yard = stack.enter_context(batchyard.serve(file, threads=1))
            ways["yard"] = through(stack.enter_context(yard.client()), file.stem, texts)
            padding = {file.stem: {"pad": {"sequence": {"to": BUCKETS}}}}
            pads = stack.enter_context(batchyard.serve(file, threads=1, options=padding))
            client = stack.enter_context(pads.client())
            check(plain, client, file.stem, texts)
            ways["yard, padding"] = through(client, file.stem, texts)
            found[load] = rates(ways, rounds, seconds)
            found[load]["padding"] = padding_told(client, file.stem)
    return found


def one_by_one(plain: Plain, texts: Sequence[dict[str, Array]]) -> Callable[[], int]:
    def run() -> int:
        for text in texts:
            plain.session.run(None, text)
        return len(texts)

    return run


def check(plain: Plain, client: Any, model: str, texts: Sequence[dict[str, Array]]) -> None:
    """A rate of wrong answers is none."""
    for text, answer in zip(texts, client.map(model, texts, window=WINDOW), strict=True):
        wrong = difference(plain.run(text)[0], answer, ROUNDING)
        if wrong:
            raise AssertionError(f"a text of {length_of(text)} tokens: {wrong}")


def padding_told(client: Any, model: str) -> float:
    """The share of padding that the yard itself tells of all its runs so far."""
    (info,) = [info for info in client.models() if info.name == model]
    return float(info.padding / info.elements) if info.elements else 0.0


def padding_of_buckets(texts: Sequence[dict[str, Array]]) -> float:
    """The share of padding where every text runs at its bucket's length."""
    lengths = np.array([length_of(text) for text in texts])
    to = np.array([bucket_of(int(length)) for length in lengths])
    return float((to - lengths).sum() / to.sum())


def report(measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Prints rates, ratios, and padding by load; returns the ratios."""
    ratios = {}
    texts = loads(np.random.default_rng(0))
    for load, each in measured.items():
        told = each.pop("padding", float("nan"))
        lengths = sorted(map(length_of, texts[load]))
        print(
            f"MiniLM, {load}: {TEXTS} texts of {lengths[0]} to {lengths[-1]} tokens, half below {lengths[TEXTS // 2]}"
        )
        print(table(each, "onnxruntime, one by one"))
        best = max((name for name in each if name.startswith("by hand")), key=each.__getitem__)
        yard = each["yard, padding"]
        found = {
            "of onnxruntime one by one": yard / each["onnxruntime, one by one"],
            "of the yard without padding": yard / each["yard"],
            "of the padded batcher by hand": yard / each[best],
            "padding, by buckets": padding_of_buckets(texts[load]),
            "padding, as told": told,
        }
        for name, ratio in found.items():
            wanted = WANTED.get(name, WANTED["padding, at most"] if name.startswith("padding") else None)
            print(f"  with padding: {ratio:.2f} {name}" + (f" (wanted: {wanted:g})" if wanted else ""))
        print(f"  (by hand, the best is: {best})")
        ratios[load] = found
    return ratios
