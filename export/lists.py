"""Lists of models to export: TOML files or folders. A mistake in a model is reported when it is loaded.

    [models.resnet18]                  # -> out/resnet18.onnx
    source = "zoo:resnet18"            # module:factory, or a .pt2 beside the list
    input = "1,3,32,32"                # or inputs = ["image=1,3,32,32", "tokens=int64:1,128:30000"]
    arguments = { width = 64 }         # the factory's, by name
    quantize = "best"                  # and the other keys of KEYS

    [models.cnn]                       # -> cnn-depth2-width8, cnn-depth2-width16, ...
    grid = { depth = [2, 3], width = [8, 16] }

A folder has one file per model: a .py with a function `model()` and the same keys in capitals
(`INPUT = ...`), a .pt2, or an .onnx; and such lists (.toml) besides.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from .calibration import is_named
from .sources import called, example_inputs, first_line, made, program
from .specs import parse_all

# key -> (the argument of export_to_onnx, its type, whether it names a file beside the list)
KEYS: dict[str, tuple[str, tuple[type, ...], bool]] = {
    "optimize": ("optimize", (bool,), False),
    "quantize": ("quantize", (bool, str, list), False),
    "calibration": ("calibration", (str,), True),
    "calibration_method": ("calibration_method", (str,), False),
    "validation": ("validation_data", (str,), True),
    "weights": ("weights", (str,), True),
    "dynamic_batch": ("dynamic_batch", (bool,), False),
    "batch_max": ("batch_max", (int,), False),
    "opset": ("opset", (int,), False),
    "outputs": ("output_names", (list,), False),
    "dynamic": ("dynamic", (list,), False),
    "task": ("task", (str,), False),
}


INPUTS = ("input", "inputs")
GRID_MAX = 10_000
UNFIT = re.compile(r"[^\w.+=-]+")  # in a file's name


@dataclass(frozen=True)
class Entry:
    """One model of a list. `load` returns the model and its arguments, and raises its mistakes."""

    name: str
    load: Callable[[], tuple[Any, dict[str, Any]]]
    said: Mapping[str, Any] = field(default_factory=dict)  # its table, for whoever asks whether it changed
    sources: tuple[str | Path, ...] = ()  # files, and `module:factory`, that it is made of


def entries(where: Path) -> list[Entry]:
    """The models of a TOML list or of a folder. Raises InvalidRequest for none, and for two of one name: one
    would overwrite the other."""
    found = folder(where) if where.is_dir() else listed(where)
    if not found:
        raise InvalidRequest(f"{where} names no models")
    names = [entry.name for entry in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InvalidRequest(f"{where} names {twice[0]!r} more than once")
    return found


def listed(file: Path) -> list[Entry]:
    """The `[models.NAME]` tables of a TOML file."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8")).get("models", {})
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {str(file)!r}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{file} is no TOML list of models: {error}") from None
    if not isinstance(tables, dict):
        raise InvalidRequest(f"{file} has no [models.NAME] tables")
    return [
        from_table(each, given, file.parent)
        for name, table in tables.items()
        for each, given in expanded(name, table)
    ]


def expanded(name: str, table: Any) -> list[tuple[str, Any]]:
    """(name, table) for each choice of a `grid`, whose values join `arguments`. Raises InvalidRequest."""
    if not isinstance(table, dict) or "grid" not in table:
        return [(name, table)]
    rest = {key: value for key, value in table.items() if key != "grid"}
    grid, fixed = table["grid"], rest.get("arguments", {})
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise InvalidRequest(f"{name}'s grid has lists, such as {{ width = [8, 16] }}, and not {grid!r}")
    if prod(map(len, grid.values())) > GRID_MAX:
        raise InvalidRequest(f"{name}'s grid has more than {GRID_MAX} choices")
    found = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        label = "-".join((name, *(f"{key}{value}" for key, value in chosen.items())))
        merged = {**fixed, **chosen} if isinstance(fixed, dict) else fixed
        found.append((UNFIT.sub("_", label), {**rest, "arguments": merged}))
    return found


