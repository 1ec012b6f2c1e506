"""What each recipe asks of onnxruntime, with the session class replaced where it is imported: it records
what it was made with, and runs the CPU provider. DirectML itself runs on Windows alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from batchyard.gpuworker import providers
from batchyard.gpuworker.backends.onnx import ServedModel
from batchyard.gpuworker.device import DeviceLost
from batchyard.gpuworker.faults import CannotServe
from batchyard.gpuworker.memory import Memory
from batchyard.gpuworker.providers import openvino, webgpu
from batchyard.gpuworker.warmup import WarmUp
from batchyard.transport import codec, segments
from batchyard.transport import messages as m
from batchyard.transport.tensors import Slot, Tensor

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits.onnx"
CPU = "CPUExecutionProvider"
DEVICES = ("DmlExecutionProvider", "WebGpuExecutionProvider", "CUDAExecutionProvider")

RealOptions = onnxruntime.SessionOptions
RealSession = onnxruntime.InferenceSession


class RecordedOptions(RealOptions):  # type: ignore[misc, valid-type]
    """Real options, which also remember what can't be read back from them."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed: dict[str, int] = {}
        self.entries: dict[str, str] = {}
        self.added: list[Any] = []

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        self.fixed[name] = size
        super().add_free_dimension_override_by_name(name, size)

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value
        if key != "session.disable_cpu_ep_fallback":  # here everything runs on the CPU
            super().add_session_config_entry(key, value)

    def add_provider_for_devices(self, devices: Any, chosen: dict[str, str]) -> None:
        self.added.append((devices, chosen))


