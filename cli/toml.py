"""A model's table for a `batchyard.toml`: as text, or added to a file without changing the rest."""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..broker import config
from ..broker.toml_table import dotted
from ..transport.errors import InvalidRequest

BOM = b"\xef\xbb\xbf"


def table_of(name: str, file: str, max_batch: int | None, pads: Mapping[str, list[int]] = {}) -> str:
    """The table's lines. `pads` are axes that can be padded; they are suggested in a comment."""
    lines = [f"[{dotted('models', name)}]", f"file = {json.dumps(file, ensure_ascii=False)}"]
    if max_batch is not None:
        lines.append(f"max_batch = {max_batch}")
    if pads:
        axes = ", ".join(f"{dotted('', name)} = {{ to = {sizes} }}" for name, sizes in pads.items())
        lines.append(f"# pad = {{ {axes} }}  # requests of different sizes share runs, padded to these")
    return "\n".join(lines) + "\n"


def add(
    target: Path, name: str, model: Path, max_batch: int | None, pads: Mapping[str, list[int]] = {}
) -> Path:
    """Add a model to a configuration, which is made where there is none; the file. Raises InvalidRequest,
    and nothing has changed: where the name is taken, where the model lies outside models_root, and
    where the file could not be read as a configuration before or after."""
    target = Path(os.path.realpath(target))  # behind a link, the file itself is replaced
    folder = target.parent
    if not folder.is_dir():
        raise InvalidRequest(f"there is no folder {folder}")
    before = target.read_bytes() if target.exists() else b""
    content = _parsed(target, before)
    models = content.get("models", {})
    if isinstance(models, dict) and name in models:
        raise InvalidRequest(
            f"{target} has a [{dotted('models', name)}] already, and stays unchanged; --name gives this one "
            "another"
        )
    head = ""
    root = folder / str(content.get("models_root", "."))
    model = model.parent.resolve() / model.name  # what it is called there, whatever leads there
    if not before.strip() and not model.is_relative_to(folder):
        root = model.parent
        head = f"models_root = {json.dumps(str(root), ensure_ascii=False)}\n\n"
    text = head + table_of(name, _inside(model, root, target), max_batch, pads)
    newline = "\r\n" if b"\r\n" in before else "\n"
    gap = "" if not before.strip() else newline if before.endswith(b"\n") else newline * 2
    after = before + (gap + text.replace("\n", newline)).encode()
    _replace(target, after)
    return target


def _parsed(target: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.removeprefix(BOM).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{target} is not TOML, and stays unchanged: {error}") from None


def _inside(model: Path, root: Path, target: Path) -> str:
    """The model's file relative to models_root."""
    if model.is_relative_to(root.resolve()):
        return model.relative_to(root.resolve()).as_posix()
    raise InvalidRequest(
        f"{model} lies outside the models_root of {target} ({root.resolve()}): copy it there, or set "
        "models_root"
    )


def _replace(target: Path, content: bytes) -> None:
    """Write the file atomically, and only if a broker could read it."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    made = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        try:
            config.read(made)
        except config.ConfigError as error:
            text = f"{target} stays as it is, because then it would be wrong: {'; '.join(error.problems)}"
            raise InvalidRequest(text) from None
        made.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)
