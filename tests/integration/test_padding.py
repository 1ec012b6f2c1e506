"""Texts of every length from several clients at once: whatever shares their run, each gets its own answer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard.cli import models as models_verb
from batchyard.client import Yard
from batchyard.tests.attention import HIDDEN, POOLED, request, write
from batchyard.transport.errors import InvalidRequest, ModelFailed

TO = {"pad": {"sequence": {"to": [8, 16, 32]}}, "batch_elements_max": 256}


def check(path: Path, reference: Any, text: dict[str, Any], found: Any) -> None:
    found = found if isinstance(found, dict) else {"": found}
    for mine, plain in zip(found.values(), reference(path, **text), strict=True):
        assert mine.shape == plain.shape
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("segment", [None, "frames"], ids=["shared memory", "frames"])
@pytest.mark.parametrize("outputs", [(HIDDEN,), (POOLED,), (HIDDEN, POOLED)], ids="+".join)
def test_every_text_gets_the_answer_that_it_gets_alone(
    tmp_path: Path, reference: Any, outputs: tuple[str, ...], segment: str | None
) -> None:
    path = write(tmp_path / "texts.onnx", outputs)
    wrong: list[BaseException] = []
    padded: list[float] = []

    def ask(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            with yard.client(segment=segment) as client:
                texts = [request(int(rng.integers(1, 5)), int(rng.integers(1, 40)), n) for n in range(60)]
                futures = [client.submit("texts", text) for text in texts]
                for text, future in zip(texts, futures, strict=True):
                    check(path, reference, text, future.result(60))
                    assert future.reply is not None
                    padded.append(future.reply.receipt.padded)
        except BaseException as error:
            wrong.append(error)

    with batchyard.serve({"texts": path}, workers=2, threads=1, options={"texts": TO}) as yard:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not wrong, wrong[0]
        with yard.client() as client:
            (info,) = client.models()
        snapshot = yard.snapshot()
    assert info.padded_axes == ["sequence"]
    assert any(padded)
    assert 0 < info.padding < info.elements
    assert snapshot["elements"] == [["texts", info.elements, info.padding]]
    assert f"{info.padding / info.elements:.1%} of what ran was padding" in "\n".join(
        models_verb.as_text([info])
    )


def test_where_padding_changes_answers_it_is_not_done_and_the_reason_is_shown(
    tmp_path: Path, reference: Any
) -> None:
    path = write(tmp_path / "texts.onnx", (POOLED,), masked=False)
    with (
        batchyard.serve({"texts": path}, threads=1, options={"texts": TO}) as yard,
        yard.client() as client,
    ):
        (info,) = client.models()
        texts = [request(1, 3 + number % 5, number) for number in range(40)]
        futures = [client.submit("texts", text) for text in texts]
        for text, future in zip(texts, futures, strict=True):
            check(path, reference, text, future.result(60))
            assert future.reply is not None
            assert future.reply.receipt.padded == 0
    assert info.batchable
    assert info.padded_axes == []
    shown = "\n".join(models_verb.as_text([info]))
    assert "no padding, though it is asked for: a row of" in shown
    assert "of the largest value of output 'pooled' (allowed: 0.0001)" in shown


def test_inputs_that_disagree_on_their_length_are_run_alone(tmp_path: Path, reference: Any) -> None:
    path = write(tmp_path / "texts.onnx", (POOLED,))
    with (
        batchyard.serve({"texts": path}, threads=1, options={"texts": TO}) as yard,
        yard.client() as client,
    ):
        odd = request(1, 6) | {"mask": np.ones((1, 1), np.int64)}  # broadcast: onnxruntime runs it
        futures = [client.submit("texts", text) for text in (request(1, 4), odd, request(1, 5), odd)]
        for text, future in zip((request(1, 4), odd, request(1, 5), odd), futures, strict=True):
            check(path, reference, text, future.result(60))
        wrong = request(1, 6) | {"mask": np.ones((1, 5), np.int64)}
        with pytest.raises(ModelFailed):
            client.infer("texts", wrong)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"texts": {"pad": {"steps": {"to": [8]}}}}, ModelFailed, "no input has an axis 'steps'"),
        ({"texts": {"pad": {"sequence": {"to": [8, 4]}}}}, InvalidRequest, "expected rising sizes"),
        ({"text": {}}, InvalidRequest, "did you mean"),
        ({"texts": {"pad": object()}}, InvalidRequest, "options are plain values"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_served(
    tmp_path: Path, options: Any, error: type[Exception], text: str
) -> None:
    path = write(tmp_path / "texts.onnx")
    with pytest.raises(error, match=text):
        batchyard.serve({"texts": path}, threads=1, options=options).close()


def test_a_table_in_the_configuration_pads_as_well(tmp_path: Path, reference: Any) -> None:
    path = write(tmp_path / "texts.onnx")
    config = tmp_path / "batchyard.toml"
    config.write_text(
        '[models.texts]\nfile = "texts.onnx"\nbatch_elements_max = 64\n'
        "pad = { sequence = { to = [8, 16], fill = { ids = 1 } } }\n"
    )
    with Yard(["--config", str(config)], 1, 1) as yard:
        yard.wait_for_broker(60)
        with yard.client() as client:
            client.wait_ready("texts", 60)
            texts = [request(1, 9 + number % 8, number) for number in range(30)]
            futures = [client.submit("texts", text) for text in texts]
            for text, future in zip(texts, futures, strict=True):
                check(path, reference, text, future.result(60))
                assert future.reply is not None
                assert future.reply.receipt.rows * 9 <= 64