class RecordedSession:
    """A CPU session in the place of any provider's. `wrong`: of a device's sessions, what their runs answer."""

    made: ClassVar[list[RecordedSession]] = []
    wrong: ClassVar[Any] = None

    def __init__(self, model: Any, options: Any, providers: Any, enable_fallback: Any) -> None:
        self.options, self.providers, self.fallback = options, providers, enable_fallback
        self.real = RealSession(model, options, providers=[CPU])
        self.on_device = providers != [CPU]
        self.bound: list[np.ndarray[Any, Any]] = []
        RecordedSession.made.append(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def run_with_ort_values(self, names: Any, feeds: Any, options: Any = None) -> Any:
        answers = self.real.run_with_ort_values(names, feeds)
        if self.on_device and RecordedSession.wrong is not None:
            return [
                onnxruntime.OrtValue.ortvalue_from_numpy(RecordedSession.wrong(a.numpy())) for a in answers
            ]
        return answers

    @classmethod
    def on_devices(cls) -> list[RecordedSession]:
        return [made for made in cls.made if made.on_device]


@pytest.fixture(autouse=True)
def boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that says it has every provider."""
    RecordedSession.made.clear()
    monkeypatch.setattr(RecordedSession, "wrong", None)
    monkeypatch.setattr(onnxruntime, "SessionOptions", RecordedOptions)
    monkeypatch.setattr(onnxruntime, "InferenceSession", RecordedSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*DEVICES, CPU])


def served(name: str, path: Path = DIGITS, max_batch: int = 32, **options: Any) -> ServedModel:
    tolerance = {"tolerance": options.pop("tolerance")} if "tolerance" in options else {}
    load = m.Load(
        "net", 1, str(path), max_batch, None, options.pop("warmup", True), options.pop("buckets", [])
    )
    return ServedModel(load, providers.recipe(name, 1, **options), **tolerance)


class Arena:
    """One client's memory, and a model's answers to rows of it."""

    def __init__(self) -> None:
        self.segment = segments.create(1 << 20)
        self.memory = Memory()
        self.memory.attach(1, self.segment.handle, os.getpid())

    def close(self) -> None:
        self.memory.detach_all()
        self.segment.close()

    def answers(self, model: ServedModel, *requests: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        items, at = [], 0
        for x in requests:
            self.segment.buffer[at : at + x.nbytes] = x.tobytes()
            slot = Slot(at + x.nbytes, len(x) * 40)
            items.append(m.Item(1, [Tensor(1, list(x.shape), at)], [slot]))
            at = slot.offset + slot.nbytes
        (lent,) = codec.broker_to_worker.decode(
            codec.encode([m.Batch(1, "net", 1, sum(map(len, requests)), items)])
        )
        model.run(lent, self.memory)
        slots = [item.outputs[0] for item in items]
        flat = [bytes(self.segment.buffer[slot.offset : slot.offset + slot.nbytes]) for slot in slots]
        return [np.frombuffer(data, np.float32).reshape(-1, 10) for data in flat]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena()
    yield made
    made.close()


def scans(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random((rows, 1, 8, 8), np.float32)


# ---- DirectML -----------------------------------------------------------------------------------


def test_directml_gets_one_session_of_a_fixed_batch_for_each_bucket() -> None:
    model = served("directml", device=1)
    assert model.buckets == [1, 2, 4, 8, 16]
    assert model.max_batch == 16
    made = RecordedSession.on_devices()
    assert [session.options.fixed for session in made] == [{"batch": rows} for rows in (1, 2, 4, 8, 16)]
    for session in made:
        assert session.providers == [("DmlExecutionProvider", {"device_id": "1"}), CPU]
        assert session.fallback == 0
        assert session.options.enable_mem_pattern is False
        assert session.options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        assert (session.options.intra_op_num_threads, session.options.inter_op_num_threads) == (1, 1)
        assert session.options.entries["session.intra_op.allow_spinning"] == "0"
        assert session.options.entries["session.inter_op.allow_spinning"] == "0"
        assert "session.disable_cpu_ep_fallback" not in session.options.entries


def test_the_digits_model_answers_through_directmls_recipe_as_on_the_cpu(arena: Arena) -> None:
    """Every batch size: those between two buckets are padded, and cut again."""
    model = served("directml")
    plain = RealSession(str(DIGITS), providers=[CPU])
    for rows in range(1, 17):
        x = scans(rows, rows)
        (got,) = arena.answers(model, x)
        np.testing.assert_allclose(got, plain.run(None, {"image": x})[0], rtol=1e-5, atol=1e-5)


def test_requests_that_are_gathered_into_one_padded_batch_get_their_own_rows(arena: Arena) -> None:
    model = served("directml")
    plain = RealSession(str(DIGITS), providers=[CPU])
    requests = [scans(rows, rows) for rows in (1, 3, 1)]
    for x, got in zip(requests, arena.answers(model, *requests), strict=True):
        np.testing.assert_allclose(got, plain.run(None, {"image": x})[0], rtol=1e-5, atol=1e-5)


def test_the_configurations_buckets_are_taken_for_the_providers() -> None:
    model = served("directml", max_batch=24, buckets=[3, 24])
    assert model.buckets == [3, 24]
    assert [session.options.fixed for session in RecordedSession.on_devices()] == [
        {"batch": 3},
        {"batch": 24},
    ]


def test_a_batch_axis_without_a_name_cannot_be_fixed_and_is_left_free(onnx_models: Any) -> None:
    """The same name on another axis: fixing it would fix that one too."""
    path = onnx_models.unary("square", "Neg", ["n", "n"])
    model = served("directml", path, max_batch=2)
    assert model.buckets == [1, 2]
    assert [session.options.fixed for session in RecordedSession.on_devices()] == [{}]


def test_a_model_whose_outputs_are_no_rows_is_served_alone(onnx_models: Any) -> None:
    path = onnx_models.save(
        "halves",
        [("Reshape", ["x", "two"], ["y"], {})],
        [("x", 1, ["n", 4])],
        [("y", 1, ["k", 2])],
        {"two": np.array([-1, 2], np.int64)},
    )
    model = served("directml", path, max_batch=4)
    assert not model.batchable
    # How many rows are tried depends on how busy the machine is.
    assert re.search(r"has shape \[(10, 2\] for 5|6, 2\] for 3|4, 2\] for 2) rows", model.alone_reason)
    assert [session.options.fixed for session in RecordedSession.on_devices()] == [{}]


def test_a_bucket_that_would_hold_the_gpu_for_too_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows resets a GPU that computes for 2 s: nothing near that is tried."""
    took_ns = {1: 40_000_000, 2: 80_000_000, 4: 300_000_000}
    real = WarmUp._timed_run
    monkeypatch.setattr(
        WarmUp, "_timed_run", lambda self, feeds, rows: (real(self, feeds, rows)[0], took_ns[rows])
    )
    model = served("directml")
    assert model.buckets == [1, 2, 4]
    assert model.max_batch == 4


def test_a_model_that_shall_be_whole_on_the_device_names_no_other_provider() -> None:
    served("directml", whole=True)
    for session in RecordedSession.on_devices():
        assert session.providers == [("DmlExecutionProvider", {"device_id": "0"})]
        assert session.options.entries["session.disable_cpu_ep_fallback"] == "1"


# ---- WebGPU and CUDA ----------------------------------------------------------------------------


def test_webgpu_built_in_gets_its_options_as_entries_and_one_session_for_all_buckets() -> None:
    model = served("webgpu")
    assert model.buckets == [1, 2, 4, 8, 16, 32]
    (session,) = RecordedSession.on_devices()
    assert session.providers == [("WebGpuExecutionProvider", {}), CPU]
    assert session.fallback == 0
    assert session.options.fixed == {}
    assert session.options.entries["ep.webgpuexecutionprovider.powerPreference"] == "high-performance"
    assert session.options.entries["ep.webgpuexecutionprovider.enableGraphCapture"] == "0"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plugin's package beside a stock onnxruntime: devices are listed once its library is registered."""
    gpu = SimpleNamespace(ep_name="WebGpuExecutionProvider")
    listed: list[Any] = [SimpleNamespace(ep_name=CPU)]
    package = SimpleNamespace(get_ep_name=lambda: gpu.ep_name, get_library_path=lambda: "/lib/webgpu.so")
    monkeypatch.setitem(__import__("sys").modules, webgpu.PLUGIN, package)
    monkeypatch.setattr(webgpu, "find_spec", lambda name: package)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: listed)
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda name, path: listed.append(gpu)
    )
    return listed


