"""Where a model comes from: an object, an importable `module:factory`, or a saved torch.export program.

Never a pickle: it runs whatever its author wrote. A .pt2 that holds one is refused before torch opens
it; what remains is still a program, so load only those that you trust, as any model file.
"""

from __future__ import annotations

import io
import json
import os
import pkgutil
import re
import sys
import traceback
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from .specs import InputSpec

PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"}


@dataclass(frozen=True)
class Source:
    """`model`: a torch.nn.Module in eval mode, or a torch.export.ExportedProgram; `name`: for people."""

    name: str
    model: Any


def find(model: Any, weights: Path | None = None) -> Source:
    """The model that `model` names, or is.

    `weights`: a state dict, read with weights_only=True, which refuses everything but tensors.
    Raises InvalidRequest where there is no such model, ModelFailed where its factory fails.
    """
    import torch

    if isinstance(model, str | Path):
        text = str(model)
        found = Source(Path(text).name, program(Path(text))) if Path(text).suffix == ".pt2" else made(text)
    else:
        found = Source(f"{type(model).__module__}.{type(model).__qualname__}", model)
    # torch.compile's wrapper: only the module inside can be traced, and it answers without a compiler.
    found = Source(found.name, getattr(found.model, "_orig_mod", found.model))
    if not isinstance(found.model, torch.nn.Module | torch.export.ExportedProgram):
        kind = type(found.model).__name__
        raise InvalidRequest(f"{found.name} is no torch.nn.Module but a {kind}")
    if weights is not None:
        if not isinstance(found.model, torch.nn.Module):
            raise InvalidRequest(f"{found.name} has its weights inside: --weights is for a module")
        load_weights(found.model, weights)
    return found


def weights_nbytes(source: Source) -> int:
    """Bytes of its parameters and buffers, each counted once."""
    weights = (*source.model.parameters(), *source.model.buffers())
    tensors = {}
    for tensor in weights:
        try:
            where = tensor.data_ptr()
        except RuntimeError:  # a sparse one has none
            where = id(tensor)
        tensors[where, tensor.numel()] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def refuse_packed(source: Source) -> None:
    """Raises InvalidRequest for TorchScript and for what torch has quantized: no exporter reads them."""
    import torch

    if isinstance(source.model, torch.jit.ScriptModule):
        raise InvalidRequest(
            f"{source.name} is TorchScript, which cannot be exported: export the module that it was made of"
        )
    parts = source.model.modules() if hasattr(source.model, "modules") else ()
    for part in parts:
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise InvalidRequest(
                f"{source.name} is quantized already ({type(part).__module__}), and cannot be exported like "
                "that: export the model as it was before, with --quantize"
            )


def made(text: str, arguments: Mapping[str, Any] | None = None) -> Source:
    """What `module:factory` names: a function or class, called with `arguments`, or a module object."""
    suffix = Path(text).suffix
    if suffix in PICKLES:
        raise InvalidRequest(
            f"{text} is a pickle, which can run any code when it is loaded: save the model with "
            f"torch.export.save (.pt2), or give module:factory and this file as --weights"
        )
    if ":" not in text:
        raise InvalidRequest(f"{text!r} is neither module:factory nor a .pt2 file")
    try:
        factory = pkgutil.resolve_name(text)
    except (ImportError, AttributeError, ValueError) as error:
        where = f" (searched first: {sys.path[0] or os.getcwd()})" if isinstance(error, ImportError) else ""
        raise InvalidRequest(f"{text} cannot be imported: {error}{where}") from error
    return Source(text, called(text, factory, arguments))


def called(name: str, factory: Any, arguments: Mapping[str, Any] | None = None) -> Any:
    """What the factory makes; an nn.Module stands for itself. Raises ModelFailed with its words."""
    torch = sys.modules.get("torch")  # who has made an nn.Module has loaded it
    if not callable(factory) or (torch is not None and isinstance(factory, torch.nn.Module)):
        return factory
    try:
        return factory(**(arguments or {}))
    except (Exception, SystemExit) as error:  # somebody else's code: its end is not ours
        raise ModelFailed(f"{name} raised {type(error).__name__}: {first_line(error)}") from error


def load_weights(model: Any, path: Path) -> None:
    """Read a state dict into `model`. Raises InvalidRequest where it isn't one, or isn't this model's."""
    import torch

    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {str(path)!r}") from None
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, TypeError, EOFError, ...
        raise InvalidRequest(f"{path} is no state dict of this model: {first_line(error)}") from error


def program(path: Path) -> Any:
    """The torch.export.ExportedProgram in a .pt2 file. Raises InvalidRequest."""
    import torch

    try:
        content = path.read_bytes()  # once: what was checked is what is loaded
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from None
    for inputs in refuse_pickles(path, content):
        # torch.export.load falls back to a full unpickle where this raises: so it is tried here first.
        try:
            torch.load(io.BytesIO(inputs), map_location="cpu", weights_only=True)
        except Exception as error:
            raise InvalidRequest(f"{path}'s sample inputs are more than tensors: refused") from error
    try:
        return torch.export.load(io.BytesIO(content))
    except Exception as error:  # the reader is torch's, and raises anything
        raise InvalidRequest(f"{path} is no readable torch.export program: {first_line(error)}") from error


