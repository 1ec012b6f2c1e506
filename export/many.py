"""Many models in one go, from a TOML list or a folder of factories; one that fails stops no other.

    [models.resnet18]                  # -> out/resnet18.onnx
    source = "zoo:resnet18"            # module:factory, or a .pt2 beside the list
    input = "1,3,32,32"                # or inputs = ["image=1,3,32,32", "tokens=int64:1,128:30000"]
    quantize = "best"                  # and the other keys of KEYS

A folder has one file per model, with a function `model()` and the same keys in capitals (`INPUT = ...`).
"""

from __future__ import annotations

import importlib.util
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from .build import Say, export_to_onnx
from .calibration import is_named
from .report import Report
from .sources import called, first_line
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
}


@dataclass(frozen=True)
class Entry:
    """One model of a list. `load` gives the model and its arguments, and raises what is wrong with it."""

    name: str
    load: Callable[[], tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Outcome:
    """How one model ended: with a report, or with one sentence."""

    name: str
    took_s: float
    report: Report | None
    error: str | None

    @property
    def failed(self) -> bool:
        """No file, or not the variants that were asked for by name."""
        return self.report is None or bool(self.report.missing)


def entries(where: Path) -> list[Entry]:
    """The models of a TOML list or of a folder. Raises InvalidRequest where there are none."""
    found = folder(where) if where.is_dir() else listed(where)
    if not found:
        raise InvalidRequest(f"{where} names no models")
    return found


def listed(file: Path) -> list[Entry]:
    """The `[models.NAME]` tables of a TOML file."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8")).get("models", {})
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {str(file)!r}") from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} is no TOML list of models: {error}") from None
    if not isinstance(tables, dict):
        raise InvalidRequest(f"{file} has no [models.NAME] tables")

    def entry(name: str, table: Any) -> Entry:
        def load() -> tuple[Any, dict[str, Any]]:
            if not isinstance(table, dict) or not isinstance(table.get("source"), str):
                raise InvalidRequest("it has no source: module:factory, or a .pt2 file")
            rest = {key: value for key, value in table.items() if key != "source"}
            source = table["source"]
            return str(file.parent / source) if source.endswith(".pt2") else source, arguments(
                rest, file.parent
            )

        return Entry(name, load)

    return [entry(name, table) for name, table in tables.items()]


def folder(where: Path) -> list[Entry]:
    """Every Python file of a folder whose name has no leading underscore."""

    def entry(file: Path) -> Entry:
        def load() -> tuple[Any, dict[str, Any]]:
            module = loaded(file)
            if not callable(getattr(module, "model", None)):
                raise InvalidRequest(f"{file.name} has no function model()")
            table = {
                key: vars(module)[key.upper()]
                for key in ("input", "inputs", *KEYS)
                if key.upper() in vars(module)
            }
            given = arguments(table, where)
            return called(f"{file.name}:model", module.model), given

        return Entry(file.stem, load)

    return [entry(file) for file in sorted(where.glob("*.py")) if not file.name.startswith("_")]


def loaded(file: Path) -> Any:
    """The module in `file`, under a name that can't be another's."""
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


def arguments(table: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """export_to_onnx's arguments for a table's keys. Raises InvalidRequest with all that is wrong."""
    wrong = []
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key in ("input", "inputs"):
            texts = [value] if isinstance(value, str) else value
            if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                given["input_shape"] = parse_all(texts)
            else:
                wrong.append(f"{key} is a text such as '1,3,32,32', or a list of them")
        elif key not in KEYS:
            wrong.append(f"there is no key {key!r} (there is: source, input, inputs, {', '.join(KEYS)})")
        elif not isinstance(value, KEYS[key][1]):
            wrong.append(f"{key} is {' or '.join(kind.__name__ for kind in KEYS[key][1])}, and not {value!r}")
        else:
            name, _, is_file = KEYS[key]
            given[name] = base / str(value) if is_file and not is_named(str(value)) else value
    if "input_shape" not in given and not wrong:
        wrong.append("it has no input, such as input = '1,3,32,32'")
    if wrong:
        raise InvalidRequest("; ".join(wrong))
    return given


def export_many(
    entries: Sequence[Entry], out: Path, say: Say = lambda line: None, **common: Any
) -> list[Outcome]:
    """Export each to `out/NAME.onnx`; `common` holds arguments for all, under what an entry says itself."""
    outcomes = []
    for index, entry in enumerate(entries, 1):
        place = f"[{index}/{len(entries)}] {entry.name}"
        say(f"{place}: starting")
        began_s = time.perf_counter()
        report, error = None, None
        try:
            model, given = entry.load()
            report = export_to_onnx(model, out / f"{entry.name}.onnx", **{**common, **given})
        except Exception as failure:  # whatever it was: the next model has its turn
            error = first_line(failure)
        outcome = Outcome(entry.name, time.perf_counter() - began_s, report, error)
        say(f"{place}: {sentence(outcome)} ({outcome.took_s:.1f} s)")
        outcomes.append(outcome)
    return outcomes


def sentence(outcome: Outcome) -> str:
    """How it ended, in a few words."""
    if outcome.report is None:
        return f"failed: {outcome.error}"
    if outcome.report.missing:
        first = outcome.report.missing[0]
        return f"{first.name} refused: {'; '.join(first.refused)}"
    return f"published, best is {outcome.report.best.name}"


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let `module:factory` find modules in `folder`, as `python -m` does with the current one."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
