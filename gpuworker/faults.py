"""What is wrong with a model's file, in a sentence, from what onnxruntime says of it.

A sentence names the model's own fault and what to do about it. What is not known here is passed on
without the runtime's source lines, and without where files lie on this machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from ..evidence.words import error_text
from . import providers

TEXT_MAX = 500
HEAD_BYTES = 512

_KIND = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOADING = re.compile(
    r"^(Load model( from)? .*? failed[:.]|Exception during (loading|initialization):) ?", re.S
)
_SOURCE = re.compile(r"^\S+\.\w+:\d+ .*?\)(?= [A-Z]) ", re.S)  # its file, line, and function
_FOLDERS = re.compile(r"(?<![\w.:/])(?:/|[A-Za-z]:\\)(?:[^\s\"'/\\]+[/\\])+")

_Explain = Callable[[re.Match[str], str], str]


class CannotServe(Exception):
    """The file is no model that batchyard can serve; the text says why."""


def explain(error: BaseException, path: str) -> str:
    """Why onnxruntime does not load the file at `path`."""
    text = error_text(error).strip()
    for pattern, sentence in _KNOWN:
        match = pattern.search(text)
        if match is not None:
            return sentence(match, path)
    return plain(text) or type(error).__name__


def plain(text: str) -> str:
    """onnxruntime's message, without places in its source and without folders."""
    text = _KIND.sub("", text.strip())
    for pattern in (_LOADING, _SOURCE):
        text = pattern.sub("", text)
    line = text.strip().splitlines()[:1]
    return _FOLDERS.sub("", line[0])[:TEXT_MAX] if line else ""


def runtime() -> str:
    """`onnxruntime 1.27.0`, whichever wheel brings it."""
    known = [wheel for name in providers.LADDER for wheel in reversed(providers.PROVIDERS[name].WHEELS)]
    for wheel in dict.fromkeys(known):
        try:
            return f"onnxruntime {version(wheel)}"
        except PackageNotFoundError:
            continue
    return "onnxruntime"


def _opset(match: re.Match[str], path: str) -> str:
    used, domain, most = match.groups()
    return (
        f"it uses opset {used} of {domain}, and {runtime()} runs it up to {most}: export it with a lower "
        "opset, or install a newer onnxruntime"
    )


def _format(match: re.Match[str], path: str) -> str:
    used, most = match.groups()
    return (
        f"its file has IR version {used}, and {runtime()} reads up to {most}: save it with a lower "
        "ir_version, or install a newer onnxruntime"
    )


def _no_operator(match: re.Match[str], path: str) -> str:
    operator, opset = match.groups()
    return f"it uses the operator {operator}, which opset {opset} does not have"


def _no_custom_operator(match: re.Match[str], path: str) -> str:
    domain, operator = match.groups()
    return f"it uses the operator {operator} of {domain}, which {runtime()} does not have"


def _no_domain(match: re.Match[str], path: str) -> str:
    return f"it uses operators of {match[1]!r} without saying which version of them (opset_import)"


def _no_kernel(match: re.Match[str], path: str) -> str:
    operator, since, node = match.groups()
    where = f", at node {node!r}" if node else ""
    return (
        f"{runtime()} has no implementation of {operator} (of opset {since}) for the types that it is used "
        f"with{where}"
    )


def _no_type(match: re.Match[str], path: str) -> str:
    return f"it has tensors of {match[1]}, which onnxruntime does not run"


def _wrong_type(match: re.Match[str], path: str) -> str:
    of, name, operator = match.groups()
    return f"its operator {operator} does not take {of}, which {name!r} is"


def _no_locale(match: re.Match[str], path: str) -> str:
    return f"its operator {match[1]} wants the locale {match[2]}, which this machine does not have"


def _no_opset(match: re.Match[str], path: str) -> str:
    return "it does not say of which opset its operators are (opset_import)"


def _no_data(match: re.Match[str], path: str) -> str:
    name = os.path.basename(match[1])
    return f"its weights lie in a file beside it, {name!r}, and that is missing"


def _data_elsewhere(match: re.Match[str], path: str) -> str:
    """A link that leads nowhere is reported as one that leads out of the folder."""
    location = match[1]
    if not os.path.isabs(location) and not os.path.exists(os.path.join(os.path.dirname(path), location)):
        return _no_data(match, path)
    name = os.path.basename(location)
    return f"its external data, {name!r}, lies outside the model's own folder: onnxruntime refuses that"


def _data_absolute(match: re.Match[str], path: str) -> str:
    return (
        f"its external data (of {match[1]!r}) is named by an absolute path: onnxruntime wants one from the "
        "model's own folder on"
    )


def _data_short(match: re.Match[str], path: str) -> str:
    return (
        f"the file with its weights is shorter than the model says (tensor {match[1]!r}): it was not "
        "copied, or downloaded, to its end"
    )


def _no_file(match: re.Match[str], path: str) -> str:
    return "there is no such file"


def _no_model(match: re.Match[str], path: str) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    if not head:
        return "the file is empty"
    if path.endswith(".py"):
        return "it is Python and no ONNX file: name the function in it, as FILE.py:FUNCTION"
    if path.endswith(".toml"):
        return "it is a configuration and no ONNX file: `batchyard up --config FILE` serves what it names"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the model itself: `git lfs pull` brings that"
    if head.startswith(b"PK\3\4"):
        return "it is a zip archive (as PyTorch saves models) and no ONNX file: `batchyard export` makes one"
    if head.lstrip()[:1] == b"<":
        return "it is a page of HTML or XML and no ONNX file: what a download answered, perhaps"
    return "it is no ONNX file, or it was not copied, or downloaded, to its end"


_KNOWN: list[tuple[re.Pattern[str], _Explain]] = [
    (
        re.compile(r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)", re.S),
        _opset,
    ),
    (re.compile(r"model IR version: (\d+), max supported IR version: (\d+)"), _format),
    (re.compile(r"No Op registered for (\S+) with domain_version of (\d+)"), _no_operator),
    (re.compile(r"error: (\S*?):(\w+)\(-?\d+\) is not a registered function/op"), _no_custom_operator),
    (re.compile(r"No opset import for domain '([^']*)'"), _no_domain),
    (re.compile(r"find an implementation for (\w+)\((\d+)\) node with name '([^']*)'"), _no_kernel),
    (re.compile(r"MLDataType for: tensor\((\w+)\) is not"), _no_type),
    (
        re.compile(r"Type 'tensor\((\w+)\)' of input parameter \((\S+)\) of operator \((\w+)\)"),
        _wrong_type,
    ),
    (
        re.compile(r"onnxruntime::(\w+)::Locale.*construct locale with name:\s*([\w.-]+)"),
        _no_locale,
    ),
    (re.compile(r"Missing opset in the model"), _no_opset),
    (re.compile(r'External data path does not exist: "([^"]+)"'), _no_data),
    (re.compile(r'External data path: "([^"]+)".*(?:escapes|director)', re.S), _data_elsewhere),
    (re.compile(r"for initializer: (\S+)\. .*Absolute path not allowed", re.S), _data_absolute),
    (re.compile(r"Deserialize tensor (\S+) failed.*(?:out of bounds|read in full)", re.S), _data_short),
    (re.compile(r"NO_SUCHFILE"), _no_file),
    (
        re.compile(r"INVALID_PROTOBUF|No graph was found in the protobuf|ORT model verification failed"),
        _no_model,
    ),
]
