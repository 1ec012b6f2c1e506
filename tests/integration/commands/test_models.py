"""`batchyard models` and `up --watch`: orders from a shell, and folders that are followed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import (
    Client,
    Operator,
    serve,
)
from batchyard.cli import watch
from batchyard.client import Yard

X = np.arange(4, dtype=np.float32)[None]
BATCHYARD = [sys.executable, "-m", "batchyard.cli.main"]


@pytest.fixture(scope="module")
def files(onnx_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plus1.onnx ... plus3.onnx: `y = x + k` of float32[n, 4]; another that can't be loaded."""
    folder: Path = tmp_path_factory.mktemp("root") / "models"
    folder.mkdir()
    for k in (1, 2, 3):
        made = onnx_models.save(
            f"plus{k}", [("Add", ["x", "k"], ["y"], {})], [("x", 1, ["n", 4])], [("y", 1, ["n", 4])],
            {"k": np.full(4, k, np.float32)},
        )  # fmt: skip
        shutil.copy(made, folder)
    (folder / "corrupt.onnx").write_bytes((folder / "plus2.onnx").read_bytes()[:-40])
    return folder


@pytest.fixture(scope="module")
def yard(files: Path) -> Iterator[Yard]:
    with serve({"net": files / "plus1.onnx"}, threads=1) as made:
        yield made


def added(y: Any) -> int:
    """Which of the files has answered to X."""
    (k,) = set((y - X[: len(y)]).ravel().tolist())
    return int(k)


def batchyard(yard: Yard, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [*BATCHYARD, "models", "--url", yard.url, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_orders_of_the_command_line(yard: Yard) -> None:
    status, said = batchyard(yard, "load", "cli", "plus1.onnx", "--max-batch", "4")
    assert (status, said) == (0, "cli: loaded, revision 1\n")
    status, said = batchyard(yard, "swap", "cli", "plus3.onnx", "--tolerance", "3")
    assert (status, said) == (0, "cli: swapped, revision 2; a canary's answers differ by up to 2\n")
    status, said = batchyard(yard, "swap", "cli", "corrupt.onnx")
    assert status == 1
    assert said.startswith("batchyard: 'cli' was not changed: ")
    assert said.endswith("; revision 2 serves on\n")
    assert batchyard(yard, "unload", "cli") == (0, "cli: unloaded, revision 2\n")
    status, said = batchyard(yard, "unload", "cli")
    assert (status, said) == (1, "batchyard: no model is called 'cli'; this yard has: net\n")


def test_a_folder_is_followed(yard: Yard, files: Path, tools: Any) -> None:
    folder = files / "followed"  # the same yard's root, so files are named from there
    folder.mkdir(exist_ok=True)
    stop = threading.Event()
    said: list[str] = []

    class Below:
        """The operator, for a folder below the root."""

        def __getattr__(self, name: str) -> Any:
            order = getattr(yard.operator, name)
            if name in ("load", "swap"):
                return lambda model, file, timeout: order(model, f"followed/{file}", timeout=timeout)
            return order

    thread = threading.Thread(
        target=watch.follow, args=(folder, dict, Below(), lambda s: stop.wait(0.1), said.append), daemon=True
    )
    with yard.client() as client:
        thread.start()
        try:
            whole = (files / "plus2.onnx").read_bytes()
            with (folder / "f.onnx").open("wb") as file:  # slowly: half of it, and later the rest
                for at in range(0, len(whole), 16):
                    file.write(whole[at : at + 16])
                    file.flush()
                    time.sleep(0.03)
            tools.until(lambda: said == ["f: loaded, revision 1"], what=f"the load: {said}")
            assert added(client.infer("f", X)) == 2
            shutil.copy(files / "plus3.onnx", folder / ".next")
            os.replace(folder / ".next", folder / "f.onnx")
            tools.until(lambda: said[1:] == ["f: swapped, revision 2"], what=f"the swap: {said}")
            assert added(client.infer("f", X)) == 3
            shutil.copy(files / "corrupt.onnx", folder / ".next")
            os.replace(folder / ".next", folder / "f.onnx")
            tools.until(lambda: len(said) == 3, what=f"the refusal: {said}")
            assert said[2].startswith("f.onnx: swap refused: 'f' was not changed")
            assert added(client.infer("f", X)) == 3
            (folder / "f.onnx").unlink()
            tools.until(lambda: said[3:] == ["f: unloaded, revision 2"], what=f"the end: {said}")
        finally:
            stop.set()
            thread.join(30)


def test_up_follows_its_folder_and_a_broker_that_was_killed_is_told_again(
    files: Path, run_folder: Path, tools: Any, tmp_path: Path
) -> None:
    shutil.copy(files / "plus1.onnx", tmp_path)
    config = tmp_path / "batchyard.toml"
    config.write_text('[models.net]\nfile = "plus1.onnx"\n')
    url = f"ipc://{run_folder}/w"
    log = (tmp_path / "log").open("wb+")
    up = subprocess.Popen(
        [*BATCHYARD, "up", "--watch", "--threads", "1", "--url", url, "--config", str(config)],
        stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def says(text: str, times: int = 1) -> bool:
        return (tmp_path / "log").read_text().count(text) >= times

    try:
        tools.until(lambda: says(f"following the .onnx files of {tmp_path.resolve()}"), 30)
        shutil.copy(files / "plus2.onnx", tmp_path / "added.onnx")
        tools.until(lambda: says("batchyard: added: loaded, revision 1"), 30)
        with Client(url) as client:
            assert (added(client.infer("net", X)), added(client.infer("added", X))) == (1, 2)
            tools.kill(Operator(url).snapshot()["pid"])
            tools.until(lambda: says("batchyard: added: loaded, revision 1", 2), 30)
            assert added(client.infer("added", X)) == 2
    finally:
        up.terminate()
        assert up.wait(30) == 0
        log.close()
        shutil.rmtree(f"{run_folder}/w", ignore_errors=True)
