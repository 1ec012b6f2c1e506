"""Models that others made, served as their users would: many clients at once, requests of mixed sizes, and
every answer what onnxruntime gives for that request alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ...crowd import ask, differences
from . import drawn

MAGIKA = "magika/models/standard_v3_3/model.onnx"
BASIC_PITCH = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
WHISPER_VAD = "faster_whisper/assets/silero_vad_v6.onnx"
SEQUENCE_VAD = "silero_vad/data/silero_vad_16k_sequence.onnx"
DETECTOR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
RECOGNIZER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
CLASSIFIER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
YOLO = "nudenet/320n.onnx"
# What a model's own rounding makes of rows that run together, as a share of the largest value; measured in
# onnxruntime alone: exactly 0 for most, 1.4e-7 for magika, whose first convolution is blocked by rows.
ROUNDING = 1e-5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261130)


def rows_of(rng: np.random.Generator, *, to: int) -> int:
    """Most requests are one row, some a few."""
    return int(rng.choice([1, 1, 1, int(rng.integers(2, to + 1))]))


def test_magika_tells_files_apart_whoever_else_asks(served: Any, models_folder: Path, rng: Any) -> None:
    model = served(MAGIKA)
    kinds, requests = [], []
    for _ in range(48):
        batch = drawn.files(rows_of(rng, to=6), rng)
        kinds.append([kind for kind, _ in batch])
        requests.append({"bytes": np.concatenate([drawn.file_features(content) for _, content in batch])})
    answers = ask(model.yard, model.name, requests)
    assert differences(model.plain, requests, answers, ROUNDING) == []
    labels = json.loads((models_folder / MAGIKA).with_name("config.min.json").read_text())[
        "target_labels_space"
    ]
    told = [labels[int(row)] for answer in answers for row in answer.argmax(1)]
    wanted = [kind for kinds_of in kinds for kind in kinds_of]
    right = [have == want for have, want in zip(told, wanted, strict=True) if want]
    assert sum(right) > 0.9 * len(right), "these are not magika's answers"
    assert model.info().batchable, model.info().alone_reason


def test_basic_pitch_gives_its_three_outputs_to_each(served: Any, rng: Any) -> None:
    model = served(BASIC_PITCH)
    (name,) = model.plain.inputs
    requests = [
        {name: np.stack([drawn.speech(43844, rng, 22050)[:, None] for _ in range(rows_of(rng, to=2))])}
        for _ in range(12)
    ]
    answers = ask(model.yard, model.name, requests, clients=4)
    assert differences(model.plain, requests, answers, ROUNDING) == []
    assert list(answers[0]) == model.plain.outputs
    assert model.info().batchable, model.info().alone_reason


@pytest.mark.parametrize("file", [WHISPER_VAD, SEQUENCE_VAD])
def test_a_recording_is_not_mixed_with_another(served: Any, rng: Any, file: str) -> None:
    """Axis 0 is time: each row's answer depends on those before it, and the state at the end on all."""
    model = served(file)
    state = np.zeros((1, 1, 128), np.float32)
    requests = []
    for number in range(40):
        steps = int(rng.integers(1, 60)) if number % 4 else 6  # many of one length, which could share a run
        chunks = drawn.speech(512 * steps + 64, rng)
        windows = np.stack([chunks[512 * step : 512 * step + 576] for step in range(steps)])
        started = state if number % 3 else rng.standard_normal(state.shape).astype(np.float32)
        requests.append({"input": windows, "h": started, "c": started})
    answers = ask(model.yard, model.name, requests)
    assert differences(model.plain, requests, answers, ROUNDING) == []
    assert not model.info().batchable


def test_ppocr_finds_lines_in_images_of_any_size(served: Any, rng: Any) -> None:
    model = served(DETECTOR)
    sizes = [(64, 96), (96, 160), (64, 96), (160, 64), (96, 96)]
    requests = []
    for number in range(30):
        size = sizes[number % len(sizes)]
        images = [2 * drawn.photo(*size, rng) - 1 for _ in range(rows_of(rng, to=3))]
        requests.append({"x": np.concatenate(images)})
    answers = ask(model.yard, model.name, requests)
    assert differences(model.plain, requests, answers, ROUNDING) == []
    assert model.info().batchable, model.info().alone_reason


def test_ppocr_reads_lines_of_any_length(served: Any, rng: Any) -> None:
    model = served(RECOGNIZER)
    texts = ["BATCHYARD", "tensor 4096", "row 17 of 32", "shared memory", "urgent", "2026-11-30"]
    lines = [texts[int(index)] for index in rng.integers(0, len(texts), 24)]
    requests = [{"x": drawn.text_line(line)} for line in lines]
    for request in requests[::5]:  # a page's lines of one width come as one request
        request["x"] = request["x"].repeat(2, 0)
    answers = ask(model.yard, model.name, requests)
    assert differences(model.plain, requests, answers, ROUNDING) == []
    characters = ["", *model.plain.session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    read = [_ctc(answer[0], characters) for answer in answers]
    same = [_letters(have) == _letters(want) for have, want in zip(read, lines, strict=True)]
    assert sum(same) > 0.8 * len(same), f"the lines do not say {read[:6]}"
    assert model.info().batchable, model.info().alone_reason


def _ctc(scores: Any, characters: list[str]) -> str:
    """The text of float32[steps, characters]: the best of each step, repeats and blanks left out."""
    best = scores.argmax(1)
    kept = [int(code) for code, before in zip(best, [0, *best[:-1]], strict=True) if code and code != before]
    return "".join(characters[code] for code in kept)


def _letters(text: str) -> str:
    return "".join(text.lower().split())


def test_ppocr_says_which_lines_stand_on_their_head(served: Any, rng: Any) -> None:
    model = served(CLASSIFIER)
    requests = []
    for _ in range(40):
        line = drawn.text_line("which way up?"[: int(rng.integers(6, 14))])[:, :, :, :192]
        line = np.pad(line, ((0, 0), (0, 0), (0, 0), (0, 192 - line.shape[3])), constant_values=1)
        turned = [line if rng.random() < 0.5 else line[:, :, ::-1, ::-1] for _ in range(rows_of(rng, to=6))]
        requests.append({"x": np.ascontiguousarray(np.concatenate(turned))})
    answers = ask(model.yard, model.name, requests)
    assert differences(model.plain, requests, answers, ROUNDING) == []
    assert model.info().batchable, model.info().alone_reason


def test_yolo_finds_the_same_boxes_for_everybody(served: Any, rng: Any) -> None:
    model = served(YOLO)
    requests = []
    for number in range(16):
        height, width = (320, 320) if number % 4 else (160, 224)
        images = [drawn.photo(height, width, rng) for _ in range(rows_of(rng, to=2))]
        requests.append({"images": np.concatenate(images)})
    answers = ask(model.yard, model.name, requests, clients=4)
    assert differences(model.plain, requests, answers, ROUNDING) == []
    assert model.info().batchable, model.info().alone_reason
