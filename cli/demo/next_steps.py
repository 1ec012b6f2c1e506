"""The next steps that a demo suggests: only commands that work here, as they can be typed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ..text import table

SOURCE = Path(__file__).resolve().parents[2]
CONFIG = Path("examples", "batchyard.toml")


def after_demo() -> list[str]:
    """Aligned lines: a command and its purpose."""
    is_here = (SOURCE / "run").is_file() and Path.cwd() == SOURCE  # an installed package has neither
    return table(
        [
            (f"{typed()} up --config {CONFIG if is_here else 'FILE'}", "a yard for your own programs"),
            *([("python3 run demo --train", "a model of your own, from data to here")] if is_here else []),
            ("README.md", "ten lines of client"),
        ]
    )


def typed() -> str:
    """The `batchyard` command, with its path if the environment is not activated."""
    if shutil.which("batchyard"):
        return "batchyard"
    found = shutil.which("batchyard", path=str(Path(sys.executable).parent))
    if found is None:
        return "batchyard"
    return str(Path(found).relative_to(Path.cwd())) if Path(found).is_relative_to(Path.cwd()) else found
