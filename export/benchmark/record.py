"""A benchmark's results as JSON (`benchmark.json`), and whether a candidate has changed since.

A fingerprint is the digest of everything that an export depends on and that can be read without running it:
the candidate's table, its files, its factory's module, the common arguments, and the libraries' versions. It
does not cover that module's own imports, nor the weights of an .onnx file in a second file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...transport.errors import InvalidRequest
from ..calibration import is_named
from ..lists import Entry
from ..metadata import finite, versions
from ..publish import replace_file

NAME = "benchmark.json"
FORMAT = "batchyard.benchmark/1"

Json = dict[str, Any]


def digest(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Of a file; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def source_digest(source: str | Path) -> str:
    """Of a file, or of the module that `module:function` names."""
    if not is_named(str(source)):
        return file_digest(Path(source))
    try:
        found = importlib.util.find_spec(str(source).partition(":")[0])
    except (ImportError, AttributeError, ValueError):
        found = None
    return file_digest(Path(found.origin)) if found is not None and found.origin else ""


def fingerprint(entry: Entry, common: Mapping[str, Any]) -> str:
    """Of one candidate."""
    made_of = [(Path(source).name, source_digest(source)) for source in entry.sources]
    return digest([entry.said, made_of, dict(common), versions()])


def read(out: Path) -> Json:
    """The record of an earlier benchmark in this folder, or an empty one.

    Raises InvalidRequest if a file of that name is not a record: it would be overwritten.
    """
    path = out / NAME
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {"candidates": []}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not _is_sound(found):
        raise InvalidRequest(
            f"{path} is no record of an earlier benchmark: move it, or choose another folder"
        )
    return found


def _is_sound(found: Json) -> bool:
    """Whether `write` wrote it as it is; an edited record is not used."""
    baseline, candidates = found.get("baseline"), found.get("candidates")
    return (
        (baseline is None or _has(baseline, "file", "sha256"))
        and isinstance(candidates, list)
        and all(
            _has(candidate, "name", "fingerprint", "export_error", "files")
            and isinstance(candidate["files"], list)
            and all(_has(part, "variant", "file", "sha256", "bytes") for part in candidate["files"])
            for candidate in candidates
        )
    )


def _has(table: Any, *keys: str) -> bool:
    return isinstance(table, dict) and table.keys() >= set(keys)


def write(out: Path, record: Mapping[str, Any]) -> None:
    """Replace the record atomically."""
    content = json.dumps(finite({"format": FORMAT, **record}), indent=1, allow_nan=False) + "\n"
    replace_file(out / NAME, content.encode())


def published(out: Path, name: str) -> list[Json]:
    """The files of a candidate's export, by the export's own JSON. Raises OSError and ValueError."""
    found = json.loads((out / f"{name}.json").read_bytes())
    return [
        {
            "variant": part["variant"],
            "file": part["file"],
            "sha256": part["sha256"],
            "bytes": part["bytes"],
            "nodes": found["nodes"]["optimized"],
        }
        for part in found["variants"]
        if part["published"]
    ]


def is_whole(out: Path, candidate: Json) -> bool:
    """Whether all its files exist unchanged."""
    files = candidate["files"]
    return bool(files) and all(file_digest(out / part["file"]) == part["sha256"] for part in files)
