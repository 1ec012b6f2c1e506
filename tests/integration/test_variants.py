"""The variants that `batchyard export` makes of one model, served side by side by a real yard.

What the gate would say of their times depends on the machine, and is not asked here: the variants are made
and stamped as export does it, and served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.client import Yard, serve
from batchyard.export import gate, imported, metadata, passes, variants
from batchyard.export.report import FP32
from batchyard.gpuworker.providers import recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE_MAX = {"fp16-storage": 0.55, "int8-storage": 0.30, "static": 0.35}  # of fp32's file
CLAIMED_MS = 0.25


@pytest.fixture(scope="module")
def scans() -> np.ndarray[Any, Any]:
    with np.load(EXAMPLES / "digits_test.npz", allow_pickle=False) as data:
        images: np.ndarray[Any, Any] = data["images"]
    return images


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, scans: Any) -> dict[str, Path]:
    """A file for each variant of the digits model."""
    folder = tmp_path_factory.mktemp("variants")
    fp32, _ = passes.optimize(imported.load(EXAMPLES / "digits.onnx", 1 << 30))
    found = {}
    for name in (FP32, *SIZE_MAX):
        proto = fp32 if name == FP32 else variants.make(name, fp32, [{"image": scans[:64]}], "minmax")
        timings = f'[{{"batch": 4, "provider": "CPUExecutionProvider", "ms": {CLAIMED_MS}}}]'
        said = {"batchyard.variant": name, "batchyard.source": "digits", "batchyard.timings": timings}
        found[name] = folder / f"{name}.onnx"
        found[name].write_bytes(metadata.stamp(proto, said))
    return found


@pytest.fixture(scope="module")
def yard(files: dict[str, Path]) -> Iterator[Yard]:
    with serve(files, threads=1, max_batch=16) as made:
        yield made


def test_every_variant_answers_within_its_own_tolerance(yard: Yard, scans: Any) -> None:
    with yard.client() as client:
        answers = {name: client.infer(name, scans) for name in (FP32, *SIZE_MAX)}
    wanted = answers.pop(FP32)
    for name, got in answers.items():
        allowed = gate.TOLERANCES[name]
        assert np.linalg.norm(got - wanted) <= allowed.rms_max * np.linalg.norm(wanted), name
        assert np.mean(got.argmax(1) == wanted.argmax(1)) >= allowed.agreement_min, name


def test_every_variant_is_known_by_its_name_its_digest_and_the_times_that_it_claims(
    yard: Yard, files: dict[str, Path]
) -> None:
    with yard.client() as client:
        models = {model.name: model for model in client.models()}
    for name, file in files.items():
        origin = models[name].origin
        assert origin is not None
        assert (origin.variant, origin.source) == (name, "digits")
        assert origin.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert origin.measured_ns == {"CPUExecutionProvider": {4: int(CLAIMED_MS * 1e6)}}


def test_every_variant_stays_small_on_the_disk(files: dict[str, Path]) -> None:
    for name, most in SIZE_MAX.items():
        assert files[name].stat().st_size < most * files[FP32].stat().st_size, name


@pytest.mark.parametrize("name", ["fp16-storage", "int8-storage"])
def test_a_worker_runs_a_storage_variant_as_it_runs_fp32(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    """The same operators, once its session has folded the weights: so it is as fast, without an option."""
    import onnx
    import onnxruntime

    def operators(file: Path) -> list[str]:
        chosen = recipe("cpu", 1)
        options = chosen.make_options()
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        onnxruntime.InferenceSession(str(file), options, providers=chosen.providers)
        return sorted(node.op_type for node in onnx.load(str(tmp_path / "loaded.onnx")).graph.node)

    assert operators(files[name]) == operators(files[FP32])
    assert "Cast" not in operators(files[name])
