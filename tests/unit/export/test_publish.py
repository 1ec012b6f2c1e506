"""What lies on the disk after an export: whole files, one record, nothing stale, nobody else's replaced."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from batchyard.export import metadata, runtime
from batchyard.export.publish import beside, publish
from batchyard.export.report import Report, Variant
from batchyard.export.timing import Timing
from batchyard.export.validation import Difference
from batchyard.transport.errors import InvalidRequest

NEAR = Difference((1, 2), 3, 1e-7, 1e-7, 1e-7, float("nan"), 1.0)
TIMES = (Timing(1, runtime.CPU, 1.0, 0.5, 0.5, 9),)


@pytest.fixture
def proto(onnx_models: Any) -> Any:
    import onnx

    return onnx.load(str(onnx_models.affine("published", 8, 4)))


def report(folder: Path, *variants: Variant) -> Report:
    inputs = [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]
    fp32 = Variant("fp32", 1000, 1.0, TIMES, NEAR)
    return Report(
        folder / "m.onnx", "zoo:m", 18, True, 9, 2, (), (fp32, *variants), folder / "m.json", inputs, inputs
    )


SMALL = Variant("int8-storage", 260, 0.26, TIMES, NEAR)
REFUSED = Variant("dynamic", 250, 0.25, TIMES, NEAR, ("slower: 5.00 times fp32 at batch 1",))


def test_files_and_record_belong_together(tmp_path: Path, proto: Any) -> None:
    done = publish(report(tmp_path, SMALL, REFUSED), {"fp32": proto, "int8-storage": proto}, [])
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.int8-storage.onnx", "m.json"}
    assert done.best.name == "int8-storage"
    record = json.loads((tmp_path / "m.json").read_text())
    assert [part["published"] for part in record["variants"]] == [True, True, False]
    assert record["variants"][2]["refused"] == ["slower: 5.00 times fp32 at batch 1"]
    for part in record["variants"][:2]:
        content = (tmp_path / part["file"]).read_bytes()
        assert (part["bytes"], part["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_metadata_is_inside_the_file_and_the_file_runs(tmp_path: Path, proto: Any) -> None:
    publish(report(tmp_path), {"fp32": proto}, [])
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=[runtime.CPU])
    inside = session.get_modelmeta().custom_metadata_map
    assert (inside["batchyard.source"], inside["batchyard.variant"]) == ("zoo:m", "fp32")
    assert json.loads(inside["batchyard.inputs"])[0]["shape"] == ["batch", 8]
    assert json.loads(inside["batchyard.timings"])[0]["provider"] == runtime.CPU
    assert session.run(None, {"x": np.zeros((2, 8), np.float32)})[0].shape == (2, 4)


def test_an_earlier_exports_variant_that_is_refused_now_is_removed(tmp_path: Path, proto: Any) -> None:
    publish(report(tmp_path, SMALL), {"fp32": proto, "int8-storage": proto}, [])
    (tmp_path / "m.mine.onnx").write_bytes(b"somebody's")
    again = report(tmp_path, REFUSED)
    publish(again, {"fp32": proto}, metadata.earlier(again.metadata))
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.json", "m.mine.onnx"}


def test_a_tampered_record_removes_nothing_elsewhere(tmp_path: Path, proto: Any) -> None:
    other = tmp_path / "elsewhere.onnx"
    other.write_bytes(b"")
    record = {"format": metadata.FORMAT, "variants": [{"file": str(other)}, {"file": "../m.x.onnx"}]}
    (tmp_path / "m.json").write_text(json.dumps(record))
    publish(report(tmp_path), {"fp32": proto}, metadata.earlier(tmp_path / "m.json"))
    assert other.exists()


@pytest.mark.parametrize("content", ["{}", "[1]", "not json", '{"format": "other"}'])
def test_a_json_file_that_is_not_ours_is_never_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(InvalidRequest, match="no record of an earlier export"):
        metadata.earlier(tmp_path / "m.json")


def test_variants_lie_beside_their_model() -> None:
    assert beside(Path("a/v1.2.onnx"), "static") == Path("a/v1.2.static.onnx")


def test_a_report_reads_well(tmp_path: Path, proto: Any) -> None:
    broken = Variant("static", 0, float("nan"), (), None, ("the quantizer failed",))
    done = publish(report(tmp_path, REFUSED, broken), {"fp32": proto}, [])
    lines = "\n".join(done.lines())
    assert "9 -> 2 nodes (-78% against the raw export)" in lines
    assert "refused: slower: 5.00 times fp32" in lines
    assert "refused: the quantizer failed" in lines
    assert "best: fp32" in lines
