"""Embeddings of a real MiniLM, from text to vector of unit length: the gateway's /v1/embeddings and the Python
client, beside onnxruntime text by text and in batches of 32 that are padded to the longest by hand.

128 texts of 8 to 256 tokens by Zipf's law. Every vector is compared with the plain run of its text alone.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import local
from typing import Any

import batchyard
import numpy as np

from ....tools.served import gateway
from ...integration.models.drawn import WORDS
from ...plain import Plain
from .rates import rates, table
from .texts import BUCKETS, WINDOW, padded, zipf_lengths

TEXTS = 128
BATCH = 32  # of the batches by hand
CALLERS = 16  # of one text a call
COSINE_MIN = 0.9999
ALONE, BY_HAND = "onnxruntime, one by one", f"by hand, {BATCH} to the longest"
CLIENT = "Python client"
ONE_CALL, MANY_CALLS = f"gateway, {TEXTS} texts a call", f"gateway, {CALLERS} callers, a text a call"

Array = np.ndarray[Any, Any]


class Tokens:
    """A tokenizer's file, and inputs of the model from it."""

    def __init__(self, models: Path, file: Path) -> None:
        sys.path.append(str(models))  # after everything else: only tokenizers is found there alone
        try:
            from tokenizers import Tokenizer
        finally:
            sys.path.remove(str(models))
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def of(self, text: str) -> dict[str, Array]:
        ids = np.array([self._tokenizer.encode(text).ids])
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}

    def text_of(self, length: int, rng: np.random.Generator) -> str:
        """A text of so many tokens."""
        words: list[str] = []
        while (count := self.of(" ".join(words))["input_ids"].shape[1]) < length:
            words += rng.choice(WORDS, max(1, (length - count) // 2)).tolist()
        return " ".join(words)


def unit(hidden: Array, mask: Array) -> Array:
    """float32[texts, dimensions] of float32[texts, tokens, dimensions]: means over the tokens, of length 1."""
    weights = mask[:, :, None].astype(np.float32)
    means = (hidden * weights).sum(1) / weights.sum(1)
    vectors: Array = means / np.linalg.norm(means, axis=1, keepdims=True)
    return vectors


def one_by_one(plain: Plain, tokens: Tokens, texts: Sequence[str]) -> Array:
    vectors = []
    for text in texts:
        inputs = tokens.of(text)
        vectors.append(unit(plain.session.run(None, inputs)[0], inputs["attention_mask"])[0])
    return np.array(vectors)


def by_hand(plain: Plain, tokens: Tokens, texts: Sequence[str]) -> Array:
    found = []
    for start in range(0, len(texts), BATCH):
        members = [tokens.of(text) for text in texts[start : start + BATCH]]
        inputs = padded(members, max(each["input_ids"].shape[1] for each in members))
        found.append(unit(plain.session.run(None, inputs)[0], inputs["attention_mask"]))
    return np.concatenate(found)


def by_client(client: Any, model: str, tokens: Tokens, texts: Sequence[str]) -> Array:
    answers = client.map(model, (tokens.of(text) for text in texts), window=WINDOW)
    return np.array([unit(hidden, np.ones(hidden.shape[:2]))[0] for hidden in answers])


class Caller:
    """Asks /v1/embeddings as OpenAI's client does: base64, on connections that stay."""

    def __init__(self, port: int) -> None:
        self._port, self._local = port, local()

    def ask(self, texts: Sequence[str]) -> list[Array]:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        connection = self._local.connection
        body = json.dumps({"input": texts, "encoding_format": "base64"})
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {told}")
        return [np.frombuffer(base64.b64decode(each["embedding"]), np.float32) for each in told["data"]]


def measure(models: Path, file: Path, tokenizer: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Texts a second of every way."""
    plain, tokens, model = Plain(str(file)), Tokens(models, tokenizer), file.stem
    rng = np.random.default_rng(0)
    texts = [tokens.text_of(length, rng) for length in zipf_lengths(TEXTS, rng)]
    padding = {model: {"pad": {"sequence": {"to": BUCKETS}}}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())  # which itself cuts at 128
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": BUCKETS[-1]}))
        yard = stack.enter_context(batchyard.serve(file, threads=1, options=padding))
        client = stack.enter_context(yard.client())
        client.wait_ready(model)
        where = ["--url", yard.url, "--text-model", f"{model}={folder}"]
        caller = Caller(stack.enter_context(gateway(where)))
        callers = stack.enter_context(ThreadPoolExecutor(CALLERS))

        def many_calls() -> Array:
            return np.concatenate(list(callers.map(caller.ask, ([text] for text in texts))))

        ways: dict[str, Callable[[], Array]] = {
            ALONE: lambda: one_by_one(plain, tokens, texts),
            BY_HAND: lambda: by_hand(plain, tokens, texts),
            CLIENT: lambda: by_client(client, model, tokens, texts),
            ONE_CALL: lambda: np.array(caller.ask(texts)),
            MANY_CALLS: many_calls,
        }
        expected = ways[ALONE]()
        for name, way in ways.items():
            cosine = float((way() * expected).sum(axis=1).min())
            print(f"  {name}: the least cosine to the plain run is {cosine:.7f}")
            if cosine < COSINE_MIN:
                raise AssertionError(f"{name}: another vector")
        return rates({name: lambda way=way: len(way()) for name, way in ways.items()}, rounds, seconds)


def report(measured: dict[str, float]) -> dict[str, float]:
    """Prints the rates and the ratios to the better of the two by hand; returns those."""
    print(table(measured, ALONE))
    best = max((ALONE, BY_HAND), key=measured.__getitem__)
    ratios = {name: measured[name] / measured[best] for name in (CLIENT, ONE_CALL, MANY_CALLS)}
    for name, ratio in ratios.items():
        print(f"  {name}: {ratio:.2f} of the better by hand ({best})")
    return ratios
