"""/v1/embeddings and /v1/models as OpenAI's clients ask, /embed (or /) and /rerank as those of
text-embeddings-inference do.

Owns the forms of these bodies and of their errors. Every text is a request of its own, so texts of many
callers share batches; how they are padded is the yard's business.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from .errors import Refusal, body_at, refusal_of
from .http_answer import answer
from .http_body import Body
from .http_guard import while_connected
from .http_infer import decoded
from .inference import deadline_s_of
from .rooms import Rooms
from .texts import TextModel, Tokens, score

TEXTS_MAX = 2048  # of one call, as OpenAI allows
TOKENS_MAX = 300_000  # of one call, together, as OpenAI allows
EMPTY = "EMPTY"  # the code of a call without a text, which text-embeddings-inference tells apart
UNDER_WAY_MAX = 64  # texts of one call at a time: others' texts go between them


class EmbeddingsRequest(msgspec.Struct):
    """OpenAI's. `user` and keys that are not here are ignored."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


class EmbedRequest(msgspec.Struct):
    """text-embeddings-inference's."""

    inputs: str | list[str]
    normalize: bool | None = True
    truncate: bool | None = False
    truncation_direction: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    model: str | None = None


class RerankRequest(msgspec.Struct):
    """text-embeddings-inference's."""

    query: str
    texts: list[str]
    raw_scores: bool | None = False
    return_text: bool | None = False
    truncate: bool | None = False
    truncation_direction: str | None = None
    model: str | None = None


_embeddings = msgspec.json.Decoder(EmbeddingsRequest)
_embed = msgspec.json.Decoder(EmbedRequest)
_rerank = msgspec.json.Decoder(RerankRequest)


async def embeddings(request: Request, rooms: Rooms) -> Response:
    """POST /v1/embeddings"""
    return await _answered(_as_openai, _embeddings_of(request, rooms))


async def models(request: Request, rooms: Rooms) -> Response:
    """GET /v1/models"""
    return answer({"object": "list", "data": [_entry(name) for name in rooms.texts]})


async def model(request: Request, rooms: Rooms) -> Response:
    """GET /v1/models/{model}"""
    return answer(_entry(_model(rooms, request.path_params["model"]).model))


def _entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "batchyard"}


async def embed(request: Request, rooms: Rooms) -> Response:
    """POST /embed, and POST /, where Hugging Face's own client asks"""
    return await _answered(_as_tei, _embed_of(request, rooms))


async def rerank(request: Request, rooms: Rooms) -> Response:
    """POST /rerank"""
    return await _answered(_as_tei, _rerank_of(request, rooms))


# ---- the calls ----------------------------------------------------------------------------


async def _embeddings_of(request: Request, rooms: Rooms) -> Any:
    asked = await _read(request, rooms, _embeddings)
    if asked.encoding_format not in (None, "float", "base64"):
        raise _invalid(f"encoding_format is float or base64, not {asked.encoding_format[:40]!r}")
    text_model = _model(rooms, asked.model)
    tokens = await asyncio.to_thread(_openai_tokens, text_model, asked.input)
    vectors = await while_connected(request, _vectors(rooms, text_model, tokens, None))
    _check_dimensions(text_model, asked.dimensions, vectors)
    as_text = asked.encoding_format == "base64"
    used = sum(len(each.ids) for each in tokens)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": place, "embedding": values}
            for place, values in enumerate(_base64(each) if as_text else each.tolist() for each in vectors)
        ],
        "model": text_model.model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }


async def _embed_of(request: Request, rooms: Rooms) -> Any:
    asked = await _read(request, rooms, _embed)
    if asked.prompt_name is not None:
        raise _invalid("prompt_name: no prompts are kept here; put the prompt before the text")
    _check_direction(asked.truncation_direction)
    text_model = _model(rooms, asked.model)
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    tokens = await asyncio.to_thread(_tokens, text_model, texts, bool(asked.truncate))
    normalize = asked.normalize is not False
    vectors = await while_connected(request, _vectors(rooms, text_model, tokens, normalize))
    _check_dimensions(text_model, asked.dimensions, vectors)
    return [vector.tolist() for vector in vectors]


async def _rerank_of(request: Request, rooms: Rooms) -> Any:
    asked = await _read(request, rooms, _rerank)
    _check_direction(asked.truncation_direction)
    text_model = _model(rooms, asked.model)
    pairs = [(asked.query, text) for text in asked.texts]
    tokens = await asyncio.to_thread(_tokens, text_model, pairs, bool(asked.truncate))
    outputs = await while_connected(request, _outputs(rooms, text_model, tokens))
    scores = [score(text_model.model, each) for each in outputs]
    if not asked.raw_scores:
        scores = [float(1 / (1 + np.exp(-logit))) for logit in scores]
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    found: list[dict[str, Any]] = [{"index": place, "score": scores[place]} for place in order]
    if asked.return_text:
        for each in found:
            each["text"] = asked.texts[each["index"]]
    return found


def _check_dimensions(model: TextModel, wanted: int | None, vectors: Sequence[Any]) -> None:
    if wanted is not None and wanted != len(vectors[0]):
        raise _invalid(f"{model.model!r} has {len(vectors[0])} dimensions, and no other number of them")


