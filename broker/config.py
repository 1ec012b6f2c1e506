"""`batchyard.toml`: the models of a yard and its bounds, read once and checked when read.

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

from ..transport import python_models
from ..transport.errors import BatchyardError, Code, InvalidRequest
from ..transport.messages import RUN_SECONDS_MAX, Pad
from ..transport.python_models import Function, FunctionSignature
from . import options
from .options import CACHE_BYTES_DEFAULT, MAX_BATCH_DEFAULT, MAX_BATCH_MAX
from .toml_table import Table, dotted, shown

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
MODELS_MAX = 1024
FILE_BYTES_MAX = 16 << 20
QUEUE_ROWS_MAX = 1 << 30
QUEUE_BYTES_MAX = 1 << 48
CLIENTS_MAX = 65536
BUDGET_MS_MAX = 3_600_000
SPIN_US_DEFAULT = 100
SPIN_US_MAX = 10_000
STOP_SECONDS_DEFAULT = 5.0
STOP_SECONDS_MAX = 3600

# Where each bound of [limits] may lie: (least, most).
LIMITS_ALLOWED = {
    "queue_rows_max": (1, QUEUE_ROWS_MAX),
    "queue_bytes_max": (1, QUEUE_BYTES_MAX),
    "client_rows_max": (1, QUEUE_ROWS_MAX),
    "client_bytes_max": (1, QUEUE_BYTES_MAX),
    "clients_max": (1, CLIENTS_MAX),
}

MODEL_KEYS = ("file", "python", "inputs", "outputs", *options.KEYS)
TABLES = ("models_root", "load_python", "models", "limits", "priorities", "broker", "gateway")
BROKER_KEYS = ("spin_us", "stop_seconds", "open_to_this_machine", "named_segments")
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
    """One model: `name`: as clients use it; `path` is absolute, and empty for a function of an
    importable module. Links in it are left as they are: external data lies beside the name, not beside
    the file that the name leads to (the Hugging Face cache, Kubernetes volumes)."""

    name: str
    path: Path
    max_batch: int = MAX_BATCH_DEFAULT  # rows
    batchable: bool | None = None  # None: decided by names and by trying; see evidence/
    warmup: bool = True
    idempotent: bool = True  # a request may run again when something died under it
    join: bool = False  # requests with the same content are run once
    cache_ns: int = 0  # how long a result answers requests with the same content; 0: no longer than they wait
    cache_bytes: int = CACHE_BYTES_DEFAULT  # of results kept
    buckets: tuple[int, ...] = ()  # the only batch sizes to run, rising; empty: the provider decides
    file: str = ""  # as it was named, under models_root: to read it again
    function: Function | None = None  # None: an ONNX file
    batch_axis: int | dict[str, int] | None = None  # where the rows are; None: as the names say
    trusted: bool = False  # its rows are independent: that is believed, not tried
    run_ns_max: int = 0  # a worker that runs a batch of it for longer is hung; 0: no bound of its own
    anywhere: bool = False  # the program that serves it named its file, which may lie outside models_root
    pad: dict[str, Pad] = field(default_factory=dict)  # by an axis's name
    batch_elements_max: int = 0  # of a batch, along padded axes; 0: rows are the only bound


@dataclass(frozen=True, slots=True)
class Limits:
    """The queue at which the broker answers Overloaded: of all clients together, and of each one."""

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
    stop_ns: int = int(STOP_SECONDS_DEFAULT * 1e9)  # for what has been admitted, when the broker is stopped
    models_root: Path | None = None  # where models that are loaded later lie; None: none can be
    max_batch: int = MAX_BATCH_DEFAULT  # rows, of such models
    load_python: bool = False  # whether an order may name a Python file of models_root: it is run
    real_folders: tuple[Path, ...] = ()  # where links in models_root may lead, beside into itself
    gateway: dict[str, object] | None = None  # its table, as it stands there: `up` reads it
    open_to_this_machine: bool = False  # whether a loopback tcp address needs no keys
    notice_ns: int = 0  # of a broker that is stopped: for how long it is not ready, and admits requests still
    named_segments: bool = False  # whether clients may offer them where there are memfds, which can't shrink


def read(path: Path) -> YardConfig:
    """Read and check a `batchyard.toml`. Raises ConfigError with every problem in it."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(str(path), (f"larger than the {FILE_BYTES_MAX:,} bytes of a configuration",))
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
    except RecursionError:
        raise ConfigError(str(path), ("nested too deeply to be read",)) from None

    problems: list[str] = []
    top = Table(content, "", problems, TABLES)
    root = _models_root(top, path.absolute().parent)
    models = _models(top, root)
    limits = _limits(top.table("limits", tuple(LIMITS_ALLOWED)))
    budgets_ns = _budgets_ns(top.table("priorities", tuple(f"{name}_ms" for name in CLASSES)))
    broker = top.table("broker", BROKER_KEYS)
    spin_us = broker.integer("spin_us", SPIN_US_DEFAULT, 0, SPIN_US_MAX)
    stop_ns = broker.seconds_ns("stop_seconds", STOP_SECONDS_MAX) or int(STOP_SECONDS_DEFAULT * 1e9)
    load_python = top.boolean("load_python") is True
    is_open = broker.boolean("open_to_this_machine") is True
    gateway = top.mapping("gateway") if "gateway" in content else None
    named_segments = broker.boolean("named_segments") is True
    if problems:
        raise ConfigError(str(path), tuple(problems))
    return YardConfig(
        models,
        limits,
        budgets_ns,
        spin_us * 1000,
        stop_ns,
        root,
        load_python=load_python,
        open_to_this_machine=is_open,
        gateway=gateway,
        named_segments=named_segments,
    )


