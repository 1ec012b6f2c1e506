"""A yard that is cut off while it starts leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from batchyard.client.yard import Yard
from batchyard.transport import endpoints
from batchyard.transport.processes import ChildProcess


def cut_off(*arguments: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", [(endpoints.os, "mkdir"), (Yard, "_make"), (ChildProcess, "start")])
def test_a_ctrl_c_at_any_moment_of_the_start_leaves_no_folder(
    where: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def made_and_cut_off(path: str, mode: int) -> None:
        mkdir(path, mode)
        cut_off()

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(endpoints, "LAST_RESORT", str(tmp_path))
    monkeypatch.setattr(endpoints, "_is_short", lambda folder: True)
    monkeypatch.setattr(*where, made_and_cut_off if where[1] == "mkdir" else cut_off)
    with pytest.raises(KeyboardInterrupt):
        Yard([], 1)
    assert list(tmp_path.iterdir()) == []
