"""`batchyard.toml`: what a yard serves and where its bounds are, read once and checked when read.

Owns the file's keys, their defaults and their allowed ranges. Every problem names its key path, what
was found and what is allowed, and all of them are reported at once. Nothing here opens a model: this
room imports no runtime and no onnx; that a file is a model is for the worker to find out.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ..transport import functions
from ..transport.errors import BatchyardError, Code, InvalidRequest
from ..transport.functions import Function, Signature
from .tables import Table, dotted, shown

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MODELS_MAX = 1024
MAX_BATCH_DEFAULT = 32  # rows
MAX_BATCH_MAX = 1024  # rows
QUEUE_ROWS_MAX = 1 << 30
QUEUE_BYTES_MAX = 1 << 48
CLIENTS_MAX = 65536
BUDGET_MS_MAX = 3_600_000
CACHE_BYTES_DEFAULT = 64 << 20
CACHE_MS_MAX = 86_400_000
SPIN_US_DEFAULT = 100
SPIN_US_MAX = 10_000

# Where each bound of [limits] may lie: (least, most).
LIMITS_ALLOWED = {
    "queue_rows_max": (1, QUEUE_ROWS_MAX),
    "queue_bytes_max": (1, QUEUE_BYTES_MAX),
    "client_rows_max": (1, QUEUE_ROWS_MAX),
    "client_bytes_max": (1, QUEUE_BYTES_MAX),
    "clients_max": (1, CLIENTS_MAX),
}

MODEL_KEYS = (
    "file",
    "python",
    "inputs",
    "outputs",
    "max_batch",
    "batchable",
    "warmup",
    "idempotent",
    "join",
    "cache_ms",
    "cache_bytes",
    "buckets",
)
CLASSES = ("urgent", "high", "normal", "low")
BUDGETS_NS_DEFAULT = (5_000_000, 25_000_000, 100_000_000, 1_000_000_000)


class ConfigError(BatchyardError, ValueError):
    """The configuration can't be used as written. The operator must change it.

    `problems` has one line for each thing that is wrong; `str()` is all of them under the file's name.
    """

    code = Code.INVALID_REQUEST

    def __init__(self, source: str, problems: tuple[str, ...]) -> None:
        super().__init__("\n  ".join((f"{source}:", *problems)))
        self.source = source
        self.problems = problems


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model: `name` is what clients ask for; `path` is absolute, with every symlink resolved, or
    empty for a function of an importable module."""

    name: str
    path: Path
    max_batch: int = MAX_BATCH_DEFAULT  # rows
    batchable: bool | None = None  # None: decided from the model's symbolic axis 0
    warmup: bool = True
    idempotent: bool = True  # a request may run again when something died under it
    join: bool = False  # requests with the same content are run once
    cache_ns: int = 0  # how long a result answers requests with the same content; 0: no longer than they wait
    cache_bytes: int = CACHE_BYTES_DEFAULT  # of results kept
    buckets: tuple[int, ...] = ()  # the only batch sizes to run, rising; empty: the provider decides
    file: str = ""  # as it was named, under models_root: for when it is read anew
    function: Function | None = None  # None: an ONNX file


@dataclass(frozen=True, slots=True)
class Limits:
    """What may wait at the broker before it answers Overloaded: all clients together, and each one."""

    queue_rows_max: int = 65_536
    queue_bytes_max: int = 4 << 30
    client_rows_max: int = 16_384
    client_bytes_max: int = 2 << 30
    clients_max: int = 1024


@dataclass(frozen=True, slots=True)
class YardConfig:
    """A checked configuration. `budgets_ns` is by Priority: urgent, high, normal, low."""

    models: dict[str, ModelConfig]
    limits: Limits = field(default_factory=Limits)
    budgets_ns: tuple[int, int, int, int] = BUDGETS_NS_DEFAULT
    spin_ns: int = SPIN_US_DEFAULT * 1000
    models_root: Path | None = None  # where models that are loaded later lie; None: none can be
    max_batch: int = MAX_BATCH_DEFAULT  # rows, of such models
    load_python: bool = False  # whether an order may name a Python file of models_root: it is run


