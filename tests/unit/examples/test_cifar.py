"""CIFAR's binary format, read from small files that are written here exactly as it is laid out."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batchyard.examples.training.cifar import CIFAR10, CIFAR100, Bytes, Layout, Remote, load, read
from batchyard.examples.training.download import Damaged, Unavailable

NOWHERE = "http://127.0.0.1:9/cifar.tar.gz"  # port 9 answers nobody
TEN = replace(
    CIFAR10,
    remote=Remote(NOWHERE, 100, "0" * 64),
    train={"data_batch_1.bin": 5, "data_batch_2.bin": 3},
    test={"test_batch.bin": 4},
)
HUNDRED = replace(CIFAR100, remote=TEN.remote, train={"train.bin": 6}, test={"test.bin": 2})


def records(layout: Layout, count: int, seed: int) -> tuple[bytes, Bytes, Bytes]:
    """(the file's bytes, labels uint8[count, label bytes], images uint8[count, 3, 32, 32])."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, n, count, np.uint8) for n in layout.label_counts], 1)
    images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
    content = b"".join(
        bytes(label.tolist()) + b"".join(plane.tobytes() for plane in image)
        for label, image in zip(labels, images, strict=True)
    )
    return content, labels, images


def written(layout: Layout, folder: Path) -> dict[str, tuple[Bytes, Bytes]]:
    """Every file of `layout` in `folder`; what they hold, by name."""
    (folder / layout.folder).mkdir()
    held = {}
    for seed, (name, count) in enumerate((layout.train | layout.test).items()):
        content, labels, images = records(layout, count, seed)
        (folder / layout.folder / name).write_bytes(content)
        held[name] = labels, images
    # The real file ends with an empty line.
    text = "".join(f"class_{label}\n" for label in range(layout.classes)) + "\n"
    (folder / layout.folder / layout.names).write_text(text)
    return held


def test_cifar10_is_read_as_it_was_written(tmp_path: Path) -> None:
    held = written(TEN, tmp_path)
    data = load(TEN, tmp_path)
    assert (data.train.images.shape, data.train.images.dtype) == ((8, 3, 32, 32), np.uint8)
    for part, names in ((data.train, TEN.train), (data.test, TEN.test)):
        np.testing.assert_array_equal(part.images, np.concatenate([held[name][1] for name in names]))
        np.testing.assert_array_equal(part.labels, np.concatenate([held[name][0][:, 0] for name in names]))
        assert part.coarse is None
    assert data.names[3] == "class_3"


def test_an_archive_that_was_put_there_is_checked_unpacked_and_no_longer_needed(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    held = written(TEN, made)
    folder = tmp_path / "data"
    folder.mkdir()
    archive = folder / TEN.remote.name
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made / TEN.folder, TEN.folder)
    content = archive.read_bytes()
    remote = Remote(NOWHERE, len(content), hashlib.sha256(content).hexdigest())
    with pytest.raises(Damaged, match="bytes, and should have 100"):
        load(TEN, folder)
    data = load(replace(TEN, remote=remote), folder)
    np.testing.assert_array_equal(data.test.images, held["test_batch.bin"][1])
    assert [path.name for path in folder.iterdir()] == [TEN.folder]
    assert len(load(TEN, folder).train.labels) == 8


def test_cifar100_has_coarse_and_fine_labels(tmp_path: Path) -> None:
    held = written(HUNDRED, tmp_path)
    train = load(HUNDRED, tmp_path).train
    labels, images = held["train.bin"]
    np.testing.assert_array_equal(train.coarse, labels[:, 0])
    np.testing.assert_array_equal(train.labels, labels[:, 1])
    np.testing.assert_array_equal(train.images, images)


def test_a_pixel_lies_where_the_format_says(tmp_path: Path) -> None:
    written(TEN, tmp_path)
    content = (tmp_path / TEN.folder / "test_batch.bin").read_bytes()
    image = load(TEN, tmp_path).test.images[2]
    green, row, column = 1, 30, 7
    assert image[green, row, column] == content[2 * 3073 + 1 + 1024 * green + 32 * row + column]


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:3073], lambda c: c + b"\0", lambda c: b""])
def test_a_file_of_another_length_is_refused_with_both(tmp_path: Path, change: object) -> None:
    written(TEN, tmp_path)
    path = tmp_path / TEN.folder / "test_batch.bin"
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(Damaged, match=r"has [\d,]+ bytes, and 4 records of 3,073 bytes are expected"):
        load(TEN, tmp_path)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    written(HUNDRED, tmp_path)
    path = tmp_path / HUNDRED.folder / "train.bin"
    content = bytearray(path.read_bytes())
    content[0] = 20  # coarse: 0..19
    path.write_bytes(content)
    with pytest.raises(Damaged, match="has a label 20, and there are 20 classes"):
        read(HUNDRED, tmp_path / HUNDRED.folder, HUNDRED.train)


def test_too_few_names_are_refused(tmp_path: Path) -> None:
    written(TEN, tmp_path)
    (tmp_path / TEN.folder / TEN.names).write_text("cat\ndog\n")
    with pytest.raises(Damaged, match="has 2 names, and there are 10 classes"):
        load(TEN, tmp_path)


def test_without_a_network_the_error_names_the_way_that_needs_none(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        load(TEN, tmp_path)
    said = str(caught.value)
    assert NOWHERE in said
    assert str(tmp_path) in said
    assert "--dataset digits" in said


def test_the_real_archives_add_up_to_sixty_thousand_images() -> None:
    for layout in (CIFAR10, CIFAR100):
        assert sum(layout.train.values()) == 50_000
        assert sum(layout.test.values()) == 10_000
        assert len(bytes.fromhex(layout.remote.sha256)) == 32
    assert CIFAR10.files["test_batch.bin"] == 30_730_000
    assert CIFAR100.files["train.bin"] == 153_700_000