def from_table(name: str, table: Any, base: Path) -> Entry:
    """The entry of a list's table. Its mistakes are reported when it is loaded."""
    said = table if isinstance(table, dict) else {}
    source = said.get("source")

    def load() -> tuple[Any, dict[str, Any]]:
        if not isinstance(source, str):
            raise InvalidRequest("it has no source: module:factory, or a .pt2 or .onnx file")
        rest = {key: value for key, value in said.items() if key not in ("source", "arguments")}
        keywords = said.get("arguments", {})
        if not isinstance(keywords, dict):
            raise InvalidRequest(f"arguments are {{ name = value }}, and not {keywords!r}")
        place = base / source
        if is_file(source):
            if keywords:
                raise InvalidRequest(f"{source} takes no arguments: they are a factory's")
            return of_file(place, rest, base)
        given = arguments(rest, base)
        return made(source, keywords).model if keywords else source, given

    files = [base / str(said[key]) if is_path else said[key] for key, is_path in _named(said)]
    if isinstance(source, str):
        files.append(base / source if is_file(source) else source)
    return Entry(name, load, said, tuple(files))


def _named(said: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The keys that name files or functions, each with whether it is a file."""
    keys = [key for key, (_, _, is_data) in KEYS.items() if is_data and isinstance(said.get(key), str)]
    return [(key, not is_named(said[key])) for key in keys]


def is_file(source: str) -> bool:
    return source.endswith((".pt2", ".onnx"))


def of_file(file: Path, table: Mapping[str, Any], base: Path) -> tuple[Any, dict[str, Any]]:
    """A saved model and its arguments. Without inputs in the table, its own are used."""
    if file.suffix == ".onnx":
        return str(file), arguments(table, base, needs_input=False)
    if set(INPUTS) & set(table):
        return str(file), arguments(table, base)
    saved = program(file)
    return saved, {**arguments(table, base, needs_input=False), "input_shape": example_inputs(file, saved)}


def folder(where: Path) -> list[Entry]:
    """The models of all files in a folder without a leading underscore, and of all lists."""
    found: list[Entry] = []
    for file in sorted(where.iterdir()):
        if file.name.startswith(("_", ".")):
            continue
        if file.suffix == ".toml":
            found += listed(file)
        elif file.suffix == ".py":
            found.append(Entry(file.stem, partial(from_python, file), sources=(file,)))
        elif is_file(file.name):
            found.append(Entry(file.stem, partial(of_file, file, {}, where), sources=(file,)))
    return found


def from_python(file: Path) -> tuple[Any, dict[str, Any]]:
    """The model that a file's `model()` returns."""
    module = loaded(file)
    if not callable(getattr(module, "model", None)):
        raise InvalidRequest(f"{file.name} has no function model()")
    keys = (*INPUTS, *KEYS)
    table = {key: vars(module)[key.upper()] for key in keys if key.upper() in vars(module)}
    return called(f"{file.name}:model", module.model), arguments(table, file.parent)


def loaded(file: Path) -> Any:
    """The module in `file`, imported under a unique name."""
    spec = importlib.util.spec_from_file_location(f"_exported_{file.stem}", file)
    assert spec is not None  # its suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and torch look a class's module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # somebody else's code
        raise ModelFailed(f"{file.name} raised {type(error).__name__}: {first_line(error)}") from error
    return module


def arguments(table: Mapping[str, Any], base: Path, needs_input: bool = True) -> dict[str, Any]:
    """export_to_onnx's arguments for a table's keys. Raises InvalidRequest with every mistake."""
    wrong = []
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key in INPUTS:
            texts = [value] if isinstance(value, str) else value
            if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                given["input_shape"] = parse_all(texts)
            else:
                wrong.append(f"{key} is a text such as '1,3,32,32', or a list of them")
        elif key not in KEYS:
            known = ", ".join(("source", "arguments", "grid", *INPUTS, *KEYS))
            wrong.append(f"there is no key {key!r} (there is: {known})")
        elif not isinstance(value, KEYS[key][1]):
            wrong.append(f"{key} is {' or '.join(kind.__name__ for kind in KEYS[key][1])}, and not {value!r}")
        else:
            name, _, is_file = KEYS[key]
            given[name] = base / str(value) if is_file and not is_named(str(value)) else value
    if needs_input and "input_shape" not in given and not wrong:
        wrong.append("it has no input, such as input = '1,3,32,32'")
    if wrong:
        raise InvalidRequest("; ".join(wrong))
    return given