def read(path: Path) -> YardConfig:
    """Read and check a `batchyard.toml`. Raises ConfigError with every problem in it."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # editors on Windows begin it with a BOM
        content = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(str(path), ("no such file",)) from None
    except OSError as reason:
        raise ConfigError(str(path), (f"cannot be read: {reason.strerror or reason}",)) from None
    except UnicodeDecodeError as reason:
        raise ConfigError(str(path), (f"not UTF-8 text: wrong byte at offset {reason.start}",)) from None
    except tomllib.TOMLDecodeError as reason:
        raise ConfigError(str(path), (f"not TOML: {reason}",)) from None

    problems: list[str] = []
    allowed = ("models_root", "load_python", "models", "limits", "priorities", "broker")
    top = Table(content, "", problems, allowed)
    root = _models_root(top, path.absolute().parent)
    models = _models(top, root)
    limits = _limits(top.table("limits", tuple(LIMITS_ALLOWED)))
    budgets_ns = _budgets_ns(top.table("priorities", tuple(f"{name}_ms" for name in CLASSES)))
    spin_us = top.table("broker", ("spin_us",)).integer("spin_us", SPIN_US_DEFAULT, 0, SPIN_US_MAX)
    load_python = top.boolean("load_python") is True
    if problems:
        raise ConfigError(str(path), tuple(problems))
    return YardConfig(models, limits, budgets_ns, spin_us * 1000, root, load_python=load_python)


def with_file(model: ModelConfig, file: str, root: Path | None, load_python: bool = False) -> ModelConfig:
    """The model as it would be from this file inside `root` ("": the file that it has, looked up anew).
    "file.py:function" is Python, and only named where `load_python` says that it may be.

    Raises InvalidRequest for a name that is none, or a file that is not there or lies elsewhere.
    """
    problems: list[str] = []
    _check_model_names((model.name,), problems)
    key_path = dotted("models", model.name)
    name = file or model.file
    function = None
    if functions.is_reference(name):
        if file and not load_python:
            raise InvalidRequest(
                f"{key_path}: {shown(file)} is Python, and this yard loads none by order: the operator must "
                "set load_python = true in batchyard.toml"
            )
        name, function = functions.parse(name)
        if function.module:
            raise InvalidRequest(
                f"{key_path}: {function.module} is an importable module, which only a process that starts "
                "anew reads again; name a file in models_root instead, as file.py:function"
            )
        if model.function is not None:
            function = msgspec.structs.replace(function, signature=model.function.signature)
    if file and root is None:
        problems.append(f"{key_path}: this yard was started without models_root, so it loads no other file")
    elif not name or "\0" in name:
        problems.append(f"{key_path}: expected a file inside models_root ({root}), found {shown(name)}")
    else:
        path = _existing_file((root or Path()) / name, key_path, name, problems, inside=root)
        if path is not None and not problems:
            return replace(model, path=path, file=file or model.file, function=function)
    raise InvalidRequest("; ".join(problems))


def from_models(
    models: Mapping[str, str | os.PathLike[str]],
    max_batch: int = MAX_BATCH_DEFAULT,
    models_root: str | os.PathLike[str] | None = None,
    signatures: Mapping[str, Signature] | None = None,
    load_python: bool = False,
) -> YardConfig:
    """The configuration of an embedded yard: these names, these files or Python functions, what the
    functions of `signatures` take and give, defaults for the rest.

    The caller's own code names the files, so they may lie anywhere; what is loaded later lies in
    `models_root`, or, without it, in the folder that all of them share. Raises ConfigError.
    """
    problems: list[str] = []
    table = Table({"max_batch": max_batch}, "", problems, ("max_batch",))
    rows = table.integer("max_batch", MAX_BATCH_DEFAULT, 1, MAX_BATCH_MAX)
    found: dict[str, ModelConfig] = {}
    if not models:
        problems.append("models: expected at least one model, found none")
    _check_model_names(tuple(models), problems)
    for name, named in models.items():
        file, function, place = os.fspath(named), None, ""
        if functions.is_reference(file):
            file, function = functions.parse(file)
            function = msgspec.structs.replace(function, signature=(signatures or {}).get(name))
            if function.module:
                found[name] = ModelConfig(name, Path(), rows, file=os.fspath(named), function=function)
                continue
            place = f":{function.name}"
        resolved = _existing_file(Path(file), dotted("models", name), file, problems)
        if resolved is not None:
            found[name] = ModelConfig(
                name, resolved, rows, file=os.path.abspath(file) + place, function=function
            )
    root = Path(models_root).resolve() if models_root is not None else None
    folders = {model.path.parent for model in found.values() if model.path.is_absolute()}
    if root is None and len(folders) == 1:
        root = folders.pop()
    elif root is not None and not root.is_dir():
        problems.append(f"models_root: expected a folder, found {shown(str(models_root))}")
    if problems:
        raise ConfigError("models", tuple(problems))
    return YardConfig(found, models_root=root, max_batch=rows, load_python=load_python)


def _models_root(top: Table, folder: Path) -> Path | None:
    """The resolved folder that every model file must lie in; None where the key is wrong."""
    if "models_root" not in top.content:
        return folder.resolve()
    text = top.string("models_root", "a folder")
    if text is None:
        return None
    try:
        root = (folder / text).resolve()
        if root.is_dir():
            return root
    except (OSError, RuntimeError):  # too long; a symlink that goes in circles
        pass
    top.problems.append(f"models_root: expected a folder, found {shown(text)}: {folder / text} isn't one")
    return None


def _models(top: Table, root: Path | None) -> dict[str, ModelConfig]:
    tables = top.mapping("models")
    if not tables and isinstance(top.content.get("models", {}), dict):
        top.problems.append("models: expected at least one table [models.<name>], found none")
    _check_model_names(tuple(tables), top.problems)
    section = Table(tables, "models", top.problems, tuple(tables))
    found: dict[str, ModelConfig] = {}
    for name in tables:
        model = section.table(name, MODEL_KEYS)
        if not isinstance(tables[name], dict):
            continue
        source = _source(model, root)
        max_batch = model.integer("max_batch", MAX_BATCH_DEFAULT, 1, MAX_BATCH_MAX)
        batchable = model.boolean("batchable")
        warmup = model.boolean("warmup")
        idempotent = model.boolean("idempotent")
        join = model.boolean("join")
        cache_ms = model.milliseconds("cache_ms", 0, CACHE_MS_MAX)
        cache_bytes = model.integer("cache_bytes", CACHE_BYTES_DEFAULT, 1, QUEUE_BYTES_MAX)
        buckets = model.buckets("buckets", max_batch)
        if source is not None:
            file, path, function = source
            found[name] = ModelConfig(
                name,
                path,
                max_batch,
                batchable,
                warmup is not False,
                idempotent is not False,
                join is True,
                round(cache_ms * 1e6),
                cache_bytes,
                buckets,
                file,
                function,
            )
    return found


def _source(model: Table, root: Path | None) -> tuple[str, Path, Function | None] | None:
    """(as it was named, its file, the function) of what a model is; None where that is a problem."""
    key, text, function = "file", model.content.get("python"), None
    if "python" not in model.content:
        for only in ("inputs", "outputs"):
            if only in model.content:
                model.problems.append(f"{model.at(only)}: an ONNX file says itself what it takes and gives")
        text = file = model.string("file", "the model's file, inside models_root")
    else:
        key, file = "python", None
        if "file" in model.content:
            model.problems.append(f"{model.at('python')}: a model is a file or a Python function, not both")
        try:
            file, function = functions.parse(str(text))
            if "inputs" in model.content or "outputs" in model.content:
                takes, gives = model.content.get("inputs"), model.content.get("outputs")
                signature = functions.declared(takes, gives)  # type: ignore[arg-type]  # they are checked
                function = msgspec.structs.replace(function, signature=signature)
        except InvalidRequest as error:
            model.problems.append(f"{model.at(key)}: {error}")
            return None
    if function is not None and function.module:
        return str(text), Path(), function
    if file is None or root is None:
        return None
    path = _existing_file(root / file, model.at(key), file, model.problems, inside=root)
    return (str(text), path, function) if path is not None else None


def _check_model_names(names: tuple[str, ...], problems: list[str]) -> None:
    if len(names) > MODELS_MAX:
        problems.append(f"models: expected at most {MODELS_MAX} models, found {len(names)}")
    problems.extend(
        f"{dotted('models', name)}: expected a name of 1 to 64 letters, digits, '_', '.' or '-' that starts "
        f"with a letter or digit, found {shown(name)}"
        for name in names
        if not MODEL_NAME.fullmatch(name)
    )


def _existing_file(
    path: Path, key_path: str, text: str, problems: list[str], inside: Path | None = None
) -> Path | None:
    """`path` with every symlink resolved, if that is a file (and lies in `inside`); else a problem."""
    try:
        resolved = path.resolve()
        if inside is not None and not resolved.is_relative_to(inside):
            problems.append(
                f"{key_path}: expected a file inside models_root ({inside}), found {shown(text)}, "
                f"which is {resolved}"
            )
        elif not resolved.is_file():
            problems.append(f"{key_path}: expected a file, found {shown(text)}: no such file: {resolved}")
        else:
            return resolved
    except (OSError, RuntimeError, ValueError) as reason:  # too long; a symlink in circles; a NUL
        problems.append(f"{key_path}: expected a file, found {shown(text)}: {reason}")
    return None


def _limits(table: Table) -> Limits:
    defaults = Limits()
    return Limits(
        **{
            key: table.integer(key, getattr(defaults, key), least, most)
            for key, (least, most) in LIMITS_ALLOWED.items()
        }
    )


def _budgets_ns(table: Table) -> tuple[int, int, int, int]:
    urgent, high, normal, low = (
        round(table.milliseconds(f"{name}_ms", default_ns // 1_000_000, BUDGET_MS_MAX) * 1e6)
        for name, default_ns in zip(CLASSES, BUDGETS_NS_DEFAULT, strict=True)
    )
    if not urgent <= high <= normal <= low:
        shown = ", ".join(
            f"{name} {budget_ns / 1e6:g}"
            for name, budget_ns in zip(CLASSES, (urgent, high, normal, low), strict=True)
        )
        table.problems.append(
            f"{table.path}: expected budgets with urgent <= high <= normal <= low, found {shown} ms"
        )
    return urgent, high, normal, low
