"""Writes the variants that passed, each file atomically, and removes stale ones."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import metadata
from .report import BASES, Report, Variant


def beside(path: Path, variant: str) -> Path:
    """`model.onnx` for the model as it is, `model.int8-storage.onnx` for a variant."""
    return path if variant in BASES.values() else path.with_suffix(f".{variant}{path.suffix}")


def publish(report: Report, protos: Mapping[str, Any], stale: list[str]) -> Report:
    """Write the variants in `protos` and the JSON; remove an earlier export's variants among `stale`."""
    report.path.parent.mkdir(parents=True, exist_ok=True)
    variants = []
    for variant in report.variants:
        if variant.name in protos:
            content = metadata.stamp(protos[variant.name], metadata.props(report, variant))
            variant = written(variant, beside(report.path, variant.name), content)
        variants.append(variant)
    report = replace(report, variants=tuple(variants))
    replace_file(report.metadata, metadata.document(report).encode())
    kept = {variant.path.name for variant in report.published if variant.path}
    for name in stale:
        if name not in kept and name.startswith(f"{report.path.stem}.") and name.endswith(report.path.suffix):
            report.path.with_name(name).unlink(missing_ok=True)
    return report


def written(variant: Variant, path: Path, content: bytes) -> Variant:
    replace_file(path, content)
    return replace(variant, path=path, sha256=hashlib.sha256(content).hexdigest())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: a yard that watches the folder never sees half of one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # a worker of another user could not read mkstemp's 0600
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
