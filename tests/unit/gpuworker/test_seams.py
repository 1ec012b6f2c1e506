"""What a new provider, and a new kind of model, costs: one module, and one entry where it is listed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from batchyard.gpuworker import backends, providers
from batchyard.gpuworker.answers import Result
from batchyard.gpuworker.faults import runtime
from batchyard.gpuworker.providers import Recipe, base_options, cpu
from batchyard.gpuworker.worker import Worker
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.tensors import TensorSpec

FLOAT = 1


@pytest.fixture
def brook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A provider that is the CPU's under another name, with three devices."""

    def recipe(threads: int, device: int = 0, whole: bool = False) -> Recipe:
        return Recipe("brook", base_options, ["CPUExecutionProvider"], reference=cpu.recipe(threads))

    module: Any = ModuleType("brook")
    module.NAME = "brook"
    module.EXECUTION_PROVIDER = "BrookExecutionProvider"
    module.WHEELS = ("numpy",)  # one that is installed
    module.found = lambda: True
    module.devices = lambda: 3
    module.recipe = recipe
    monkeypatch.setattr(providers, "PROVIDERS", {"brook": module, **providers.PROVIDERS})
    monkeypatch.setattr(providers, "LADDER", ("brook", *providers.LADDER))
    return module


def test_a_provider_is_one_module_and_its_entry_in_the_list(brook: Any, onnx_models: Any, reference: Any) -> None:
    assert providers.installed()[0] == "brook"
    assert providers.available()[0] == "brook"
    assert providers.PROVIDERS["brook"].devices() == 3
    path: Path = onnx_models.affine("brook", 4, 3)
    model = backends.make(m.Load("net", 1, str(path), 4, None, True), providers.recipe("brook", 1), 1e-3)
    assert model.recipe.name == "brook"
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(model.answers({"x": x}, 2)[0], reference(path, x=x)[0], rtol=1e-5)


def test_a_provider_that_is_not_there_says_which_wheel_brings_it(brook: Any) -> None:
    brook.found = lambda: False
    brook.WHEELS = ("onnxruntime-brook",)
    with pytest.raises(ValueError, match="brook comes with onnxruntime-brook"):
        providers.recipe("brook", 1)
    assert runtime().startswith("onnxruntime ")


class Echo:
    """A model that answers nothing: what a Worker uses of one."""

    name, batchable, alone_reason, max_batch, placement = "echo", True, "", 8, "nowhere"
    evidence, disproved, batch_axes, padding = "by its kind", "", [0, 0], None
    has_learned = False
    evidence, disproved, batch_axes, padding, streams = "by its kind", "", [0, 0], None, False
    recipe = SimpleNamespace(name="echo")
    warmup_ns: dict[int, int] = {}  # noqa: RUF012
    claimed_ns: dict[int, int] = {}  # noqa: RUF012
    buckets: list[int] = []  # noqa: RUF012
    origin = None
    inputs = (TensorSpec("x", FLOAT, ["n"]),)
    outputs = (TensorSpec("y", FLOAT, ["n"]),)

    def run(self, batch: m.LentBatch, memory: Any) -> Result:
        return Result()

    def forget_bindings(self) -> None:
        pass


def test_a_kind_of_model_is_one_module_and_its_entry_in_the_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind = SimpleNamespace(serves=lambda load: load.path.endswith(".echo"), make=lambda *_: Echo())
    monkeypatch.setattr(backends, "BACKENDS", [kind, *backends.BACKENDS])
    path = tmp_path / "model.echo"
    path.touch()
    sent: list[Any] = []

    def start_load(key: Any, load: m.Load, beside: Any) -> None:
        worker.loaded(key, (backends.make(load, cpu.recipe(1), 1e-2), None))

    worker = Worker("cpu", 1, lambda messages, frames=(): sent.extend(messages), start_load, SimpleNamespace(may_shrink=()))  # type: ignore[arg-type]
    worker.handle(m.Load("net", 1, str(path), 8, None, True))
    (loaded,) = sent
    assert (loaded.provider, loaded.evidence, loaded.max_batch) == ("echo", "by its kind", 8)
    (lent,) = codec.broker_to_worker.decode(codec.encode([m.Batch(7, "net", 1, 1, [])]))
    worker.handle(lent)
    assert isinstance(sent[-1], m.Done)
    assert sent[-1].batch == 7
