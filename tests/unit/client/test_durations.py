"""Timeouts and deadlines as callers may write them."""

from __future__ import annotations

import pytest
from batchyard.client.options import deadline_ns_of
from batchyard.transport.errors import InvalidRequest


def test_a_deadline_is_what_was_given_else_the_timeout() -> None:
    assert deadline_ns_of(0.05, 30) == 50_000_000
    assert deadline_ns_of(None, 2) == 2_000_000_000


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_duration_that_is_not_above_zero_or_never_ends_is_refused(wrong: float) -> None:
    with pytest.raises(InvalidRequest, match="seconds above"):
        deadline_ns_of(wrong, 30)
    with pytest.raises(InvalidRequest, match="seconds above"):
        deadline_ns_of(None, wrong)
