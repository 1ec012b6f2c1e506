"""Embeddings and re-ranking through a real gateway: the real OpenAI client, LangChain's, and the calls of
text-embeddings-inference, beside what onnxruntime and the same tokenizer give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai", reason="pip install openai")
pytest.importorskip("tokenizers", reason="pip install tokenizers")
import batchyard
import openai
import tokenizers

from ..plain import Plain
from .gateways import Gateway, gateway

WORDS = [f"w{number}" for number in range(200)]
WIDTH = 8
TOKEN = "0123456789abcdef"
TEXTS = ["w1 w2 w3", "w4", " ".join(WORDS[:90]), "w1 w2 w3", "w5 w6"]
INPUTS = [("input_ids", 7, ["batch", "sequence"]), ("attention_mask", 7, ["batch", "sequence"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer's."""
    made: Path = tmp_path_factory.mktemp("text")
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2} | {word: 3 + at for at, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(100)
    tokenizer.save(str(made / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def files(onnx_models: Any) -> dict[str, Path]:
    """An encoder of hidden states, and a judge of pairs."""
    rng = np.random.default_rng(5)
    table = rng.standard_normal((203, WIDTH)).astype(np.float32)
    masked = [
        ("Gather", ["table", "input_ids"], ["looked"], {}),
        ("Cast", ["attention_mask"], ["mask"], {"to": 1}),
        ("Unsqueeze", ["mask", "last"], ["column"], {}),
        ("Mul", ["looked", "column"], ["hidden"], {}),
    ]
    constants = {"table": table, "last": np.array([2])}
    encoder = onnx_models.save(
        "encoder", masked, INPUTS, [("hidden", 1, ["batch", "sequence", WIDTH])], constants
    )
    judge = onnx_models.save(
        "judge",
        [*masked, ("ReduceSum", ["hidden", "both"], ["sum"], {"keepdims": 0}), ("Unsqueeze", ["sum", "one"], ["logits"], {})],
        INPUTS,
        [("logits", 1, ["batch", 1])],
        constants | {"both": np.array([1, 2]), "one": np.array([1])},
    )  # fmt: skip
    return {"encoder": encoder, "judge": judge}


@pytest.fixture(scope="module")
def served(files: dict[str, Path], folder: Path, tools: Any) -> Iterator[Gateway]:
    padding = {"encoder": {"pad": {"sequence": {"to": [8, 32, 128]}}}}
    with batchyard.serve(files, threads=1, options=padding) as yard:
        arguments = [f"--text-model=encoder={folder}", f"--text-model=judge={folder}"]
        with gateway(yard.url, tools.free_port(), *arguments) as started:
            yield started


@pytest.fixture
def client(served: Gateway) -> Any:
    return openai.OpenAI(base_url=f"http://{served.http}/v1", api_key="none needed", max_retries=0)


@pytest.fixture(scope="module")
def expected(files: dict[str, Path], folder: Path) -> Any:
    """expected(text): the normalized mean of its hidden states, by onnxruntime alone."""
    plain = Plain(str(files["encoder"]))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def vector(text: str) -> Any:
        ids = np.array([tokenizer.encode(text).ids])
        mean = plain.session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0].mean(axis=0)
        return mean / np.linalg.norm(mean)

    return vector


def test_the_openai_client_gets_the_vectors_of_its_texts_in_order(client: Any, expected: Any) -> None:
    for form in ("float", "base64"):
        answer = client.embeddings.create(model="encoder", input=TEXTS, encoding_format=form)
        assert [each.index for each in answer.data] == list(range(len(TEXTS)))
        for text, each in zip(TEXTS, answer.data, strict=True):
            vector = np.array(each.embedding) if form == "float" else decoded(each.embedding)
            assert np.allclose(vector, expected(text), atol=1e-5)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(text.split()) + 2 for text in TEXTS)
        assert answer.model == "encoder"


def decoded(embedding: Any) -> Any:
    import base64

    return np.frombuffer(base64.b64decode(embedding), "<f4") if isinstance(embedding, str) else np.array(embedding)


def test_a_text_and_token_ids_are_taken_as_well(client: Any, expected: Any) -> None:
    (one,) = client.embeddings.create(model="encoder", input="w4").data
    assert np.allclose(one.embedding, expected("w4"), atol=1e-5)
    (ids,) = client.embeddings.create(model="encoder", input=[1, 7, 2]).data
    assert np.allclose(ids.embedding, one.embedding, atol=1e-6)
    both = client.embeddings.create(model="encoder", input=[[1, 7, 2], [1, 8, 9, 2]]).data
    assert np.allclose(both[1].embedding, expected("w5 w6"), atol=1e-5)


def test_langchain_stores_and_asks(served: Gateway, expected: Any) -> None:
    langchain = pytest.importorskip("langchain_openai")
    embeddings = langchain.OpenAIEmbeddings(
        model="encoder", base_url=f"http://{served.http}/v1", api_key="none needed", check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(TEXTS)
    assert np.allclose(vectors, [expected(text) for text in TEXTS], atol=1e-5)
    assert np.allclose(embeddings.embed_query("w4"), expected("w4"), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"model": "other", "input": "w1"}, openai.NotFoundError, "no text model is called 'other'"),
        ({"model": "encoder", "input": []}, openai.BadRequestError, "the list is empty"),
        ({"model": "encoder", "input": ["w1", 2]}, openai.BadRequestError, "a list of such lists"),
        ({"model": "encoder", "input": [9999]}, openai.BadRequestError, "own vocabulary"),
        ({"model": "encoder", "input": "w1", "dimensions": 4}, openai.BadRequestError, "has 8 dimensions"),
        ({"model": "encoder", "input": "w1 " * 101}, openai.APIStatusError, "has 103 tokens, and 'encoder' takes 100"),
        ({"model": "encoder", "input": ["w1"] * 2049}, openai.APIStatusError, "2,049 texts exceed"),
    ],
)  # fmt: skip
def test_what_cannot_be_embedded_is_refused_in_openais_form(client: Any, arguments: Any, kind: Any, sentence: str) -> None:
    with pytest.raises(kind, match=sentence) as caught:
        client.embeddings.create(**arguments)
    assert caught.value.body["message"]
    if kind is openai.NotFoundError:
        assert caught.value.code == "model_not_found"


