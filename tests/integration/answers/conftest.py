"""One yard for a file of tests: models come and go, and one stays, by whose processes a death is seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import onnx
import pytest

from ...crowd import ask, differences
from ...plain import Plain
from .graphs import unary

LOAD_S = 30.0
ARENA_BYTES = 256 << 20


class Model:
    """A model that a test has loaded, and plain onnxruntime's of the same file."""

    def __init__(self, yard: Any, name: str, file: Path) -> None:
        self.yard = yard
        self.name = name
        self.file = file
        self.plain = Plain(str(file))

    def info(self) -> Any:
        with self.yard.client() as client:
            return next(info for info in client.models() if info.name == self.name)

    def infer(self, feeds: Any, timeout: float = 60.0) -> Any:
        """One client's only request."""
        with self.yard.client(arena_bytes=ARENA_BYTES) as client:
            return client.infer(self.name, feeds, timeout=timeout)

    def wrong_alone(self, requests: Sequence[Any]) -> list[str]:
        """What is wrong with the answers where one client asks them one after the other."""
        return differences(
            self.plain, requests, ask(self.yard, self.name, requests, 1, arena_bytes=ARENA_BYTES)
        )

    def wrong_together(self, requests: Sequence[Any], clients: int = 8) -> list[str]:
        """The same where so many clients ask at once."""
        answers = ask(self.yard, self.name, requests, clients, arena_bytes=ARENA_BYTES)
        return differences(self.plain, requests, answers)


class Stand:
    """A yard of one worker with a pilot, and the folder that it may load from."""

    def __init__(self, yard: Any, folder: Path) -> None:
        self.yard = yard
        self.folder = folder
        self._numbers = count(1)

    def workers(self) -> list[int]:
        with self.yard.client() as client:
            pilot = next(info for info in client.models() if info.name == "pilot")
        return sorted(worker.pid for worker in pilot.workers)

    def pilot_answers(self, timeout: float = 10.0) -> bool:
        with self.yard.client() as client:
            one = np.ones((1, 1), np.float32)
            return bool((client.infer("pilot", one, timeout=timeout) == -one).all())

    @contextmanager
    def model(self, model: onnx.ModelProto | Path, name: str = "", **options: Any) -> Iterator[Model]:
        """The model, loaded; `options` are Operator.load's."""
        name = name or f"m{next(self._numbers)}"
        file = model
        if isinstance(file, onnx.ModelProto):
            file = self.folder / f"{next(self._numbers)}.onnx"
            onnx.save(model, file)
        assert isinstance(file, Path)
        self.yard.operator.load(name, file, timeout=LOAD_S, **options)
        try:
            yield Model(self.yard, name, file)
        finally:
            self.yard.operator.unload(name, timeout=LOAD_S)


@pytest.fixture(scope="module")
def stand_of_the_file(run_folder: Path) -> Iterator[Stand]:
    folder = run_folder / "answers"
    folder.mkdir()
    onnx.save(unary("Neg", 1, ["n", 1]), folder / "pilot.onnx")
    with (
        open(run_folder / "answers.log", "wb") as log,
        batchyard.serve({"pilot": folder / "pilot.onnx"}, threads=1, models_root=folder, log=log) as yard,
    ):
        yield Stand(yard, folder)
    for path in [*folder.rglob("*")][::-1]:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()
    (run_folder / "answers.log").unlink()


@pytest.fixture
def stand(stand_of_the_file: Stand) -> Iterator[Stand]:
    """The yard of this file; no worker of it may have died by the test's end."""
    assert stand_of_the_file.pilot_answers(60.0)  # one that an earlier test has lost is back
    before = stand_of_the_file.workers()
    yield stand_of_the_file
    assert stand_of_the_file.workers() == before, "a worker died, or was killed"
