"""silero-vad: speech in many streams at once. A stream's state goes in and comes back, on axis 1; `sr` is a
scalar that a batch shares."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from batchyard.examples.programs import speech

from ...crowd import PATIENCE_S, ask, differences
from ...plain import Plain, difference
from . import drawn

SILERO = "silero_vad/data/silero_vad.onnx"  # no axis of it has a name
NAMED = [f"silero_vad/data/{name}.onnx" for name in ("silero_vad_16k_op15", "silero_vad_op18_ifless")]
HALF = "silero_vad/data/silero_vad_half.onnx"  # 16 kHz only: no `sr`
FIXED = "silero_vad/data/silero_vad_openvino_16k.onnx"  # one stream at a time, by its shapes
STREAMS = 16
STEPS = 12
WINDOW = {16000: (512, 64), 8000: (256, 32)}  # samples a step, and those of the step before
STATE = (2, 1, 128)
ROUNDING = 1e-5  # streams run together in onnxruntime: no difference at all

Array = Any
Step = Callable[[dict[str, Array]], Array]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261130)


def windows(rate: int, rng: np.random.Generator, steps: int = STEPS) -> list[Array]:
    """A stream as silero's own wrapper cuts it: float32[1, window + context] for each step."""
    size, context = WINDOW[rate]
    audio = np.pad(drawn.speech(size * steps, rng, rate), (context, 0))
    return [audio[None, size * step : size * step + size + context] for step in range(steps)]


def together(streams: list[Callable[[], None]]) -> None:
    """Each in a thread of its own; the first error is this call's."""
    errors: list[BaseException] = []

    def run(stream: Callable[[], None]) -> None:
        try:
            stream()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def alone(plain: Plain, chunks: list[Array], more: dict[str, Array]) -> list[Array]:
    """The stream's probabilities in onnxruntime, and its last state."""
    state, heard = np.zeros(STATE, np.float32), []
    for chunk in chunks:
        output, state = plain.run({"input": chunk, "state": state, **more})
        heard.append(output)
    return [*heard, state]


def check_streams(model: Any, streams: list[tuple[list[Array], dict[str, Array]]]) -> None:
    """Every stream in a thread and a client of its own, its state handed back by hand."""
    wrong: list[str] = []

    def stream_of(number: int, chunks: list[Array], more: dict[str, Array]) -> None:
        state, heard = np.zeros(STATE, np.float32), []
        with model.yard.client() as client:
            for chunk in chunks:
                answer = client.infer(
                    model.name, {"input": chunk, "state": state, **more}, timeout=PATIENCE_S
                )
                state = answer["stateN"]
                heard.append(answer["output"])
        for step, (want, have) in enumerate(
            zip(alone(model.plain, chunks, more), [*heard, state], strict=True)
        ):
            text = difference(want, have, ROUNDING)
            if text:
                wrong.append(f"stream {number}, step {step}: {text}")

    together(
        [lambda n=n, c=c, m=m: stream_of(n, c, m) for n, (c, m) in enumerate(streams)]  # type: ignore[misc]
    )
    assert wrong == []


@pytest.mark.parametrize("file", [SILERO, *NAMED])
def test_streams_of_two_rates_keep_their_own_state(served: Any, rng: Any, file: str) -> None:
    """Streams of 8 and 16 kHz differ in `sr` and in length: they never share a run, and nobody notices."""
    model = served(file)
    rates = [16000] if "16k" in file else [16000, 16000, 8000]
    streams = [
        (windows(rate, rng), {"sr": np.array(rate)})
        for rate in (rates[number % len(rates)] for number in range(STREAMS))
    ]
    check_streams(model, streams)


def test_streams_of_a_model_without_a_rate_keep_their_own_state(served: Any, rng: Any) -> None:
    check_streams(served(HALF), [(windows(16000, rng), {}) for _ in range(STREAMS)])


def test_a_model_of_one_stream_serves_many_in_turn(served: Any, rng: Any) -> None:
    model = served(FIXED)
    check_streams(model, [(windows(16000, rng), {}) for _ in range(STREAMS)])
    assert not model.info().batchable


