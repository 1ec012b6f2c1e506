from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="pip install tokenizers")
import tokenizers
from batchyard import InvalidRequest, ModelInfo
from batchyard.gateway.errors import Refusal
from batchyard.gateway.texts import TextModel, Tokens, score
from batchyard.transport.messages import ModelState
from batchyard.transport.tensors import TensorSpec

WORDS = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a tokenizer of words, [CLS] before and [SEP] behind each text."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    made.enable_padding(length=16)
    made.enable_truncation(7)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def test_a_text_is_its_tokens_without_padding_and_a_pair_says_whose_they_are(folder: Path) -> None:
    model = TextModel.read("net", folder)
    assert model.encode("a b x") == Tokens([1, 3, 4, 0, 2], [0] * 5)
    assert model.encode("a", "b c") == Tokens([1, 3, 2, 4, 5, 2], [0, 0, 0, 1, 1, 1])


def test_a_text_that_is_too_long_is_refused_or_cut_as_asked(folder: Path) -> None:
    model = TextModel.read("net", folder)
    assert model.tokens_max == 7
    with pytest.raises(Refusal, match=r"has 8 tokens, and 'net' takes 7") as caught:
        model.encode("a a a a a a")
    assert caught.value.status == 413
    assert len(model.encode("a a a a a a", truncate=True).ids) == 7


def test_token_ids_are_those_of_the_vocabulary(folder: Path) -> None:
    model = TextModel.read("net", folder)
    assert model.of_ids([1, 5, 2]) == Tokens([1, 5, 2], [0, 0, 0])
    for wrong in ([], [6], [-1], [1] * 8):
        with pytest.raises(Refusal):
            model.of_ids(wrong)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ("mean", True, 7)),
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, ("cls", True, 7)),
        ({"1_Pooling/config.json": {"pooling_mode_lasttoken": True}}, ("last", True, 7)),
        ({"modules.json": [{"type": "sentence_transformers.models.Pooling"}]}, ("mean", False, 7)),
        ({"modules.json": [{"type": "sentence_transformers.models.Normalize"}]}, ("mean", True, 7)),
        ({"sentence_bert_config.json": {"max_seq_length": 5}, "config.json": {"max_position_embeddings": 9}}, ("mean", True, 5)),
    ],
)  # fmt: skip
def test_what_is_done_with_a_model_stands_in_its_folder(
    folder: Path, files: dict[str, Any], expected: object
) -> None:
    for name, value in files.items():
        write(folder, name, value)
    model = TextModel.read("net", folder)
    assert (model.pooling, model.normalize, model.tokens_max) == expected


def test_a_folder_that_cannot_be_used_is_refused_with_a_sentence(folder: Path, tmp_path: Path) -> None:
    write(folder, "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    with pytest.raises(InvalidRequest, match="cls and mean"):
        TextModel.read("net", folder)
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        TextModel.read("net", folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="cannot be used"):
        TextModel.read("net", folder)
    with pytest.raises(InvalidRequest, match=r"has no tokenizer\.json"):
        TextModel.read("net", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [2.0, 3.0]), ("cls", [1.0, 4.0]), ("last", [3.0, 2.0]), ("max", [3.0, 4.0])],
)
def test_hidden_states_become_one_vector(folder: Path, pooling: str, expected: list[float]) -> None:
    model = TextModel.read("net", folder)
    model.pooling = pooling
    hidden = {"last_hidden_state": np.array([[[1, 4], [3, 2]]], np.float32)}
    assert model.vector(hidden, False).tolist() == expected
    assert np.allclose(model.vector(hidden), np.array(expected) / np.linalg.norm(expected))


def test_a_model_that_pools_itself_is_taken_at_its_word(folder: Path) -> None:
    model = TextModel.read("net", folder)
    outputs = {"token_embeddings": np.ones((1, 2, 2)), "sentence_embedding": np.array([[3.0, 4.0]])}
    assert np.allclose(model.vector(outputs), [0.6, 0.8])
    assert model.vector({"y": np.zeros((1, 2))}).tolist() == [0.0, 0.0]
    with pytest.raises(Refusal, match="is no embedding"):
        model.vector({"y": np.zeros((2, 2))})


def test_inputs_are_those_that_the_model_names(folder: Path) -> None:
    model = TextModel.read("net", folder)
    axes = ["batch", "sequence"]
    specs = [TensorSpec("input_ids", 7, axes), TensorSpec("attention_mask", 6, axes)]
    info = ModelInfo("net", ModelState.READY, "", 1, specs, [], True, "", 8, [])
    inputs = model.inputs(info, model.encode("a"))
    assert {name: (array.dtype.name, array.tolist()) for name, array in inputs.items()} == {
        "input_ids": ("int64", [[1, 3, 2]]),
        "attention_mask": ("int32", [[1, 1, 1]]),
    }
    specs.append(TensorSpec("pixels", 1, axes))
    with pytest.raises(Refusal, match="'pixels', which no text gives"):
        model.inputs(info, model.encode("a"))


def test_a_re_ranker_gives_one_number(folder: Path) -> None:
    assert score("net", {"logits": np.array([[1.5]], np.float32)}) == 1.5
    with pytest.raises(Refusal, match="is no re-ranker"):
        score("net", {"logits": np.zeros((1, 2))})
