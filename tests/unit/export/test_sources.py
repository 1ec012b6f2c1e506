"""Pickles are refused before torch sees them; a .pt2 is looked into first. None of it needs torch."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from batchyard.export.sources import made, refuse_pickles
from batchyard.transport.errors import InvalidRequest

GOOD = {
    "archive_format": b"pt2",
    "models/model.json": b"{}",
    "data/weights/weight_0": b"\0\0\0\0",
    "data/weights/model_weights_config.json": json.dumps({"config": {"w": {"use_pickle": False}}}).encode(),
    "data/constants/model_constants_config.json": b'{"config": {}}',
    "data/sample_inputs/model.pt": b"checked by the caller",
}
HERE = Path("model.pt2")


def archive(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in entries.items():
            file.writestr(f"model/{name}", content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "folder/model.pkl", "model.bin", "model.ckpt"])
def test_a_pickle_is_refused_and_told_what_to_do_instead(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is a pickle.*torch\.export\.save.*--weights"):
        made(name)


@pytest.mark.parametrize("name", ["no_such_module_here:f", "os:no_such_name", "a b:c", "1:2"])
def test_what_cannot_be_imported_is_said(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be imported"):
        made(name)


def test_what_is_neither_is_said() -> None:
    with pytest.raises(InvalidRequest, match=r"neither module:factory nor a \.pt2"):
        made("resnet18")


def test_an_ordinary_program_passes_and_gives_its_sample_inputs_to_be_checked() -> None:
    assert refuse_pickles(HERE, archive(GOOD)) == [b"checked by the caller"]


@pytest.mark.parametrize(
    "more",
    [
        {"data/weights/model.pt": b"legacy"},
        {"data/constants/model.pt": b"legacy"},
        {"data/constants/custom_obj_0": b"x"},
        {"data/constants/opaque_obj_0": b"x"},
        {"data/weights/model_weights_config.json": b'{"config": {"w": {"use_pickle": true}}}'},
        {"data/weights/model_weights_config.json": b'{"config": [1]}'},
        {"data/weights/model_weights_config.json": b"{"},
        {"archive_format": b"other"},
    ],
)
def test_a_program_that_holds_a_pickle_or_is_damaged_is_refused(more: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest):
        refuse_pickles(HERE, archive({**GOOD, **more}))


def test_the_older_format_and_no_archive_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="holds no pickles"):
        refuse_pickles(HERE, archive({"version": b"8.2", "serialized_state_dict.json": b"pickle"}))
    with pytest.raises(InvalidRequest, match=r"no torch\.export program"):
        refuse_pickles(HERE, b"nothing")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused() -> None:
    buffer = io.BytesIO(archive(GOOD))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("model/models/model.json", b"another")
    with pytest.raises(InvalidRequest, match="two entries"):
        refuse_pickles(HERE, buffer.getvalue())
