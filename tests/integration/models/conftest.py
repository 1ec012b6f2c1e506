"""Real models: where they lie, and a yard for one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import batchyard
import pytest

from ...plain import Plain
from ...required import part

MODELS = Path(__file__).parents[3] / ".models"


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Where `python3 run test --models` has unpacked them."""
    stamp = MODELS / "installed"
    folder: Path = part("models", MODELS if stamp.exists() else None)
    return folder


class Served:
    """A model in a yard, and in plain onnxruntime beside it."""

    def __init__(self, yard: Any, name: str, file: Path) -> None:
        self.yard = yard
        self.name = name
        self.plain = Plain(str(file))

    def info(self) -> Any:
        """What the yard says of it now."""
        with self.yard.client() as client:
            (info,) = client.models()
        return info


@pytest.fixture
def served(models_folder: Path, run_folder: Path) -> Iterator[Callable[..., Served]]:
    """served(path below .models, **what serve() takes): a yard with that model, until the test ends."""
    with ExitStack() as stack:

        def start(path: str, **options: Any) -> Served:
            file = models_folder / path
            log = stack.enter_context(open(run_folder / f"{file.stem}.log", "wb"))
            yard = stack.enter_context(batchyard.serve(file, threads=1, log=log, **options))
            return Served(yard, file.stem, file)

        yield start
        for log in run_folder.glob("*.log"):
            log.unlink()