@pytest.mark.parametrize(("version", "device", "adapter"), [("0.5.0", 1, "1"), ("0.4.0", 0, None)])
def test_the_webgpu_plugin_is_registered_once_and_takes_options_with_its_device(
    plugin: list[Any], monkeypatch: pytest.MonkeyPatch, version: str, device: int, adapter: str | None
) -> None:
    monkeypatch.setattr(webgpu, "version", lambda name: version)
    served("webgpu", device=device)
    served("webgpu", device=device)
    assert len(plugin) == 2, "registered twice"
    for session in RecordedSession.on_devices():
        assert session.providers is None
        ((devices, chosen),) = session.options.added
        assert devices == [plugin[1]]
        assert chosen.get("adapterIndex") == adapter
        assert chosen["powerPreference"] == "high-performance"


def test_another_adapter_cannot_be_asked_of_a_webgpu_that_takes_the_first() -> None:
    with pytest.raises(ValueError, match="--device 1 asks for another"):
        providers.recipe("webgpu", 1, device=1)


@pytest.mark.parametrize(
    ("names", "device", "chosen"), [(["CPU"], 0, "CPU"), (["CPU", "GPU.0", "NPU", "GPU.1"], 1, "GPU.1")]
)
def test_openvino_takes_gpus_before_the_processor_and_keeps_a_models_own_types(
    names: list[str], device: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [
        SimpleNamespace(ep_name="OpenVINOExecutionProvider", ep_metadata={"ov_device": name}) for name in names
    ]
    package = SimpleNamespace(get_ep_name=lambda: "OpenVINOExecutionProvider")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime_ep_openvino", package)
    monkeypatch.setattr(openvino, "find_spec", lambda name: package)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: listed)
    assert openvino.devices() == device + 1
    served("openvino", device=device)
    (session,) = RecordedSession.on_devices()
    (((found,), options),) = session.options.added
    assert found.ep_metadata["ov_device"] == chosen
    config = json.loads(options["load_config"])[chosen.partition(".")[0]]
    assert config["EXECUTION_MODE_HINT"] == "ACCURACY"
    assert config.get("INFERENCE_NUM_THREADS") == ("1" if chosen == "CPU" else None)
    with pytest.raises(CannotServe, match="--device 2 is none" if device else "--device 1 is none"):
        served("openvino", device=device + 1)


