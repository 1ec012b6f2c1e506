"""`serve`: what is embedded in a program: models in, a running yard out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from ..transport.errors import InvalidRequest, shown
from . import python_models
from .operator import plain
from .yard import Yard, check_count

START_TIMEOUT_S = 60.0
_MODELS = 'models is a file, a function, or a mapping such as {"name": "file.onnx"}'
# An ONNX file, or a Python function.
Source = str | os.PathLike[str] | Callable[..., Any] | python_models.Named


def serve(
    models: Source | Mapping[str, Source],
    *,
    workers: int = 1,
    max_batch: int = 32,
    threads: int | None = None,
    url: str | None = None,
    timeout: float = START_TIMEOUT_S,
    log: IO[bytes] | None = None,
    models_root: str | os.PathLike[str] | None = None,
    provider: str = "auto",
    load_python: bool = False,
    run_seconds_max: float | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Mapping[str, int] | None = None,
    keys: str | os.PathLike[str] | None = None,
    open_to_this_machine: bool = False,
) -> Yard:
    """Start a broker and `workers` workers for these models, and return when every model is ready.

    models: one ONNX file (its name without the suffix is the model's name), or one Python function,
        itself or as "module:function" or "file.py:function" (see `batchyard.model`); or {"name": either}.
        With `models_root` it may be empty, for a yard whose models are all loaded later.
    max_batch: most rows in one run.
    threads: intra-op threads of each worker; default: cores divided by workers.
    url: where to listen; default: a private place that is removed at the end.
    log: a file for what the processes say; default: this program's stderr.
    models_root: the folder that `Yard.operator` may load and swap models from; default: the one that
        these models lie in, if it is the same for all.
    provider: what the workers run on: directml, webgpu, cuda, openvino, cpu; auto: the best that works here.
    load_python: whether `Yard.operator` may load Python files from there: that runs them.
    run_seconds_max: a worker that runs one batch for longer is ended, and a request that was alone in it
        fails; default: no such bound (see "Slow is not hung" in docs/configuration.md).
    options: {"name": {...}}: what a model's table in a batchyard.toml may say besides its file, by the
        same keys (docs/configuration.md), such as {"net": {"pad": {"sequence": {"to": [32, 64, 128]}}}}.
    limits: how much may be under way at once, by the keys of [limits] in a batchyard.toml, such as
        {"queue_rows_max": 200_000, "client_bytes_max": 8 << 30}.
    keys: a folder of CURVE keys (`batchyard keys create`), for a tcp `url`. Without it a yard on loopback tcp
        makes keys of its own, which `Yard.client` uses; clients in other programs need keys=Yard.keys.
    open_to_this_machine: no keys, then: every user of this machine may send requests to a loopback tcp `url`.

    A context manager; without `with`, `close()` ends it, or the end of this program. Raises
    ModelFailed when a model can't be loaded, InvalidRequest for names, files, numbers, or a provider that
    can't be, EndpointInUse, Unauthorized, DeadlineExceeded when nothing is ready within `timeout` seconds.
    """
    yard, names = begin(
        models,
        workers=workers,
        max_batch=max_batch,
        threads=threads,
        url=url,
        log=log,
        models_root=models_root,
        provider=provider,
        load_python=load_python,
        run_seconds_max=run_seconds_max,
        options=options,
        limits=limits,
        keys=keys,
        open_to_this_machine=open_to_this_machine,
    )
    try:
        yard.await_models(names, timeout)
    except BaseException:
        yard.close()
        raise
    return yard


def begin(
    models: Source | Mapping[str, Source],
    *,
    workers: int = 1,
    max_batch: int = 32,
    threads: int | None = None,
    url: str | None = None,
    log: IO[bytes] | None = None,
    models_root: str | os.PathLike[str] | None = None,
    provider: str = "auto",
    load_python: bool = False,
    run_seconds_max: float | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Mapping[str, int] | None = None,
    keys: str | os.PathLike[str] | None = None,
    open_to_this_machine: bool = False,
) -> tuple[Yard, list[str]]:
    """`serve` without the wait: (the yard, its models' names), for `Yard.await_models`."""
    check_count("max_batch", max_batch)
    if not isinstance(models, Mapping | str | os.PathLike) and not python_models.is_source(models):
        raise InvalidRequest(f"{_MODELS}, not {shown(models)}")
    named = models if isinstance(models, Mapping) else {_name_of(models): models}
    if not named and models_root is None:
        raise InvalidRequest(f"{_MODELS}; none at all only with models_root, to be loaded later")
    arguments = [*_model_arguments(named), "--max-batch", str(max_batch)]
    if models_root is not None:
        arguments += ["--models-root", os.path.abspath(models_root)]
    if options is not None:
        arguments += ["--options", msgspec.json.encode(plain(options)).decode()]
    if limits is not None:
        arguments += ["--limits", msgspec.json.encode(plain(limits)).decode()]
    if load_python:
        arguments.append("--load-python")
    if run_seconds_max is not None:
        arguments += ["--run-seconds-max", str(run_seconds_max)]
    python = any(python_models.is_source(source) for source in named.values())
    surroundings = python_models.environment() if python or load_python else {}
    return Yard(
        arguments,
        workers,
        threads,
        url,
        Path(keys) if keys is not None else None,
        log=log,
        quiet=True,
        provider=provider,
        worker_environment=surroundings,
        open_to_this_machine=open_to_this_machine,
    ), list(named)


def _name_of(source: Any) -> str:
    """The name of a model for which none was given."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        return text.rpartition(":")[2] if python_models.is_source(text) else Path(text).stem
    return getattr(source, "__name__", type(source).__name__)


def _model_arguments(models: Mapping[Any, Any]) -> list[str]:
    """The broker's arguments for what the caller passed as models. Raises InvalidRequest."""
    arguments = []
    for name, source in models.items():
        if not isinstance(name, str) or not name or "=" in name:
            raise InvalidRequest(f"{shown(name)} can't be a model's name: letters, digits, '_', '.', and '-'")
        if python_models.is_source(source):
            found = python_models.named(source)
            arguments += ["--model", f"{name}={found.reference}"]
            if found.signature is not None:
                text = msgspec.json.encode(found.signature).decode()
                arguments += ["--signature", f"{name}={text}"]
            continue
        if not isinstance(source, str | os.PathLike):
            raise InvalidRequest(f"model {name!r} needs a file's path or a function, not {shown(source)}")
        if Path(source).is_dir():
            raise InvalidRequest(f"model {name!r}: {os.fspath(source)!r} is a folder, not an ONNX file")
        if not Path(source).is_file():
            raise InvalidRequest(f"model {name!r}: there is no file {os.fspath(source)!r}")
        arguments += ["--model", f"{name}={Path(source).absolute()}"]  # `..` behind a link is not text
    return arguments
