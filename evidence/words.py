"""What a runtime says of a run that failed, in a line that people can use: without error codes, without
where in the runtime's source it was said, and without advice for the runtime's own authors.
"""

from __future__ import annotations

import re

LINE_MAX = 500

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_RUNNING = re.compile(
    r"(?:Error in execution: )?(?:\[ONNXRuntimeError\] : \d+ : \w+ : )?"
    r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: "
)
# file:line function condition "was false.", or file:line function(arguments) and then a sentence.
_PLACE = re.compile(r"(?:/\S*|\w+\.(?:cc|h)):\d+ .*?(?: was false\. |\) (?=[A-Z]))", re.S)
_SIZES = re.compile(
    r"Got invalid dimensions for input: (\S+) for the following indices\s+"
    r"((?:index: \d+ Got: \d+ Expected: \d+\s*)+)"
)
_SIZE = re.compile(r"index: (\d+) Got: (\d+) Expected: (\d+)")


def error_text(error: BaseException) -> str:
    """An error's text, as a message can carry it: the error may be of a user's own code, and then neither
    its `__str__` nor its characters can be relied on."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return text.encode(errors="replace").decode()


def of_run(error: BaseException) -> str:
    """Why a run failed: what the operator has to say, or whoever else raised it."""
    text = error_text(error).strip()
    sizes = _SIZES.search(text)
    if sizes is not None:
        wrong = [f"axis {axis} is {got}, and has to be {own}" for axis, got, own in _SIZE.findall(sizes[2])]
        return f"input {sizes[1]}: {'; '.join(wrong)}"
    match = _RUNNING.match(text)
    if match is None:
        return _PLACE.sub("", _CODE.sub("", text)) if _CODE.match(text) or _PLACE.match(text) else text
    operator, name = match.groups()
    reason = _PLACE.sub("", text[match.end() :]).strip()
    return f"{reason} (in the operator {operator}{name and f', node {name!r}'})"


def first_line(error: BaseException) -> str:
    """The same in one line, whatever was raised."""
    lines = of_run(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:LINE_MAX]
