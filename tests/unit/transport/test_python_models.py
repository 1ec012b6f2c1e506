"""Names of Python functions, texts of tensors, and what the decorator notes."""

from __future__ import annotations

import pytest
from batchyard.transport.errors import InvalidRequest
from batchyard.transport.python_models import (
    ATTRIBUTE,
    Function,
    FunctionSignature,
    declared,
    is_reference,
    model,
    parse,
)
from batchyard.transport.tensors import TensorSpec


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("images:resize", ("", Function("resize", "images"))),
        ("my.images.tools:Resize", ("", Function("Resize", "my.images.tools"))),
        ("resize.py:resize", ("resize.py", Function("resize"))),
        ("/a folder/re:size.py:go", ("/a folder/re:size.py", Function("go"))),
        ("größe.py:maß", ("größe.py", Function("maß"))),
    ],
)
def test_a_function_is_named_by_its_module_or_by_its_file(text: str, named: tuple[str, Function]) -> None:
    assert is_reference(text)
    assert parse(text) == named


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "resize",
        "resize.py",
        ":resize",
        "images:",
        "images:a.b",
        "images:1",
        "a-b:c",
        "a..b:c",
        "a\0.py:f",
    ],
)
def test_what_names_no_function_is_refused_and_told_how(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"file\.py:function"):
        parse(text)


@pytest.mark.parametrize(
    "text", ["resnet.onnx", "/models/resnet.onnx", "C:\\models\\resnet.onnx", "models/a:b"]
)
def test_an_ordinary_file_is_not_taken_for_a_function(text: str) -> None:
    assert not is_reference(text)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("float32[batch, 3, 224, 224]", TensorSpec("x", 1, ["batch", 3, 224, 224])),
        (" int64 [ n ,t ] ", TensorSpec("x", 7, ["n", "t"])),
        ("bool", TensorSpec("x", 9, [])),
        ("bool[]", TensorSpec("x", 9, [])),
        ("bfloat16[0]", TensorSpec("x", 16, [0])),
    ],
)
def test_a_tensor_is_written_as_it_is_shown(text: str, spec: TensorSpec) -> None:
    (found,) = declared({"x": text}).inputs
    assert found == spec
    assert declared({"x": str(spec).partition(": ")[2]}).inputs == [spec]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("float32[-1, 3]", "an axis is a size or a name"),
        ("float32[batch,, 3]", "an axis is a size or a name"),
        ("float32[batch", "such as"),
        ("float[batch]", "no element type 'float', only float32"),
        ({"x": 3}, "'x' is a text such as"),
        ({}, "inputs is a text such as"),
        ({"": "bool"}, "inputs is a text such as"),
        (None, "inputs is a text such as"),
        (f"bool[{', '.join(['n'] * 65)}]", "at most 64"),
        ("string[batch]", "no element type 'string', only float32"),
    ],
)
def test_what_is_no_tensor_is_refused_with_what_was_found(inputs: object, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said.replace("[", r"\[")):
        declared(inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [0, -1, 1025, 1.5, True, "8"])
def test_a_bound_of_rows_is_a_number_of_rows(rows: object) -> None:
    with pytest.raises(InvalidRequest, match="max_batch is a number of rows from 1 to 1024"):
        declared("bool[n]", max_batch=rows)  # type: ignore[arg-type]


def test_the_decorator_notes_what_it_was_told_and_changes_nothing_else() -> None:
    def resize(x: object) -> object:
        return x

    assert (
        model(inputs="uint8[batch, h, w]", outputs={"small": "uint8[batch, 8, 8]"}, max_batch=4)(resize)
        is resize
    )
    assert getattr(resize, ATTRIBUTE) == FunctionSignature(
        [TensorSpec("input", 2, ["batch", "h", "w"])], [TensorSpec("small", 2, ["batch", 8, 8])], True, 4
    )


def test_one_text_means_an_array_and_a_dict_means_a_dict() -> None:
    assert declared("bool[n]").bare
    assert not declared({"x": "bool[n]"}).bare
    assert declared("bool[n]").outputs == []
