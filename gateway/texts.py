"""A text model: its tokenizer, what becomes of its outputs, and how long a text may be.

Owns what a model's folder says of these, in the files of sentence-transformers: `tokenizer.json`, and where
they are there `1_Pooling/config.json`, `modules.json`, `sentence_bert_config.json` and `config.json`. The
model itself is served by the yard under its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import InvalidRequest, ModelInfo
from .datatypes import Array
from .errors import Refusal

TOKENS_MAX_DEFAULT = 512
POOLING = {  # in 1_Pooling/config.json -> here
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
SMALLEST = 1e-12  # a vector of zeros stays one


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text, or one pair of texts."""

    ids: list[int]
    types: list[int]  # which of a pair's texts a token belongs to


class TextModel:
    """What `model` needs besides the yard. `tokens_max`: the longest text, with its special tokens."""

    def __init__(self, model: str, tokenizer: Any, pooling: str, normalize: bool, tokens_max: int) -> None:
        self.model = model
        self.pooling = pooling
        self.normalize = normalize
        self.tokens_max = tokens_max
        self._tokenizer = tokenizer
        tokenizer.no_padding()  # the yard pads, and only where that pays
        tokenizer.no_truncation()

    @classmethod
    def read(cls, model: str, folder: Path) -> TextModel:
        """Of a model's folder. Raises InvalidRequest for one that has no usable tokenizer.json."""
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InvalidRequest(f"{folder} has no tokenizer.json: it lies in a text model's folder")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise InvalidRequest(f"{path} cannot be used: {error}") from None
        truncation = tokenizer.truncation or {}
        tokens_max = (
            _read(folder / "sentence_bert_config.json").get("max_seq_length")
            or truncation.get("max_length")
            or _read(folder / "config.json").get("max_position_embeddings")
            or TOKENS_MAX_DEFAULT
        )
        modes = _read(folder / "1_Pooling" / "config.json")
        chosen = [name for mode, name in POOLING.items() if modes.get(mode)]
        if len(chosen) > 1:
            raise InvalidRequest(f"{folder} pools by {' and '.join(chosen)} together: one is possible")
        modules = _read(folder / "modules.json")
        steps = [str(each.get("type", "")) for each in modules] if isinstance(modules, list) else []
        normalize = not steps or any(step.endswith("Normalize") for step in steps)
        return cls(model, tokenizer, (*chosen, "mean")[0], normalize, int(tokens_max))

    # ---- in -----------------------------------------------------------------------------------

    def encode(self, text: str, pair: str | None = None, *, truncate: bool = False) -> Tokens:
        """Raises Refusal for a text that is too long, unless it is to be cut."""
        encoded = self._tokenizer.encode(text, pair)
        if len(encoded.ids) > self.tokens_max:
            if not truncate:
                raise self._too_long(len(encoded.ids))
            encoded.truncate(self.tokens_max)
        return Tokens(encoded.ids, encoded.type_ids)

    def of_ids(self, ids: Sequence[int]) -> Tokens:
        """Tokens that the caller has made. Raises Refusal for too many, none, or no tokens."""
        if not ids or min(ids) < 0 or max(ids) >= self._tokenizer.get_vocab_size():
            raise Refusal(400, "INVALID_REQUEST", f"token ids are those of {self.model!r}'s own vocabulary")
        if len(ids) > self.tokens_max:
            raise self._too_long(len(ids))
        return Tokens(list(ids), [0] * len(ids))

    def _too_long(self, count: int) -> Refusal:
        text = f"the text has {count:,} tokens, and {self.model!r} takes {self.tokens_max:,} at most"
        return Refusal(413, "TOO_LARGE", text)

    def inputs(self, info: ModelInfo, tokens: Tokens) -> dict[str, Array]:
        """int64 or int32[1, tokens] by the model's names of inputs. Raises Refusal for one that is not of a
        text model."""
        columns = {
            "input_ids": tokens.ids,
            "attention_mask": [1] * len(tokens.ids),
            "token_type_ids": tokens.types,
            "position_ids": range(len(tokens.ids)),
        }
        found = {}
        for spec in info.inputs:
            if spec.name not in columns:
                raise _unfit(f"{info.name!r} has an input {spec.name!r}, which no text gives")
            dtype = np.int32 if ": int32" in str(spec) else np.int64
            found[spec.name] = np.array([columns[spec.name]], dtype)
        return found

    # ---- out ----------------------------------------------------------------------------------

    def vector(self, outputs: Mapping[str, Array], normalize: bool | None = None) -> Array:
        """float32[dimensions] of one text's outputs. Raises Refusal for outputs that are no embedding."""
        pooled = outputs.get("sentence_embedding")
        hidden = next(iter(outputs.values())) if pooled is None else pooled
        if hidden.ndim not in (2, 3) or hidden.shape[0] != 1 or 0 in hidden.shape:
            raise _unfit(f"{self.model!r} gives {list(hidden.shape)}, which is no embedding")
        found: Array = hidden[0].astype(np.float32)
        if found.ndim == 2:
            found = self._pool(found)
        if self.normalize if normalize is None else normalize:
            found = found / max(float(np.linalg.norm(found)), SMALLEST)
        return found

    def _pool(self, hidden: Array) -> Array:
        """float32[tokens, dimensions] -> float32[dimensions]. No token is padding here."""
        if self.pooling == "mean":
            pooled: Array = hidden.mean(axis=0)
        elif self.pooling == "max":
            pooled = hidden.max(axis=0)
        else:
            pooled = hidden[0 if self.pooling == "cls" else -1]
        return pooled


def score(model: str, outputs: Mapping[str, Array]) -> float:
    """The logit of a model that judges pairs. Raises Refusal where it is none."""
    logits = next(iter(outputs.values()))
    if logits.size != 1:
        raise _unfit(f"{model!r} is no re-ranker: it gives {list(logits.shape)}, not one score")
    return float(logits.reshape(-1)[0])


def _unfit(text: str) -> Refusal:
    return Refusal(424, "MODEL_FAILED", text)


def _read(path: Path) -> Any:
    """JSON of a file, or an empty object where there is none. Raises InvalidRequest."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None
