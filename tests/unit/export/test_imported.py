"""ONNX files as sources: nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from batchyard.export import InputSpec, build, export_to_onnx, imported, runtime
from batchyard.transport.errors import InvalidRequest, ModelFailed

EVERYTHING = 1 << 30


@pytest.fixture
def source(onnx_models: Any) -> Path:
    path: Path = onnx_models.affine("imported", 64, 48)
    return path


def test_a_variant_is_published_of_a_file_that_is_onnx_already(source: Path, tmp_path: Path) -> None:
    report = export_to_onnx(source, tmp_path / "m.onnx", quantize="all", measure_s=0.01)
    assert report.source == "imported.onnx"
    assert report.inputs == [{"name": "x", "dtype": "float32", "shape": ["batch", 64]}]
    assert report.variants[0].difference is not None
    assert report.variants[0].difference.batch_sizes == (1, 2, 7, 32, 64)
    x = np.ones((3, 64), np.float32)
    wanted, got = (
        onnxruntime.InferenceSession(str(path), providers=[runtime.CPU]).run(None, {"x": x})[0]
        for path in (source, tmp_path / "m.onnx")
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_inputs_may_be_described_better_than_the_file_does_but_not_otherwise(
    source: Path, onnx_models: Any
) -> None:
    traced = imported.read(source, (InputSpec("input", (1, 64)),), None, EVERYTHING)
    assert traced.specs == (InputSpec("x", (1, 64), axes=("batch", "")),)
    with pytest.raises(InvalidRequest, match=r"takes float32\[batch, 64\], and float32\[1, 32\] was given"):
        imported.read(source, (InputSpec("input", (1, 32)),), None, EVERYTHING)
    free = onnx_models.unary("free_axis", "Neg", ["batch", "length"])
    with pytest.raises(InvalidRequest, match="no fixed shape: say one with --input"):
        imported.read(free, None, None, EVERYTHING)
    traced = imported.read(free, (InputSpec("input", (1, 12)),), None, EVERYTHING)
    assert traced.specs == (InputSpec("x", (1, 12), axes=("batch", "length")),)


def test_a_fixed_batch_stays_fixed(onnx_models: Any) -> None:
    traced = imported.read(onnx_models.unary("fixed_batch", "Neg", [3, 4]), None, None, EVERYTHING)
    assert traced.specs == (InputSpec("x", (3, 4), axes=("", "")),)


def test_weights_in_a_second_file_are_read_in(source: Path, tmp_path: Path) -> None:
    import onnx

    split = tmp_path / "split.onnx"
    external = {"save_as_external_data": True, "location": "split.data", "size_threshold": 0}
    onnx.save(onnx.load(str(source)), str(split), **external)
    report = export_to_onnx(split, tmp_path / "whole.onnx", measure_s=0.01)
    assert report.variants[0].nbytes > 64 * 48 * 4
    with pytest.raises(InvalidRequest, match=r"split\.onnx has .* GB of weights"):
        imported.load(split, 64 * 48 * 4)  # the file itself is far smaller
    (tmp_path / "split.data").unlink()
    with pytest.raises(InvalidRequest):
        imported.load(split, EVERYTHING)


def test_what_is_too_large_for_one_file_is_refused_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BYTES_MAX", 1000)
    with pytest.raises(InvalidRequest, match="weights, and one ONNX file holds"):
        export_to_onnx(source, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08" * 100])
def test_what_is_no_model_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises((InvalidRequest, ModelFailed)):
        export_to_onnx(tmp_path / "bad.onnx", tmp_path / "out.onnx")
    with pytest.raises(InvalidRequest, match="there is no file"):
        export_to_onnx(tmp_path / "none.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_file_is_never_written_over_its_own_source(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(InvalidRequest, match="written over what it is made of"):
        export_to_onnx(source, source.parent / "." / source.name)
    assert source.read_bytes() == before