def _check_direction(wanted: str | None) -> None:
    if wanted is not None and wanted.lower() != "right":
        text = f"truncation_direction is right, not {wanted[:40]!r}: a text that is too long loses its end"
        raise _invalid(text)


async def _read(request: Request, rooms: Rooms, decoder: msgspec.json.Decoder[Any]) -> Any:
    with Body(request, rooms.limits.json_bytes_max, rooms.budget) as body:
        return decoded(decoder, await body.rest(), rooms.limits.json_bytes_max)


def _model(rooms: Rooms, name: str | None) -> TextModel:
    """The text model of that name, or the only one. Raises Refusal."""
    texts = rooms.texts
    if not texts:
        text = "no text model is served here: start the gateway with --text-model NAME=FOLDER"
        raise Refusal(404, "UNKNOWN_MODEL", text)
    if not name and len(texts) == 1:
        return next(iter(texts.values()))
    found = texts.get(name or "")
    if found is None:
        text = f"no text model is called {(name or '')[:80]!r}; there is: {', '.join(texts)}"
        raise Refusal(404, "UNKNOWN_MODEL", text)
    return found


# ---- texts to tokens, on a thread ---------------------------------------------------------------


def _openai_tokens(model: TextModel, given: str | list[str | int | list[int]]) -> list[Tokens]:
    """OpenAI's four forms: a text, texts, token ids, lists of token ids. Raises Refusal."""
    if isinstance(given, str):
        return _tokens(model, [given], False)
    ids = [entry for entry in given if isinstance(entry, int)]
    if ids and len(ids) == len(given):
        return [model.of_ids(ids)]
    lists = [entry for entry in given if isinstance(entry, list)]
    if lists and len(lists) == len(given):
        return _bounded(lists, model.of_ids)
    texts = [entry for entry in given if isinstance(entry, str)]
    if len(texts) != len(given):
        raise _invalid("input is a text, a list of texts, a list of token ids, or a list of such lists")
    return _tokens(model, texts, False)


def _tokens(model: TextModel, texts: Sequence[str | tuple[str, str]], truncate: bool) -> list[Tokens]:
    def encode(text: str | tuple[str, str]) -> Tokens:
        one, other = (text, None) if isinstance(text, str) else text
        return model.encode(one, other, truncate=truncate)

    return _bounded(texts, encode)


def _bounded(entries: Sequence[Any], encode: Callable[[Any], Tokens]) -> list[Tokens]:
    """Raises Refusal for none, too many, or too many tokens together."""
    if not entries:
        raise Refusal(400, EMPTY, "there is no text: the list is empty")
    if len(entries) > TEXTS_MAX:
        raise Refusal(413, "TOO_LARGE", f"{len(entries):,} texts exceed the {TEXTS_MAX:,} of one call")
    found: list[Tokens] = []
    left = TOKENS_MAX
    for entry in entries:
        found.append(encode(entry))
        left -= len(found[-1].ids)
        if left < 0:
            raise Refusal(413, "TOO_LARGE", f"the texts have more than the {TOKENS_MAX:,} tokens of one call")
    return found


# ---- tokens to outputs --------------------------------------------------------------------------


async def _vectors(rooms: Rooms, model: TextModel, tokens: list[Tokens], normalize: bool | None) -> list[Any]:
    return [model.vector(each, normalize) for each in await _outputs(rooms, model, tokens)]


async def _outputs(rooms: Rooms, model: TextModel, tokens: list[Tokens]) -> list[Any]:
    """Every text's outputs. The first that fails ends all."""
    info = await rooms.yard.model(model.model)
    timeout_s = deadline_s_of(None)
    places = asyncio.Semaphore(UNDER_WAY_MAX)

    async def run(each: Tokens) -> Any:
        async with places:
            _, reply = await rooms.yard.infer(info, model.inputs(info, each), 0, timeout_s)
            return reply.outputs

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(each)) for each in tokens]
    except* Exception as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


# ---- answers ------------------------------------------------------------------------------------


def _base64(vector: Any) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _invalid(text: str) -> Refusal:
    return Refusal(400, "INVALID_REQUEST", text)


async def _answered(form: Callable[[Refusal], tuple[int, Any]], work: Awaitable[Any]) -> Response:
    """The outcome, or the error in the form that the call's clients read."""
    try:
        return answer(await work)
    except Exception as error:
        refusal = refusal_of(error)
        if refusal.status == 500:  # it goes into the log
            raise
        status, body = form(refusal)
        return answer(body, status, refusal.headers)


def _as_openai(refusal: Refusal) -> tuple[int, Any]:
    """OpenAI's clients raise by status, and try 429 and 503 again as Retry-After says."""
    return refusal.status, body_at("/v1/", refusal)


def _as_tei(refusal: Refusal) -> tuple[int, Any]:
    """text-embeddings-inference's statuses: 400 without a text, 413 and 422 for what else was asked, 424 the
    model, 429 too much."""
    if refusal.code == EMPTY:
        return 400, {"error": refusal.text, "error_type": "Empty"}
    status, kind = {400: (422, "Validation"), 413: (413, "Validation"), 503: (429, "Overloaded")}.get(
        refusal.status, (refusal.status if refusal.status in (404, 408, 415) else 424, "Backend")
    )
    return status, {"error": refusal.text, "error_type": kind}