def with_file(
    model: ModelConfig,
    file: str,
    root: Path | None,
    load_python: bool = False,
    real_folders: tuple[Path, ...] = (),
) -> ModelConfig:
    """The model as it would be from this file of `root` ("": its present file, looked up again), which
    must really lie there or in one of `real_folders`. "file.py:function" is Python, and only named where
    `load_python` says that it may be.

    Raises InvalidRequest for a name that is none, or a file that is not there or lies elsewhere.
    """
    problems: list[str] = []
    _check_model_names((model.name,), problems)
    key_path = dotted("models", model.name)
    name = file or model.file
    function = None
    if python_models.is_reference(name):
        if file and not load_python:
            raise InvalidRequest(
                f"{key_path}: {shown(file)} is Python, and this yard loads none by order: the operator must "
                "set load_python = true in batchyard.toml"
            )
        name, function = python_models.parse(name)
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
        anywhere = model.anywhere and not file
        inside = () if anywhere or root is None else (root, *real_folders)
        path = _existing_file((root or Path()) / name, key_path, name, problems, inside)
        if path is not None and not problems:
            return replace(model, path=path, file=file or model.file, function=function, anywhere=anywhere)
    raise InvalidRequest("; ".join(problems))


def with_options(model: ModelConfig, values: Mapping[str, object]) -> ModelConfig:
    """The model with an order's options, by the keys of `batchyard.toml`; options that it does not name stay.
    Raises InvalidRequest with every problem."""
    problems: list[str] = []
    table = Table(dict(values), dotted("models", model.name), problems, options.KEYS)
    fields = options.read(table, model.max_batch, model.buckets)
    if problems:
        raise InvalidRequest("; ".join(problems))
    return replace(model, **fields)


