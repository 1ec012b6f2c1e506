"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009) from their binary files: no pickle is ever read.

A file is a row of records, nothing between them (https://www.cs.toronto.edu/~kriz/cifar.html):

    CIFAR-10    | label 1 byte                 | red 1024 | green 1024 | blue 1024 |   3073 bytes
    CIFAR-100   | coarse 1 byte | fine 1 byte  | red 1024 | green 1024 | blue 1024 |   3074 bytes

A colour is 32 rows of 32 pixels. Lengths and checksums of the archives are those of TensorFlow Datasets'
list (url_checksums/cifar10.txt and cifar100.txt); the md5 on the page above is of the same files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .download import Damaged, Remote, Say, Unavailable, fetch, unpack

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32  # bytes of an image
SITE = "https://www.cs.toronto.edu/~kriz"
OFFLINE = "the digits that come with scikit-learn need no network: --dataset digits"

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """What the archive is and how its files are read. Files are named with their number of records."""

    name: str
    remote: Remote
    folder: str
    train: dict[str, int]
    test: dict[str, int]
    label_counts: tuple[int, ...]  # classes by label byte: (10,), or (20 coarse, 100 fine)
    names: str  # the file with the classes' names, one in a line; of the last label byte

    @property
    def record_bytes(self) -> int:
        return len(self.label_counts) + PIXELS

    @property
    def classes(self) -> int:
        return self.label_counts[-1]

    @property
    def files(self) -> dict[str, int | None]:
        """Every file that is read, with its length in bytes; None: a text."""
        counts = self.train | self.test
        return {**{name: count * self.record_bytes for name, count in counts.items()}, self.names: None}


CIFAR10 = Layout(
    "cifar10",
    Remote(
        f"{SITE}/cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar-10-batches-bin",
    {f"data_batch_{number}.bin": 10_000 for number in range(1, 6)},
    {"test_batch.bin": 10_000},
    (10,),
    "batches.meta.txt",
)
CIFAR100 = Layout(
    "cifar100",
    Remote(
        f"{SITE}/cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    "cifar-100-binary",
    {"train.bin": 50_000},
    {"test.bin": 10_000},
    (20, 100),
    "fine_label_names.txt",
)


@dataclass(frozen=True)
class Rows:
    """Images uint8[n, 3, 32, 32] and labels uint8[n]; CIFAR-100's labels are the fine ones, and `coarse`
    (uint8[n]) has the 20 groups of five. CIFAR-10 has no coarse ones."""

    images: Bytes
    labels: Bytes
    coarse: Bytes | None


@dataclass(frozen=True)
class Cifar:
    """A whole data set: 50,000 rows to train on, 10,000 to test, and the classes' names by label."""

    train: Rows
    test: Rows
    names: tuple[str, ...]


def load(layout: Layout, folder: Path, say: Say = lambda line: None) -> Cifar:
    """Read `layout` from `folder`, fetched and unpacked there first where it is missing.

    What lies there already is used without a network: the unpacked files, or the archive. Takes about
    0.4 GB of memory. Raises Unavailable (with the ways that need no network), Damaged, OSError.
    """
    unpacked = folder / layout.folder
    if not all((unpacked / name).is_file() for name in layout.files):
        archive = folder / layout.remote.name
        try:
            fetch(layout.remote, archive, say)
        except Unavailable as error:
            raise Unavailable(f"{error}. Put that file into {folder} yourself, or: {OFFLINE}") from None
        say(f"unpacking {archive.name}")
        unpack(archive, unpacked, layout.files)
        archive.unlink()  # the files are what is read from now on
    return Cifar(
        read(layout, unpacked, layout.train), read(layout, unpacked, layout.test), names(layout, unpacked)
    )


def read(layout: Layout, folder: Path, files: dict[str, int]) -> Rows:
    """The records of `files` (name: count), in order. Raises Damaged, with what was found and expected."""
    images = np.empty((sum(files.values()), *SHAPE), np.uint8)
    labels = np.empty((len(images), len(layout.label_counts)), np.uint8)
    start = 0
    for name, count in files.items():
        path = folder / name
        content = np.fromfile(path, np.uint8)
        if len(content) != count * layout.record_bytes:
            raise Damaged(
                f"{path} has {len(content):,} bytes, and {count:,} records of {layout.record_bytes:,} bytes "
                f"are expected: remove {folder}, and it is fetched again"
            )
        records = content.reshape(count, layout.record_bytes)
        labels[start : start + count] = records[:, : labels.shape[1]]
        images[start : start + count] = records[:, labels.shape[1] :].reshape(-1, *SHAPE)
        start += count
    for largest, classes in zip(labels.max(0).tolist(), layout.label_counts, strict=True):
        if largest >= classes:
            raise Damaged(f"{folder} has a label {largest}, and there are {classes} classes")
    coarse = labels[:, 0].copy() if labels.shape[1] == 2 else None
    return Rows(images, labels[:, -1].copy(), coarse)


def names(layout: Layout, folder: Path) -> tuple[str, ...]:
    """The classes' names, by label. Raises Damaged where there are not as many as classes."""
    path = folder / layout.names
    lines = path.read_text(encoding="ascii", errors="replace").split()  # a name has no space in it
    if len(lines) != layout.classes:
        raise Damaged(f"{path} has {len(lines)} names, and there are {layout.classes} classes")
    return tuple(lines)
