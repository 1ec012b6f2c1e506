"""`python3 run measure lines`: lines of Python in the wheel, by folder, with their sum.

The wheel's packages are those that pyproject.toml lists. Every line counts, blank ones and docstrings too.
"""

from __future__ import annotations

import argparse
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FACE = "(face)"


def counted(root: Path) -> Counter[str]:
    """Folder -> lines of Python that the wheel has of it."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    lines: Counter[str] = Counter()
    for package in settings["tool"]["setuptools"]["packages"]:
        folders = package.split(".")[1:]
        for path in root.joinpath(*folders).glob("*.py"):
            lines[folders[0] if folders else FACE] += len(path.read_text(encoding="utf-8").splitlines())
    return lines


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "measure lines",
        description="Count the lines of Python in the wheel.",
        epilog="example:\n  python3 run measure lines",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="of a checkout (this one)")
    lines = counted(parser.parse_args(arguments).root)
    for folder, count in sorted(lines.items()):
        print(f"{folder:<12}{count:>8,}")
    print(f"{'in all':<12}{lines.total():>8,}")
    return 0
