from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.transport import machine


@pytest.mark.parametrize(("text", "expected"), [("268435456\n", 268435456), ("max\n", None), (None, None)])
def test_a_container_has_the_memory_of_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: int | None
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    if text is not None:
        (tmp_path / "memory.max").write_text(text)
    assert machine.container_bytes() == expected
    assert machine.memory_bytes() == (expected or machine.memory_bytes())
    assert machine.memory_bytes() > 0
