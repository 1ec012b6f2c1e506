"""Three hundred of onnx's backend tests through a yard: half of them as they are, half with axis 0 made free and
asked by eight clients at once. All of them: python -m batchyard.tests.campaigns.operators."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import onnx

from ...campaigns.operators.__main__ import main
from ...campaigns.operators.corpus import Case
from ...campaigns.operators.requests import VARIANTS, decode, encode, prepare
from ...campaigns.operators.served import EQUAL, GOOD, RANDOM, REFUSED, WRONG, Stand

TESTS = 300


def test_backend_tests_are_served_and_equal_or_refused_by_type(run_folder: Path) -> None:
    file = run_folder / "operators.json"
    main(["--limit", str(TESTS), "--variant", "in turn", "--each", "2", "--quiet", "--json", str(file)])
    verdicts = json.loads(file.read_text())
    file.unlink()
    assert len(verdicts) > 0.8 * TESTS  # some don't run in onnxruntime itself
    bad = [
        f"{v['outcome']}: {v['variant']} {v['name']}: {v['text']}"
        for v in verdicts
        if v["outcome"] not in GOOD
    ]
    assert bad == []
    assert Counter(v["batched"] for v in verdicts if v["rows"] == "independent")[True] > 40


def test_the_judge_tells_a_wrong_answer_a_refusal_and_what_is_random(run_folder: Path) -> None:
    """Its own faults, sown: an expected answer that is another, a model that no onnxruntime loads."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, 4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    case = Case("test_relu", model, {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)})
    made = {variant: prepare(case, variant, 1, 16) for variant in VARIANTS}
    with open(run_folder / "judge.log", "wb") as log, TemporaryDirectory() as folder:
        stand = Stand(Path(folder), log)
        try:
            for variant, right in made.items():
                assert stand.judge(right).outcome == EQUAL, variant
                sown = msgspec.structs.replace(right, requests=[*right.requests])
                first = sown.requests[0]
                answer = decode(first.answers[0]) + np.float32(0.01)
                sown.requests[0] = msgspec.structs.replace(first, answers=[encode(answer)])
                verdict = stand.judge(sown)
                assert (verdict.outcome, verdict.wrong) == (WRONG, 1), variant
                random = msgspec.structs.replace(sown, random=True)
                assert stand.judge(random).outcome == RANDOM, variant
            assert stand.judge(msgspec.structs.replace(right, model=b"none")).outcome == REFUSED
        finally:
            stand.close()
    (run_folder / "judge.log").unlink()
