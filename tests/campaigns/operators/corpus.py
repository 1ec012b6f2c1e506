"""onnx's own backend tests as cases: a model, and the inputs that its authors wrote for it.

Reads the onnx package and nothing of ours. Every node test of the installed onnx, and the files that it
ships beside them ("simple", "pytorch-converted", "pytorch-operator").
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

Array = np.ndarray[Any, Any]
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@dataclass
class Case:
    """One backend test. `inputs` holds None where the test leaves an optional input out."""

    name: str
    model: ModelProto
    inputs: dict[str, Any]  # name -> array, list of arrays (a sequence), or None

    @property
    def operators(self) -> list[str]:
        return sorted({node.op_type for node in self.model.graph.node})


def cases() -> Iterator[Case]:
    """Every test, in the order of the onnx package: the same on every machine with that onnx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests overflow on purpose, and say so while they are made
        for kind in KINDS:
            for test in load_model_tests(kind=kind):
                if test.model is None:
                    yield _of_files(test.name, Path(test.model_dir))
                else:
                    yield _case(test.name, test.model, test.data_sets[0][0])


def _of_files(name: str, folder: Path) -> Case:
    model = onnx.load(folder / "model.onnx")
    data = folder / "test_data_set_0"
    inputs: list[Any] = []
    for index, info in enumerate(model.graph.input):
        file = data / f"input_{index}.pb"
        if not file.exists():
            break  # what follows are initializers, which old models list as inputs, too
        which = info.type.WhichOneof("value")
        message = onnx.SequenceProto() if which == "sequence_type" else TensorProto()
        message.ParseFromString(file.read_bytes())
        inputs.append(message)
    return _case(name, model, inputs)


def _case(name: str, model: ModelProto, inputs: list[Any]) -> Case:
    names = [info.name for info in model.graph.input]
    return Case(name, model, {key: _value(given) for key, given in zip(names, inputs, strict=False)})


def _value(given: Any) -> Any:
    """A test's input as an array: some are messages, and some are numbers of numpy's."""
    if isinstance(given, TensorProto):
        return numpy_helper.to_array(given)
    if isinstance(given, onnx.SequenceProto):
        return numpy_helper.to_list(given)
    if given is None or isinstance(given, list):
        return given
    if isinstance(given, onnx.OptionalProto):
        return numpy_helper.to_optional(given)
    return np.asarray(given)
