"""The cause of a failed export, dug out of what torch says around it. None of it needs torch."""

from __future__ import annotations

import pytest
from batchyard.export.sources import CAUSE_CHARACTERS_MAX, cause

ADVICE = (
    "Failed to convert the exported program to an ONNX model. \x1b[96mThis is step 3/3\x1b[0m of exporting the "
    "model to ONNX. Next steps:\n- If there is a missing ONNX function, implement it.\n"
)


class DispatchError(Exception):
    pass


def test_the_root_is_told_and_no_advice() -> None:
    error = RuntimeError(ADVICE)
    error.__cause__ = RuntimeError("Error when translating node %svd. See the stack trace.")
    error.__cause__.__cause__ = DispatchError("No ONNX function found for svd.\nMore about it.")
    assert cause(error) == "DispatchError: No ONNX function found for svd."


def test_a_wrapper_that_was_raised_while_another_was_handled_hides_nothing() -> None:
    error = RuntimeError(ADVICE)
    error.__context__ = ValueError("Cannot view a tensor")
    assert cause(error) == "ValueError: Cannot view a tensor"
    plain = ValueError("the reason")
    plain.__context__ = KeyError("an accident of an implementation")
    assert cause(plain) == "ValueError: the reason"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one line", "one line"),
        ("\n\n  - Constraints violated!\n  - axis 0 is fixed\n", "Constraints violated! axis 0 is fixed"),
        ('Violated! For more information, run with TORCH_LOGS="+dynamic".\n  - why', "Violated! why"),
        ("", "no reason given"),
        ("x" * 1000, "x" * CAUSE_CHARACTERS_MAX + " ..."),
    ],
)
def test_it_is_one_line(text: str, said: str) -> None:
    assert cause(RuntimeError(text)) == said


def test_an_endless_chain_ends() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert cause(first) == "second"
