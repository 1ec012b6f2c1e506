"""A yard's models follow a folder: new files are loaded, changed ones swapped, and the models of vanished
ones unloaded. `batchyard models watch`, and `batchyard up --watch`.

`NAME.onnx` is the model NAME, unless the yard's configuration has given the file another name.
Subfolders are not looked at. A file counts when two looks have found it the same, so that one which is
still being written is left alone; and what was refused is tried again when it changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..client import Operator
from ..transport.errors import BatchyardError, BrokerLost, DeadlineExceeded, InvalidRequest, Overloaded

SUFFIX = ".onnx"
LOOK_S = 1.0
CHANGE_TIMEOUT_S = 300.0

PAST = {"load": "loaded", "swap": "swapped", "unload": "unloaded"}

Stamp = tuple[int, int, int]  # modified (ns), bytes, inode


class Change(NamedTuple):
    """What a change of the folder requires: "load", "swap" or "unload"."""

    kind: str
    model: str
    file: str


class FolderWatch:
    """Finds the changes from one listing to the next. Pure.

    `served`: files of the folder that the yard serves already -> under which name.
    """

    def __init__(self, served: Mapping[str, str]) -> None:
        self._names = dict(served)
        self._served: dict[str, Stamp | None] = dict.fromkeys(served)  # None: as it was at the first look
        self._refused: dict[str, Stamp] = {}
        self._before: dict[str, Stamp] = {}

    def look(self, listing: Mapping[str, Stamp]) -> list[Change]:
        """The changes that this listing requires; report each with `done` or `refused`."""
        found = []
        for file, stamp in listing.items():
            if self._served.get(file, stamp) is None:
                self._served[file] = stamp
            if self._before.get(file) != stamp or self._refused.get(file) == stamp:
                continue
            if file not in self._served:
                found.append(Change("load", self._name(file), file))
            elif self._served[file] != stamp:
                found.append(Change("swap", self._name(file), file))
        gone = [file for file in self._served if file not in listing and file not in self._before]
        found += [Change("unload", self._name(file), file) for file in gone]
        self._before = dict(listing)
        return found

    def done(self, change: Change) -> None:
        """The yard has made the change."""
        if change.kind == "unload":
            del self._served[change.file]
        else:
            self._served[change.file] = self._before[change.file]

    def refused(self, change: Change) -> None:
        """The yard refused the change."""
        if change.kind == "unload":
            del self._served[change.file]  # it is not there to be let go
        else:
            self._refused[change.file] = self._before[change.file]

    def _name(self, file: str) -> str:
        return self._names.get(file, file.removesuffix(SUFFIX))


def listing(folder: Path) -> dict[str, Stamp]:
    """The models of a folder. Raises OSError."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                try:
                    status = entry.stat()
                except OSError:  # it has just gone
                    continue
                found[entry.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return dict(sorted(found.items()))


def follow(
    folder: Path,
    served: Callable[[], Mapping[str, str]],
    operator: Operator,
    wait: Callable[[float], bool],
    say: Callable[[str], None],
) -> None:
    """Make the yard follow the folder until `wait(seconds)` is true. `served` tells which files a broker
    serves by itself; one that was started again has its configuration's models, and is told of the
    others anew."""
    watch = FolderWatch({})
    broker = None
    while True:
        try:
            counters = operator.snapshot()
            if broker != counters["pid"]:
                watch = FolderWatch(served())
            broker = counters["pid"]
            for line in _apply(watch, folder, operator, counters.get("model_files", {})):
                say(line)
        except (DeadlineExceeded, BrokerLost):
            pass  # no broker just now
        except OSError as error:
            say(f"{folder} cannot be read: {error.strerror or error}")
        if wait(LOOK_S):
            return


def check_root(folder: Path, operator: Operator) -> None:
    """Raise InvalidRequest unless the folder is the one that the yard loads models from. Another folder's
    files say nothing of the yard's models, even where they have the same names."""
    root = operator.snapshot().get("models_root", "")
    if not root:
        raise InvalidRequest("this yard was started without models_root, so it can't follow a folder")
    if str(folder.resolve()) != root:
        raise InvalidRequest(f"{folder} is not this yard's models_root; watch {root} instead")


def served_from(folder: Path, operator: Operator) -> dict[str, str]:
    """The files of the folder that the yard serves -> their models' names."""
    root = folder.resolve()
    files = {name: Path(file) for name, file in operator.snapshot().get("model_files", {}).items()}
    return {file.name: name for name, file in files.items() if file.parent == root}


def _apply(
    watch: FolderWatch, folder: Path, operator: Operator, files: Mapping[str, str]
) -> Iterator[str]:
    """`files`: what the yard serves now, by model."""
    for change in watch.look(listing(folder)):
        own = str(folder.resolve() / change.file)
        if change.kind != "load" and files.get(change.model, own) != own:
            watch.refused(change)
            elsewhere = f"{change.model!r} is served from {files[change.model]}"
            yield f"{change.file}: nothing to {change.kind}: {elsewhere}"
            continue
        try:
            if change.kind == "load":
                revision = operator.load(change.model, change.file, timeout=CHANGE_TIMEOUT_S).revision
            elif change.kind == "swap":
                revision = operator.swap(change.model, change.file, timeout=CHANGE_TIMEOUT_S).revision
            else:
                revision = operator.unload(change.model, timeout=CHANGE_TIMEOUT_S).revision
        except (BrokerLost, DeadlineExceeded, Overloaded):
            return  # asked again at the next look
        except BatchyardError as error:
            watch.refused(change)
            yield f"{change.file}: {change.kind} refused: {error}"
        else:
            watch.done(change)
            yield f"{change.model}: {PAST[change.kind]}, revision {revision}"
