"""What a file says of itself, read from files that say it as they should, and from files that don't."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from batchyard.gpuworker.backends.onnx import ServedModel
from batchyard.gpuworker.provenance import ENTRIES_MAX, PROVIDERS_MAX, SIZES_MAX, TEXT_MAX, of_metadata
from batchyard.gpuworker.providers import recipe
from batchyard.transport import codec
from batchyard.transport import messages as m

TIMES = [
    {"batch": 1, "provider": "CPUExecutionProvider", "ms": 0.5, "ratio": 1.0, "rounds": 9},
    {"batch": 8, "provider": "CPUExecutionProvider", "ms": 2.0},
    {"batch": 1, "provider": "WebGpuExecutionProvider", "ms": 0.1},
]


def said(**entries: Any) -> dict[str, str]:
    """As `batchyard export` writes it: strings as they are, the rest as JSON."""
    return {
        f"batchyard.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in entries.items()
    }


def serve(folder: Path, source: Path, entries: dict[str, str]) -> tuple[ServedModel, Path]:
    """A model that carries these entries, warm-up off."""
    import onnx

    proto = onnx.load(str(source))
    onnx.helper.set_model_props(proto, entries)
    path = folder / "stamped.onnx"
    onnx.save(proto, str(path))
    return ServedModel(m.Load("net", 1, str(path), 8, None, False), recipe("cpu", 1)), path


def test_variant_source_figures_and_times_are_read_from_the_file(tmp_path: Path, onnx_models: Any) -> None:
    validation = {"rms": 0.003, "agreement": 1.0, "abs_max": 1e-4, "batch_sizes": [1, 2], "rows": 256}
    entries = said(variant="static", source="zoo:cnn", size_ratio=0.26, validation=validation, timings=TIMES)
    model, path = serve(tmp_path, onnx_models.affine("origin", 8, 4), entries)
    assert model.origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (model.origin.variant, model.origin.source) == ("static", "zoo:cnn")
    assert model.origin.figures == {
        "size_ratio": 0.26,
        "rms": 0.003,
        "agreement": 1.0,
        "abs_max": 1e-4,
        "rows": 256,
    }
    assert model.origin.measured_ns["WebGpuExecutionProvider"] == {1: 100_000}
    assert model.claimed_ns == {1: 500_000, 8: 2_000_000}


def test_a_file_without_metadata_has_its_digest_and_claims_nothing(tmp_path: Path, onnx_models: Any) -> None:
    model, path = serve(tmp_path, onnx_models.affine("bare", 8, 4), {})
    assert model.origin == m.Provenance(hashlib.sha256(path.read_bytes()).hexdigest())
    assert model.claimed_ns == {}


def test_a_file_whose_metadata_is_no_text_is_served_all_the_same(tmp_path: Path, onnx_models: Any) -> None:
    _, path = serve(tmp_path, onnx_models.affine("bytes", 8, 4), said(variant="mark"))
    path.write_bytes(path.read_bytes().replace(b"mark", b"\xff\xfe\xfd\xfc"))
    model = ServedModel(m.Load("net", 1, str(path), 8, None, False), recipe("cpu", 1))
    assert model.origin.variant == ""


@pytest.mark.parametrize(
    "entries",
    [
        said(timings="[" * 100_000),
        said(timings="not JSON"),
        said(timings={"batch": 1}),
        said(timings=[1, 2]),
        said(timings=[{"batch": 0, "provider": "CPU", "ms": 1.0}]),
        said(timings=[{"batch": 1, "provider": "CPU", "ms": -1.0}]),
        said(timings=[{"batch": 1, "provider": "CPU", "ms": 1e300}]),
        said(timings='[{"batch": 1, "provider": "CPU", "ms": 1e999}]'),
        said(timings=[{"batch": 1, "provider": "CPU", "ms": "nan"}]),
        said(timings=[{"batch": True, "provider": "CPU", "ms": 1.0}]),
        said(timings=[{"batch": 1, "provider": "x" * 300, "ms": 1.0}]),
        said(timings="[" + " " * (1 << 20) + "]"),
        said(validation="[]", size_ratio="{}"),
        said(validation={"rms": 10**400, "agreement": "nan", "abs_max": None, "rows": [1]}, size_ratio='"x"'),
        said(validation='{"rms": 1e999, "agreement": NaN}'),
        said(validation='{"rms":' * 5000),
    ],
)
def test_what_is_not_as_export_writes_it_is_left_out(entries: dict[str, str]) -> None:
    assert of_metadata(entries, "d") == m.Provenance("d")


def test_texts_and_lists_are_bounded_so_that_the_broker_takes_the_message() -> None:
    timings = [
        {"batch": batch, "provider": f"P{provider}", "ms": 1.0}
        for provider in range(20)
        for batch in range(1, 100)
    ]
    found = of_metadata(said(variant="v" * 5000, source="\x1b[2J\n\u202eevil", timings=timings), "d" * 64)
    assert len(found.variant) == TEXT_MAX
    assert found.source == "?[2J??evil"
    assert len(found.measured_ns) == PROVIDERS_MAX
    assert {len(sizes) for sizes in found.measured_ns.values()} == {SIZES_MAX}
    spec = m.TensorSpec("x", 1, ["n", 4])
    loaded = m.Loaded(
        "net", 1, [spec], [spec], True, "", 8, "cpu", "", {}, [], None, found, found.measured_ns["P0"]
    )
    assert codec.worker_to_broker.decode(codec.encode([loaded])) == [loaded]


def test_a_files_other_entries_are_kept_whole_as_far_as_there_is_room() -> None:
    names = "{0: 'cat', 1: 'dog'}"
    entries = {"names": names, "stride": "32", **said(variant="static"), "k" * 300: "long", "blob": "b" * (1 << 16)}
    found = of_metadata(entries, "d").metadata
    assert found == {"names": names, "stride": "32"}
    many = of_metadata({str(number): "" for number in range(200)}, "d").metadata
    assert len(many) == ENTRIES_MAX
    loaded = m.Loaded("net", 1, [], [m.TensorSpec("y", 1, [1])], False, "", 1, "cpu", "", {}, origin=m.Provenance("d", metadata=many))
    assert codec.worker_to_broker.decode(codec.encode([loaded])) == [loaded]
