"""Which variants an argument means."""

from __future__ import annotations

import pytest
from batchyard.export.variants import NAMES, asked
from batchyard.transport.errors import InvalidRequest


def test_what_may_be_asked_for() -> None:
    assert asked(False, False) == asked(None, True) == asked("none", True) == ()
    assert asked(True, True) == asked("best", True) == asked("all", True) == NAMES
    assert asked("best", False) == tuple(name for name in NAMES if name != "static")
    assert asked("dynamic", False) == ("dynamic",)
    assert asked(["dynamic", "fp16-storage", "dynamic"], False) == ("dynamic", "fp16-storage")


def test_what_may_not_be_is_said() -> None:
    with pytest.raises(InvalidRequest, match=r"no variant 'int4'; there is: best, all, none, fp16-storage"):
        asked("int4", True)
    with pytest.raises(InvalidRequest, match="needs calibration data"):
        asked("static", False)
