"""How a function in the caller's hands is named for processes that cannot see it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.client import python_models
from batchyard.transport.errors import InvalidRequest
from batchyard.transport.python_models import FunctionSignature, model
from batchyard.transport.tensors import TensorSpec


@model(inputs="float32[batch]")
def marked(x: Any) -> Any:
    return x


def plain(x: Any) -> Any:
    return x


class Holder:
    def method(self, x: Any) -> Any:
        return x

    def __call__(self, x: Any) -> Any:
        return x


def inner() -> Callable[..., Any]:
    def hidden(x: Any) -> Any:
        return x

    return hidden


def test_a_function_of_a_module_is_named_by_it() -> None:
    assert python_models.reference(os.path.join) == f"{os.path.__name__}:join"
    assert python_models.named(marked) == python_models.Named(
        f"{__name__}:marked", FunctionSignature([TensorSpec("input", 1, ["batch"])], [], True)
    )


@pytest.mark.parametrize(
    "function",
    [lambda x: x, inner(), Holder().method, Holder(), partial(plain), Holder.method, len.__call__],
    ids=str,
)
def test_what_cannot_be_found_by_name_is_refused_and_told_why(function: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot be imported by a worker; .* nothing is pickled"):
        python_models.reference(function)


def test_a_function_that_was_replaced_under_its_name_is_not_taken_for_the_new_one(monkeypatch: Any) -> None:
    old = plain
    monkeypatch.setattr(sys.modules[__name__], "plain", marked)
    with pytest.raises(InvalidRequest, match="cannot be imported"):
        python_models.reference(old)


def test_a_function_that_declares_nothing_is_told_what_to_write() -> None:
    with pytest.raises(InvalidRequest, match=r"put @batchyard\.model"):
        python_models.named(plain)


PRINTS = "from batchyard.client import python_models\ndef go(x): return x\nprint(python_models.reference(go))\n"


def said(*arguments: str, folder: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, input=text, capture_output=True, text=True, check=False
    )


def test_a_function_of_the_script_itself_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PRINTS)
    assert said("script.py", folder=tmp_path).stdout.strip() == f"{tmp_path.resolve() / 'script.py'}:go"


def test_a_function_of_a_module_that_is_run_is_named_by_that_module(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "script.py").write_text(PRINTS)
    assert said("-m", "pack.script", folder=tmp_path).stdout.strip() == "pack.script:go"


def test_a_function_that_was_typed_in_is_refused(tmp_path: Path) -> None:
    assert (
        "InvalidRequest: 'go' was not read from a .py file" in said("-", folder=tmp_path, text=PRINTS).stderr
    )


def test_texts_name_functions_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert python_models.named("go.py:go").reference == f"{Path.cwd() / 'go.py'}:go"
    assert python_models.named("pack.go:go") == python_models.Named("pack.go:go", None)


@pytest.mark.parametrize("source", ["net.onnx", Path("net.py:go"), 3, None, {"a": "b"}])
def test_files_and_other_things_are_no_functions(source: Any) -> None:
    assert not python_models.is_source(source)


def test_an_item_shows_what_a_function_takes() -> None:
    assert python_models.learned(np.zeros((2, 3), np.float32)) == FunctionSignature(
        [TensorSpec("input", 1, ["batch", 2, 3])], [], True
    )
    assert python_models.learned({"a": 1, "b": [True]}) == FunctionSignature(
        [TensorSpec("a", 7, ["batch"]), TensorSpec("b", 9, ["batch", 1])], []
    )


@pytest.mark.parametrize("item", ["text", {}, {"x": object()}, {3: 4.0}, [[1], [2, 3]]])
def test_an_item_that_is_no_tensor_is_refused(item: Any) -> None:
    with pytest.raises(InvalidRequest):
        python_models.learned(item)


def test_workers_look_for_modules_where_this_program_does() -> None:
    found = python_models.environment()["PYTHONPATH"].split(os.pathsep)
    assert found == [os.path.abspath(folder) for folder in sys.path]