def test_cuda_gets_its_device_and_runs_buckets_in_one_session() -> None:
    model = served("cuda", device=3)
    (session,) = RecordedSession.on_devices()
    assert session.providers == [("CUDAExecutionProvider", {"device_id": "3"}), CPU]
    assert model.buckets == [1, 2, 4, 8, 16, 32]


def test_the_cpus_recipe_has_threads_that_do_not_spin_and_needs_no_comparison() -> None:
    providers.recipe("cpu", 3)
    served("cpu")
    (session,) = RecordedSession.made
    assert session.providers == [CPU]
    assert session.options.entries["session.intra_op.allow_spinning"] == "0"


# ---- on every device ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["directml", "webgpu", "cuda"])
def test_inputs_are_bound_again_before_every_run(
    arena: Arena, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's provider copies an input when it is bound: bound once, it would answer the first for ever."""
    bound: list[str] = []
    real = onnxruntime.IOBinding.bind_input

    def bind_input(self: Any, name: str, *place: Any) -> None:
        bound.append(name)
        real(self, name, *place)

    model = served(name)
    monkeypatch.setattr(onnxruntime.IOBinding, "bind_input", bind_input)
    x = scans(1)
    arena.answers(model, x)
    bound.clear()  # the first run is followed by one that shows what it writes
    for count in (1, 2, 3):
        arena.answers(model, x)
        assert bound == ["image"] * count


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda right: right + 1.0, "differs by up to 1, and"),
        (lambda right: np.full_like(right, np.nan), "is not finite on a canary where the CPU's is"),
        (lambda right: right[:, :-1], "has shape (1, 9) where the CPU's has (1, 10)"),
    ],
)
def test_a_device_whose_answers_are_not_the_cpus_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, wrong: Any, said: str
) -> None:
    monkeypatch.setattr(RecordedSession, "wrong", staticmethod(wrong))
    with pytest.raises(CannotServe) as refused:
        served("webgpu", tolerance=1e-3)
    assert said in str(refused.value)
    RecordedSession.made.clear()
    with pytest.raises(CannotServe):
        served("webgpu", tolerance=1e-3, warmup=False)  # the smallest bucket is compared nevertheless


def test_what_is_tolerated_is_a_part_of_the_greatest_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordedSession, "wrong", staticmethod(lambda right: right * 1.005))
    assert served("webgpu").warmup_ns
    assert served("webgpu", tolerance=float("inf")).warmup_ns
    with pytest.raises(CannotServe, match=r"is allowed \(--tolerance 0.001\)"):
        served("webgpu", tolerance=1e-3)


@pytest.mark.parametrize(
    "said",
    [
        "Exception: 887A0005 The GPU device instance has been suspended.",
        "onnxruntime 887A0006: the device will not respond to more commands",
        "887a0007",
        "887A0020",
        "WebGPU device lost (2): Device was destroyed.",
        "WebGPU validation failed. Buffer is destroyed",
        "VK_ERROR_DEVICE_LOST",
    ],
)
def test_a_device_that_is_lost_is_no_models_failure(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def lost(*_: Any) -> None:
        raise RuntimeError(said)

    model = served("directml")
    on_cpu = served("cpu")
    monkeypatch.setattr(RecordedSession, "run_with_iobinding", lost, raising=False)
    with pytest.raises(DeviceLost, match=said[:8]):
        arena.answers(model, scans(1))
    with pytest.raises(RuntimeError, match=said[:8]):
        arena.answers(on_cpu, scans(1))
    monkeypatch.setattr(
        RecordedSession,
        "run_with_ort_values",
        lambda self, *_: lost() if self.on_device else RealSession.run_with_ort_values(self.real, *_),
    )
    with pytest.raises(DeviceLost):
        served("webgpu")


def test_where_the_nodes_run_is_read_from_the_first_run() -> None:
    """The recorded sessions are the CPU's: all nodes are there, and it is said so, in numbers."""
    model = served("directml")
    assert model.placement.startswith("CPUExecutionProvider ")
    assert model.placement.endswith(" nodes")
    profiled = [session.options.enable_profiling for session in RecordedSession.on_devices()]
    assert profiled == [True, False, False, False, False]
