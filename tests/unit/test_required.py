"""Parts that may be missing: a skip with a sentence, a failure where nothing may be missing."""

from __future__ import annotations

import pytest

from ..required import part


def test_what_is_there_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHYARD_REQUIRE", "tool")
    assert part("tool", "/usr/bin/tool", "get it") == "/usr/bin/tool"


def test_what_is_missing_is_skipped_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHYARD_REQUIRE", "another")
    with pytest.raises(pytest.skip.Exception, match="tool is not here; to get it: apt-get install tool"):
        part("tool", None, "apt-get install tool")


def test_what_is_missing_and_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHYARD_REQUIRE", "another,tool")
    with pytest.raises(pytest.fail.Exception, match="tool is not here"):
        part("tool", None, "apt-get install tool")
