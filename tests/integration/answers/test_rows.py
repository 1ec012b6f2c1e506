"""Which rows may share a run: never those that look at each other, always those that don't; and either
way every answer is what onnxruntime gives for that request alone.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from ...plain import Plain, difference
from . import independent, mixing
from .draws import Mixing

MAX_BATCH = 32  # Operator.load's own
MORE = 40  # rows: more than one run takes


def drawn(kind: Mixing, name: str, sizes: list[int]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return [kind.draw(size, rng) for size in sizes]


def sizes_of(count: int, seed: int) -> list[int]:
    """Every other request of one size, so that they could share runs; the others of 1 to 12 rows."""
    rng = np.random.default_rng(seed)
    return [4 if number % 2 else int(rng.integers(1, 13)) for number in range(count)]


@pytest.mark.parametrize("name", mixing.KINDS)
def test_rows_that_look_at_each_other_never_share_a_run(stand: Any, name: str) -> None:
    kind = mixing.KINDS[name]
    with stand.model(kind.model) as model:
        assert model.wrong_alone(drawn(kind, name, [1, 5, 2])) == []
        assert model.wrong_alone(drawn(kind, name, [MORE])) == [], "one request was split"
        assert model.wrong_together(drawn(kind, name, sizes_of(48, 1))) == []
        assert model.wrong_together(drawn(kind, name, [1] * 32)) == []
        assert model.wrong_together(drawn(kind, name, [MORE, 2, 33, 1, 64, 7, 7, 7])) == []


@pytest.mark.parametrize("name", independent.KINDS)
def test_rows_that_stand_alone_share_runs(stand: Any, name: str) -> None:
    kind = independent.KINDS[name]
    with stand.model(kind.model) as model:
        for round_ in range(2):  # the first requests may teach the yard what it could not draw itself
            assert model.wrong_together(drawn(kind, f"{name}{round_}", sizes_of(48, round_))) == []
        info = model.info()
        assert info.batchable, info.alone_reason
        before = stand.yard.snapshot()["batches"]
        requests = drawn(kind, name, [1] * 64)
        alike = [requests[0]] * 64 if len({_shape(each) for each in requests}) > 1 else requests
        assert model.wrong_together(alike) == []
        assert stand.yard.snapshot()["batches"] - before < 60, "no two requests shared a run"
        assert model.wrong_alone(drawn(kind, name, [MORE])) == []


def _shape(feeds: dict[str, Any]) -> Any:
    """What decides whether two requests may meet: sizes but those of the rows, and what a batch shares."""
    return tuple(
        (name, value.shape, value.tobytes() if not value.ndim else b"") for name, value in feeds.items()
    )


ONE_SIZE = [name for name, kind in mixing.KINDS.items() if name not in mixing.APART]


@pytest.mark.parametrize("name", ONE_SIZE)
def test_the_kinds_are_what_they_say(name: str) -> None:
    """In onnxruntime alone: three requests' answers are not cut out of the answer to all three together."""
    plain = Plain(mixing.KINDS[name].model.SerializeToString())
    rng = np.random.default_rng(3)
    parts = [mixing.KINDS[name].draw(rows, rng) for rows in (12, 13, 12)]
    whole = plain.run({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    ends = np.cumsum([next(iter(part.values())).shape[0] for part in parts])
    wrong = []
    for part, end in zip(parts, ends, strict=True):
        rows = next(iter(part.values())).shape[0]
        cuts = [output[end - rows : end] if output.ndim else output for output in whole]
        wrong += [difference(want, have) for want, have in zip(plain.run(part), cuts, strict=True)]
    assert any(wrong)