@pytest.mark.parametrize("file", [SILERO, *NAMED, HALF])
def test_streams_share_runs_though_their_state_lies_on_axis_1(served: Any, rng: Any, file: str) -> None:
    """Requests of 1 to 4 streams each, with state on axis 1. Once it has seen requests, the yard batches
    them: no input can be invented on which this model runs (`sr` is 8000 or 16000, and its length fits it)."""
    model = served(file)
    more = {"sr": np.array(16000)} if "sr" in model.plain.inputs else {}

    def request() -> dict[str, Array]:
        rows = int(rng.choice([1, 1, 2, 4]))
        chunks = np.concatenate([windows(16000, rng, 1)[0] for _ in range(rows)])
        return {"input": chunks, "state": rng.standard_normal((2, rows, 128)).astype(np.float32), **more}

    for _ in range(2):  # the second time, what the first requests have shown is known
        requests = [request() for _ in range(64)]
        before = model.yard.snapshot()["batches"]
        assert differences(model.plain, requests, ask(model.yard, model.name, requests), ROUNDING) == []
    assert model.info().batchable, model.info().alone_reason
    assert model.yard.snapshot()["batches"] - before < len(requests), "no two requests shared a run"


@contextmanager
def sequences(client: Any, model: str, count: int) -> Iterator[list[Any]]:
    """`count` sequences of one client, open at once."""
    opened = [client.sequence(model) for _ in range(count)]
    entered = [sequence.__enter__() for sequence in opened]
    try:
        yield entered
    finally:
        for sequence in opened:
            sequence.__exit__(None, None, None)


@pytest.mark.parametrize("file", [SILERO, NAMED[0]])
def test_a_sequence_carries_the_state_from_request_to_request(served: Any, rng: Any, file: str) -> None:
    """`with client.sequence(model) as vad: vad.infer(x)`: what comes out as stateN goes in as state."""
    model = served(file)
    more = {"sr": np.array(16000)}
    streams = [windows(16000, rng) for _ in range(8)]
    with model.yard.client() as client, sequences(client, model.name, len(streams)) as vads:
        heard = [[vad.infer({"input": chunks[step], **more}) for vad, chunks in zip(vads, streams, strict=True)]
                 for step in range(STEPS)]  # fmt: skip
    for number, chunks in enumerate(streams):
        for step, want in enumerate(alone(model.plain, chunks, more)[:-1]):
            answer = heard[step][number]
            have = answer["output"] if isinstance(answer, dict) else answer
            assert difference(want, have, ROUNDING) == "", f"stream {number}, step {step}"


def test_the_example_hears_64_streams_as_each_would_be_heard_alone(served: Any, rng: Any) -> None:
    model = served(SILERO, max_batch=speech.STREAMS)
    streams = [drawn.speech(STEPS * speech.CHUNK, rng) for _ in range(speech.STREAMS)]
    heard = asyncio.run(speech.listen_to_all(model.yard, model.name, streams))
    for audio, (chances, _) in zip(streams[:4], heard, strict=False):
        padded = np.pad(audio, (speech.CONTEXT, 0))[None]
        steps = range(0, len(audio), speech.CHUNK)
        chunks = [padded[:, start : start + speech.CONTEXT + speech.CHUNK] for start in steps]
        wanted = [float(chance[0, 0]) for chance in alone(model.plain, chunks, {"sr": np.array(16000)})[:-1]]
        assert chances == pytest.approx(wanted, abs=ROUNDING)
    assert max(rows for _, each in heard for rows in each) > 1


def test_a_lost_worker_loses_no_sequence(served: Any, rng: Any, tools: Any) -> None:
    model = served(SILERO)
    more = {"sr": np.array(16000)}
    chunks = windows(16000, rng)
    wanted = alone(model.plain, chunks, more)[:-1]
    with model.yard.client() as client, client.sequence(model.name) as vad:
        for step, (chunk, want) in enumerate(zip(chunks, wanted, strict=True)):
            if step == STEPS // 2:
                for pid in tools.worker_pids(client, model.name):
                    tools.kill(pid)
            answer = vad.infer({"input": chunk, **more}, timeout=PATIENCE_S)
            have = answer["output"] if isinstance(answer, dict) else answer
            assert difference(want, have, ROUNDING) == "", f"step {step}"
