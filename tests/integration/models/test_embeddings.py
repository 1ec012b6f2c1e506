"""The gateway's embeddings with a real MiniLM: beside the package's own pipeline, and what they are for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..gateways import gateway
from .test_texts import BUCKETS, MINILM, TOKENIZER

PAIRS = [  # alike, and unlike
    ("A man is playing a guitar.", "Someone plays a guitar.", "The stock market fell on Monday."),
    ("How do I reset my password?", "I forgot my password and need a new one.", "The soup needs more salt."),
]


@pytest.fixture
def texts() -> list[str]:
    rng = np.random.default_rng(7)
    words = [word for pair in PAIRS for text in pair for word in text.split()]
    return [text for pair in PAIRS for text in pair] + [
        " ".join(rng.choice(words, size)) for size in rng.zipf(1.4, 40).clip(1, 90)
    ]


def test_every_embedding_is_that_of_the_plain_pipeline(
    models_folder: Path, served: Any, tools: Any, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((models_folder / TOKENIZER).read_bytes())
    yard = served(MINILM, options={"model": {"pad": {"sequence": {"to": BUCKETS}}}})
    with gateway(yard.yard.url, tools.free_port(), f"--text-model=model={tmp_path}") as started:
        status, answer, _ = started.ask("POST", "/v1/embeddings", {"input": texts, "model": "model"})
    assert status == 200, answer
    vectors = np.array([each["embedding"] for each in answer["data"]])
    plain = np.array([pipeline(yard.plain, models_folder, text) for text in texts])
    cosines = (vectors * plain).sum(axis=1)
    assert cosines.min() >= 0.9999
    for at in range(0, 3 * len(PAIRS), 3):
        assert vectors[at] @ vectors[at + 1] > vectors[at] @ vectors[at + 2] + 0.3


def pipeline(plain: Any, models_folder: Path, text: str) -> Any:
    """One text, as the package's own provider runs it."""
    sys.path.append(str(models_folder))  # after everything else
    try:
        from tokenizers import Tokenizer
    finally:
        sys.path.remove(str(models_folder))
    tokenizer = Tokenizer.from_file(str(models_folder / TOKENIZER))
    tokenizer.no_padding()
    encoded = tokenizer.encode(text)
    ids = np.array([encoded.ids])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    pooled = plain.session.run(None, inputs)[0][0].mean(axis=0)
    return pooled / np.linalg.norm(pooled)