def example_inputs(path: Path, saved: Any) -> tuple[InputSpec, ...]:
    """What a saved program was traced with: the inputs that it takes. Raises InvalidRequest."""
    import torch

    positional, named = saved.example_inputs or ((), {})
    if not positional or named or not all(isinstance(one, torch.Tensor) for one in positional):
        raise InvalidRequest(f"{path.name} does not say which tensors it takes: write its inputs into a list")
    lone = len(positional) == 1
    return tuple(
        InputSpec("input" if lone else f"input_{index}", tuple(one.shape), str(one.dtype).rpartition(".")[2])
        for index, one in enumerate(positional)
    )


def refuse_pickles(path: Path, content: bytes) -> list[bytes]:
    """The sample inputs of a .pt2 archive. Raises InvalidRequest where anything else in it is a pickle.

    torch 2.13 unpickles fully: legacy weights and constants (.pt), payloads marked `use_pickle`, and
    custom objects; and the whole older format, which has no `archive_format`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            tails = [name.partition("/")[2] for name in names]
            read = dict(zip(tails, (archive.read(name) for name in names), strict=True))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InvalidRequest(f"{path} is no torch.export program: {error}") from None
    if len(read) < len(names):  # two readers could each see another one of a pair
        raise InvalidRequest(f"{path} has two entries of one name: refused")
    if read.get("archive_format") != b"pt2":
        raise InvalidRequest(f"{path} is no torch.export program of a format that holds no pickles")
    for name in read:
        if name.startswith(("data/weights/", "data/constants/")):
            payload = name.rpartition("/")[2]
            if name.endswith("_config.json"):
                pickled = [key for key, part in payloads(path, read[name]).items() if part.get("use_pickle")]
            else:
                pickled = [] if payload.startswith(("weight_", "tensor_")) and "." not in payload else [name]
            if pickled:
                raise InvalidRequest(f"{path} holds a pickle ({pickled[0]}): refused")
    return [data for name, data in read.items() if name.startswith("data/sample_inputs/")]


def payloads(path: Path, text: bytes) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text)["config"]
        return {str(key): dict(part) for key, part in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidRequest(f"{path} has a damaged list of weights") from None


def first_line(error: BaseException) -> str:
    """The first line of what was said: torch explains itself over pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


ANSI = re.compile(r"\x1b\[[0-9;]*m")
CAUSE_CHARACTERS_MAX = 400
DATA_DEPENDENT = {"GuardOnDataDependentSymNode", "DataDependentOutputException"}  # torch's words fill pages
LIBRARIES = {"torch", "onnxscript", "onnx_ir", "onnx", "onnxruntime", "numpy", "sympy", "networkx"} | {
    __name__.partition(".")[0],  # ourselves
    *sys.stdlib_module_names,
}


def cause(error: BaseException) -> str:
    """What went wrong underneath, in one line: torch wraps the reason in advice on how to report bugs."""
    chain = [error]
    while (deeper := _beneath(chain[-1])) is not None and deeper not in chain:
        chain.append(deeper)
    text = next((text for text in map(_said, reversed(chain)) if text), "no reason given")
    text = text if len(text) <= CAUSE_CHARACTERS_MAX else f"{text[:CAUSE_CHARACTERS_MAX]} ..."
    where = next((place for place in map(_place, reversed(chain)) if place), "")
    return f"{text} ({where})" if where else text


def _place(error: BaseException) -> str:
    """Where in the model's own code it happened, `model.py, line 12`: the deepest line of no library."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in LIBRARIES and not frame.f_code.co_filename.startswith("<"):
            found = f"{Path(frame.f_code.co_filename).name}, line {line}"
    return found


def _beneath(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None:
        return error.__cause__
    is_wrapper = "Next steps:" in str(error)
    return error.__context__ if is_wrapper and not error.__suppress_context__ else None


def _said(error: BaseException) -> str:
    """Its first line, and the next one where the first only announces it; no advice."""
    lines = [line.strip(" -") for line in ANSI.sub("", str(error)).splitlines()]
    lines = [line for line in lines if line and "Next steps:" not in line]
    if not lines:
        return ""
    if type(error).__name__ in DATA_DEPENDENT:
        return "a branch, a loop or a size depends on the values of a tensor: use torch.where or torch.cond"
    first = lines[0].partition(" For more information, run with TORCH_LOGS")[0]
    announces = first.endswith((":", "!")) and len(lines) > 1
    text = f"{first} {lines[1]}" if announces else first
    kind = type(error).__name__
    return text if kind in ("RuntimeError", "Exception") else f"{kind}: {text}"