def test_the_calls_of_text_embeddings_inference(served: Gateway, expected: Any) -> None:
    status, vectors, _ = served.ask("POST", "/embed", {"inputs": TEXTS, "model": "encoder"})
    assert status == 200
    assert np.allclose(vectors, [expected(text) for text in TEXTS], atol=1e-5)
    _, (plain,), _ = served.ask("POST", "/embed", {"inputs": "w4", "model": "encoder", "normalize": False})
    assert not np.isclose(np.linalg.norm(plain), 1)
    assert np.allclose(np.array(plain) / np.linalg.norm(plain), expected("w4"), atol=1e-5)
    long = {"inputs": "w1 " * 101, "model": "encoder"}
    status, error, _ = served.ask("POST", "/embed", long)
    assert (status, error["error_type"]) == (413, "Validation")
    assert served.ask("POST", "/embed", long | {"truncate": True})[0] == 200
    status, error, _ = served.ask("POST", "/embed", {"inputs": [], "model": "encoder"})
    assert (status, error["error_type"]) == (400, "Empty")


def test_an_option_that_is_null_is_one_that_is_left_out(served: Gateway) -> None:
    options = ("truncate", "truncation_direction", "prompt_name", "dimensions", "normalize")
    nulls = dict.fromkeys(options)
    asked = {"inputs": "w4", "model": "encoder"}
    assert served.ask("POST", "/embed", asked | nulls)[:2] == served.ask("POST", "/embed", asked)[:2]
    asked = {"input": "w4", "model": "encoder"}
    nulls = dict.fromkeys(("encoding_format", "dimensions", "user"))
    assert served.ask("POST", "/v1/embeddings", asked | nulls)[:2] == served.ask("POST", "/v1/embeddings", asked)[:2]


@pytest.mark.parametrize(
    ("path", "option", "sentence"),
    [
        ("/embed", {"prompt_name": "query"}, "put the prompt before the text"),
        ("/embed", {"truncation_direction": "Left"}, "loses its end"),
        ("/rerank", {"truncation_direction": "left"}, "loses its end"),
        ("/embed", {"dimensions": 4}, "has 8 dimensions"),
    ],
)
def test_an_option_that_would_change_the_answer_is_refused_and_not_ignored(
    served: Gateway, path: str, option: dict[str, Any], sentence: str
) -> None:
    given = {"query": "w1", "texts": ["w2"]} if path == "/rerank" else {"inputs": "w1"}
    status, error, _ = served.ask("POST", path, given | {"model": "encoder"} | option)
    assert (status, error["error_type"]) == (422, "Validation")
    assert sentence in error["error"]


def test_hugging_faces_own_client_gets_the_same_vectors(files: dict[str, Path], folder: Path, tools: Any) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")
    with batchyard.serve({"encoder": files["encoder"]}, threads=1) as yard:
        arguments = [f"--text-model=encoder={folder}"]
        with gateway(yard.url, tools.free_port(), *arguments, token=TOKEN) as started:
            client = hub.InferenceClient(base_url=f"http://{started.http}", token=TOKEN)
            vectors = client.feature_extraction("w4", normalize=True)
            _, plain, _ = started.ask("POST", "/embed", {"inputs": "w4"})
            assert np.allclose(vectors, plain)
            stranger = hub.InferenceClient(base_url=f"http://{started.http}", token="another")
            with pytest.raises(hub.errors.HfHubHTTPError, match="401"):
                stranger.feature_extraction("w4")


def test_openais_client_lists_the_models_and_shows_the_sentence_of_every_error(served: Gateway, client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["encoder", "judge"]
    assert client.models.retrieve("judge").id == "judge"
    with pytest.raises(openai.NotFoundError, match="no text model is called 'other'; there is: encoder, judge"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="there is nothing at this path; /docs lists every call"):
        client.chat.completions.create(model="encoder", messages=[{"role": "user", "content": "w1"}])


def test_texts_are_ranked_by_a_model_that_judges_pairs(served: Gateway) -> None:
    asked = {"query": "w1", "texts": TEXTS, "model": "judge", "return_text": True}
    status, ranks, _ = served.ask("POST", "/rerank", asked)
    assert status == 200
    assert sorted(each["index"] for each in ranks) == list(range(len(TEXTS)))
    assert [each["score"] for each in ranks] == sorted((each["score"] for each in ranks), reverse=True)
    assert all(TEXTS[each["index"]] == each["text"] and 0 <= each["score"] <= 1 for each in ranks)
    _, raw, _ = served.ask("POST", "/rerank", asked | {"raw_scores": True})
    assert np.allclose([1 / (1 + np.exp(-each["score"])) for each in raw], [each["score"] for each in ranks])
    status, error, _ = served.ask("POST", "/rerank", asked | {"model": "encoder"})
    assert (status, error["error_type"]) == (424, "Backend")
    assert "is no re-ranker" in error["error"]
