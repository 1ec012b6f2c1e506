"""A folder that is followed: what each look asks for, and what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from batchyard.cli import watch
from batchyard.cli.watch import Change, FolderWatch, Stamp
from batchyard.client import ModelChanged
from batchyard.transport.errors import BrokerLost, DeadlineExceeded, InvalidRequest, ModelFailed, Overloaded

OLD, NEW, NEWER = (1, 100, 7), (2, 100, 8), (3, 100, 9)
LOAD_A = Change("load", "a", "a.onnx")


def looks(folder: FolderWatch, *listings: Mapping[str, Stamp]) -> list[Change]:
    """What the last of these asks for; the ones before ask for nothing."""
    for listing in listings[:-1]:
        assert folder.look(listing) == []
    return folder.look(listings[-1])


@pytest.fixture
def following() -> FolderWatch:
    """A folder with a.onnx, which the yard serves, seen twice."""
    folder = FolderWatch({"a.onnx": "a"})
    assert looks(folder, {"a.onnx": OLD}, {"a.onnx": OLD}) == []
    return folder


def test_a_new_file_is_loaded_when_two_looks_have_found_it_the_same() -> None:
    folder = FolderWatch({})
    assert looks(folder, {}, {"a.onnx": OLD}, {"a.onnx": OLD}) == [LOAD_A]
    folder.done(LOAD_A)
    assert folder.look({"a.onnx": OLD}) == []


def test_a_file_that_is_still_being_written_is_left_alone() -> None:
    folder = FolderWatch({})
    growing = [{"a.onnx": (step, step * 10, 7)} for step in range(5)]
    assert looks(folder, {}, *growing) == []
    assert folder.look(growing[-1]) == [LOAD_A]


def test_a_file_that_is_served_already_is_left_alone_until_it_changes(following: FolderWatch) -> None:
    (swap,) = looks(following, {"a.onnx": NEW}, {"a.onnx": NEW})
    assert swap == Change("swap", "a", "a.onnx")
    following.done(swap)
    assert looks(following, {"a.onnx": NEW}, {"a.onnx": NEWER}, {"a.onnx": NEWER}) == [swap]


def test_what_was_neither_done_nor_refused_is_asked_for_again(following: FolderWatch) -> None:
    (swap,) = looks(following, {"a.onnx": NEW}, {"a.onnx": NEW})
    assert following.look({"a.onnx": NEW}) == [swap]


def test_a_file_that_vanishes_lets_its_model_go_at_the_second_look_without_it(following: FolderWatch) -> None:
    (unload,) = looks(following, {}, {})
    assert unload == Change("unload", "a", "a.onnx")
    following.done(unload)
    assert following.look({}) == []
    assert looks(following, {"a.onnx": OLD}, {"a.onnx": OLD}) == [LOAD_A], "it came back"


def test_a_file_that_is_away_for_one_look_has_not_vanished(following: FolderWatch) -> None:
    assert looks(following, {}, {"a.onnx": OLD}, {"a.onnx": OLD}) == []


def test_what_was_refused_is_tried_again_when_it_changes(following: FolderWatch) -> None:
    (swap,) = looks(following, {"a.onnx": NEW}, {"a.onnx": NEW})
    following.refused(swap)
    assert looks(following, {"a.onnx": NEW}, {"a.onnx": NEW}, {"a.onnx": NEWER}, {"a.onnx": NEWER}) == [swap]


def test_the_old_file_put_back_after_a_refusal_asks_for_nothing(following: FolderWatch) -> None:
    (swap,) = looks(following, {"a.onnx": NEW}, {"a.onnx": NEW})
    following.refused(swap)
    assert looks(following, {"a.onnx": OLD}, {"a.onnx": OLD}) == []


def test_a_model_that_had_gone_by_itself_is_not_unloaded_for_ever(following: FolderWatch) -> None:
    (unload,) = looks(following, {}, {})
    following.refused(unload)
    assert looks(following, {}, {}) == []


def test_the_configurations_name_for_a_file_counts() -> None:
    folder = FolderWatch({"digits-v7.onnx": "digits"})
    (swap,) = looks(folder, *[{"digits-v7.onnx": OLD}] * 2, *[{"digits-v7.onnx": NEW}] * 2)
    assert swap == Change("swap", "digits", "digits-v7.onnx")
    folder.done(swap)
    assert [change.model for change in looks(folder, {}, {})] == ["digits"]


def test_several_files_are_several_changes(following: FolderWatch) -> None:
    both = {"a.onnx": NEW, "b.onnx": OLD}
    assert looks(following, both, both) == [Change("swap", "a", "a.onnx"), Change("load", "b", "b.onnx")]


# ---- a real folder ------------------------------------------------------------------------------


def test_a_listing_has_the_models_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "b.onnx").write_bytes(b"12")
    (tmp_path / "a.onnx").write_bytes(b"123")
    (tmp_path / "a.onnx.data").write_bytes(b"1")
    (tmp_path / "gone.onnx").symlink_to("nowhere")
    found = watch.listing(tmp_path)
    assert list(found) == ["a.onnx", "b.onnx"]
    assert [size for _, size, _ in found.values()] == [3, 2]


def test_another_file_of_the_same_size_and_time_is_seen_to_be_another(tmp_path: Path) -> None:
    for name in ("a.onnx", "next"):
        (tmp_path / name).write_bytes(b"123")
        os.utime(tmp_path / name, (1, 1))
    before = watch.listing(tmp_path)
    os.replace(tmp_path / "next", tmp_path / "a.onnx")
    assert watch.listing(tmp_path) != before


# ---- following ----------------------------------------------------------------------------------


class Operator:
    """A yard that says what a test wants it to."""

    def __init__(self) -> None:
        self.pid = 1
        self.orders: list[tuple[str, ...]] = []
        self.outcomes: list[Exception] = []  # of the next orders; then they are carried out
        self.known: dict[str, Any] = {}  # what its snapshot holds besides
        self.away = 0  # looks for which no broker is there

    def snapshot(self) -> dict[str, Any]:
        if self.away:
            self.away -= 1
            raise DeadlineExceeded("no broker answers")
        return {"pid": self.pid, **self.known}

    def _order(self, *order: str) -> ModelChanged:
        self.orders.append(order)
        if self.outcomes:
            raise self.outcomes.pop(0)
        return ModelChanged(order[1], 5)

    def load(self, model: str, file: str, timeout: float) -> ModelChanged:
        return self._order("load", model, file)

    def swap(self, model: str, file: str, timeout: float) -> ModelChanged:
        return self._order("swap", model, file)

    def unload(self, model: str, timeout: float) -> ModelChanged:
        return self._order("unload", model)


def follow(folder: Path, operator: Operator, steps: Iterator[Any], served: Any = dict) -> list[str]:
    """Follow the folder; between two looks `steps` goes on, and when it is over, so is the following."""
    said: list[str] = []
    watch.follow(folder, served, operator, lambda s: next(steps, "over") == "over", said.append)  # type: ignore[arg-type]
    return said


def test_following_says_what_was_done_and_what_was_refused(tmp_path: Path) -> None:
    operator = Operator()

    def steps() -> Iterator[None]:
        (tmp_path / "a.onnx").write_bytes(b"1")
        yield
        yield
        (tmp_path / "a.onnx").write_bytes(b"12")
        operator.outcomes.append(ModelFailed("'a' was not changed: it is no ONNX"))
        yield
        yield
        yield
        (tmp_path / "a.onnx").unlink()
        yield
        yield

    assert follow(tmp_path, operator, steps()) == [
        "a: loaded, revision 5",
        "a.onnx: swap refused: 'a' was not changed: it is no ONNX",
        "a: unloaded, revision 5",
    ]
    assert operator.orders == [("load", "a", "a.onnx"), ("swap", "a", "a.onnx"), ("unload", "a")]


@pytest.mark.parametrize("later", [Overloaded("no worker"), DeadlineExceeded("slow"), BrokerLost("gone")])
def test_what_could_not_be_done_now_is_asked_for_at_the_next_look(tmp_path: Path, later: Exception) -> None:
    operator = Operator()
    operator.outcomes.append(later)
    (tmp_path / "a.onnx").write_bytes(b"1")
    assert follow(tmp_path, operator, iter(range(4))) == ["a: loaded, revision 5"]
    assert operator.orders == [("load", "a", "a.onnx")] * 2


def test_a_broker_that_was_started_again_is_told_of_what_it_does_not_serve(tmp_path: Path) -> None:
    operator = Operator()
    for name in ("mine.onnx", "added.onnx"):
        (tmp_path / name).write_bytes(b"1")

    def steps() -> Iterator[None]:
        yield
        yield
        operator.pid, operator.away = 2, 2
        yield from iter([None] * 4)

    said = follow(tmp_path, operator, steps(), lambda: {"mine.onnx": "mine"})
    assert said == ["added: loaded, revision 5"] * 2
    assert operator.orders == [("load", "added", "added.onnx")] * 2


def test_who_serves_what_is_asked_of_every_broker_anew(tmp_path: Path) -> None:
    operator = Operator()
    (tmp_path / "a.onnx").write_bytes(b"1")
    answers = iter([{"a.onnx": "a"}, {}])  # an operator had loaded it; the next broker knows nothing of it

    def steps() -> Iterator[None]:
        yield
        operator.pid = 2
        yield from iter([None] * 3)

    follow(tmp_path, operator, steps(), lambda: next(answers))
    assert operator.orders == [("load", "a", "a.onnx")]


def test_a_folder_that_cannot_be_read_is_told_and_not_taken_for_empty(tmp_path: Path) -> None:
    operator = Operator()
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "a.onnx").write_bytes(b"1")

    def steps() -> Iterator[None]:
        yield
        folder.rename(tmp_path / "elsewhere")
        yield
        yield
        (tmp_path / "elsewhere").rename(folder)
        yield
        yield

    said = follow(folder, operator, steps(), lambda: {"a.onnx": "a"})
    assert said == [f"{folder} cannot be read: No such file or directory"] * 2
    assert operator.orders == []


def test_a_folder_that_is_not_the_yards_is_refused(tmp_path: Path) -> None:
    operator = Operator()
    root = tmp_path / "root"
    root.mkdir()
    operator.known = {"models_root": str(root), "model_files": {"a": f"{root}/a-v2.onnx", "b": "/b.onnx"}}
    with pytest.raises(InvalidRequest, match=f"is not this yard's models_root; watch {root} instead"):
        watch.check_root(tmp_path, operator)  # type: ignore[arg-type]
    watch.check_root(tmp_path / "root", operator)  # type: ignore[arg-type]
    assert watch.served_from(root, operator) == {"a-v2.onnx": "a"}  # type: ignore[arg-type]
    operator.known = {"models_root": ""}
    with pytest.raises(InvalidRequest, match="without models_root, so it can't follow a folder"):
        watch.check_root(root, operator)  # type: ignore[arg-type]


def test_a_model_that_is_served_from_elsewhere_by_now_is_left_alone(tmp_path: Path) -> None:
    operator = Operator()
    operator.known = {"model_files": {"a": "/other/a.onnx"}}
    (tmp_path / "a.onnx").write_bytes(b"1")

    def steps() -> Iterator[None]:
        yield
        (tmp_path / "a.onnx").unlink()
        yield from iter([None] * 4)

    said = follow(tmp_path, operator, steps(), lambda: {"a.onnx": "a"})
    assert said == ["a.onnx: nothing to unload: 'a' is served from /other/a.onnx"]
    assert operator.orders == []


def test_a_refusal_of_one_file_does_not_keep_the_next_one_back(tmp_path: Path) -> None:
    operator = Operator()
    operator.outcomes.append(InvalidRequest("no name"))
    for name in ("a b.onnx", "c.onnx"):
        (tmp_path / name).write_bytes(b"1")
    said = follow(tmp_path, operator, iter(range(3)))
    assert said == ["a b.onnx: load refused: no name", "c: loaded, revision 5"]