def from_models(
    models: Mapping[str, str | os.PathLike[str]],
    max_batch: int = MAX_BATCH_DEFAULT,
    models_root: str | os.PathLike[str] | None = None,
    signatures: Mapping[str, FunctionSignature] | None = None,
    load_python: bool = False,
    run_seconds_max: float | None = None,
    model_options: Mapping[str, object] | None = None,
    limits: Mapping[str, object] | None = None,
) -> YardConfig:
    """The configuration of an embedded yard: these names, these files or Python functions.
    `signatures`: inputs and outputs of functions. `model_options`: by name, the options that a model's table
    in a `batchyard.toml` may have; defaults for the rest. `run_seconds_max` holds for each model. `limits`:
    as in its table of that name.

    The caller's own code names the files, so they may lie anywhere. Files that are loaded later
    lie in `models_root`, or, without it, in the folder that all of them share (or, through links, in the
    folders to which these models' own links lead). Raises ConfigError.
    """
    problems: list[str] = []
    defaults: dict[str, object] = {"max_batch": max_batch}
    if run_seconds_max is not None:
        defaults["run_seconds_max"] = run_seconds_max
    table = Table(defaults, "", problems, ("max_batch", "run_seconds_max"))
    rows = table.integer("max_batch", MAX_BATCH_DEFAULT, 1, MAX_BATCH_MAX)
    run_ns_max = table.seconds_ns("run_seconds_max", RUN_SECONDS_MAX)
    configs: dict[str, ModelConfig] = {}
    section = Table(dict(model_options or {}), "options", problems, tuple(models))
    bounds = _limits(Table(dict(limits or {}), "limits", problems, tuple(LIMITS_ALLOWED)))
    if not models and models_root is None:
        problems.append("models: expected at least one model, found none")
    _check_model_names(tuple(models), problems)
    for name, named in models.items():
        own = options.read(section.table(name, options.KEYS), rows)
        fields = {"max_batch": rows, "run_ns_max": run_ns_max, **own}
        file, function, place = os.fspath(named), None, ""
        if python_models.is_reference(file):
            file, function = python_models.parse(file)
            function = msgspec.structs.replace(function, signature=(signatures or {}).get(name))
            if function.module:
                configs[name] = ModelConfig(name, Path(), file=os.fspath(named), function=function, **fields)
                continue
            place = f":{function.name}"
        path = _existing_file(Path(file), dotted("models", name), file, problems)
        if path is not None:
            named = f"{path}{place}"
            configs[name] = ModelConfig(name, path, file=named, function=function, anywhere=True, **fields)
    root = Path(models_root).resolve() if models_root is not None else None
    files = [model.path for model in configs.values() if model.path.is_absolute()]
    folders = {path.parent.resolve() for path in files}
    real_folders: tuple[Path, ...] = ()
    if root is None and len(folders) == 1:
        root = folders.pop()
        real_folders = tuple(sorted({path.resolve().parent for path in files} - {root}))
    elif root is not None and not root.is_dir():
        problems.append(f"models_root: expected a folder, found {shown(str(models_root))}")
    if problems:
        raise ConfigError("models", tuple(problems))
    return YardConfig(
        configs,
        bounds,
        models_root=root,
        max_batch=rows,
        load_python=load_python,
        real_folders=real_folders,
    )


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
    configs: dict[str, ModelConfig] = {}
    for name in tables:
        model = section.table(name, MODEL_KEYS)
        if not isinstance(tables[name], dict):
            continue
        source = _source(model, root)
        fields = options.read(model)
        if source is not None:
            file, path, function = source
            configs[name] = ModelConfig(name, path, file=file, function=function, **fields)
    return configs


def _source(model: Table, root: Path | None) -> tuple[str, Path, Function | None] | None:
    """(as it was named, its file, the function) of a model's source; None for a problem."""
    key, text, function = "file", model.content.get("python"), None
    if "python" not in model.content:
        for only in ("inputs", "outputs"):
            if only in model.content:
                model.problems.append(f"{model.at(only)}: an ONNX file says itself what it takes and gives")
        text = file = model.string("file", "the model's file, inside models_root")
        if file is not None and python_models.is_reference(file):
            found = shown(file)
            model.problems.append(f"{model.at('file')}: {found} is Python: write python = {found}")
            return None
    else:
        key, file = "python", None
        if "file" in model.content:
            model.problems.append(f"{model.at('python')}: a model is a file or a Python function, not both")
        try:
            file, function = python_models.parse(str(text))
            if "inputs" in model.content or "outputs" in model.content:
                takes, gives = model.content.get("inputs"), model.content.get("outputs")
                signature = python_models.declared(takes, gives)  # type: ignore[arg-type]  # they are checked
                function = msgspec.structs.replace(function, signature=signature)
        except InvalidRequest as error:
            model.problems.append(f"{model.at(key)}: {error}")
            return None
    if function is not None and function.module:
        return str(text), Path(), function
    if file is None or root is None:
        return None
    path = _existing_file(root / file, model.at(key), file, model.problems, (root,))
    return (str(text), path, function) if path is not None else None


def _check_model_names(names: tuple[str, ...], problems: list[str]) -> None:
    if len(names) > MODELS_MAX:
        problems.append(f"models: expected at most {MODELS_MAX} models, found {len(names)}")
    problems.extend(
        f"{dotted('models', name)}: expected a name of 1 to 255 letters, digits, '_', '.' or '-' that starts "
        f"with a letter or digit, found {shown(name)}"
        for name in names
        if not MODEL_NAME.fullmatch(name)
    )


def _existing_file(
    path: Path, key_path: str, text: str, problems: list[str], inside: tuple[Path, ...] = ()
) -> Path | None:
    """`path`, absolute, if that is a file and, with every link followed, lies in one of `inside` (empty:
    anywhere); else a problem."""
    try:
        resolved = path.resolve()
        if inside and not any(map(resolved.is_relative_to, inside)):
            problems.append(
                f"{key_path}: expected a file inside models_root ({inside[0]}), found {shown(text)}, "
                f"which is {resolved}"
            )
        elif not resolved.is_file():
            why = "it is a folder" if resolved.is_dir() else f"no such file: {resolved}"
            problems.append(f"{key_path}: expected a file, found {shown(text)}: {why}")
        else:
            return path.absolute()
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
