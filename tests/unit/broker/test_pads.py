"""How an axis is padded, as `batchyard.toml` and serve(options=...) say it."""

from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.broker import config as configuration
from batchyard.broker.config import ConfigError, ModelConfig
from batchyard.transport.messages import Pad


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"x")
    return path


def toml(file: Path, text: str) -> ModelConfig:
    path = file.parent / "batchyard.toml"
    path.write_text(f'[models.net]\nfile = "net.onnx"\n{text}\n', "utf-8")
    return configuration.read(path).models["net"]


def test_a_padded_axis_in_both_ways(file: Path) -> None:
    text = (
        "pad = { sequence = { to = [16, 64], fill = { ids = 3, mask = false } } }\nbatch_elements_max = 512"
    )
    said = {
        "pad": {"sequence": {"to": [16, 64], "fill": {"ids": 3, "mask": False}}},
        "batch_elements_max": 512,
    }
    embedded = configuration.from_models({"net": file}, model_options={"net": said}).models["net"]
    for found in (toml(file, text), embedded):
        assert found.pad == {"sequence": Pad([16, 64], {"ids": 3.0, "mask": 0.0})}
        assert found.batch_elements_max == 512


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pad = 3", "models.net.pad: expected a table"),
        ("pad = { s = 3 }", "models.net.pad.s: expected a table"),
        ("pad = { s = {} }", "models.net.pad.s.to: expected rising sizes such as [16, 32, 64]"),
        ("pad = { s = { to = [] } }", "models.net.pad.s.to: expected rising sizes"),
        ("pad = { s = { to = [0, 4] } }", "found [0, 4]"),
        ("pad = { s = { to = [8, 4] } }", "found [8, 4]"),
        ("pad = { s = { to = [true] } }", "found [True]"),
        ("pad = { s = { to = [4], fil = 3 } }", 'models.net.pad.s.fil: unknown key, did you mean "fill"?'),
        ("pad = { s = { to = [4], fill = { ids = nan } } }", "models.net.pad.s.fill.ids: expected a number"),
        ('pad = { s = { to = [4], fill = { ids = "0" } } }', "models.net.pad.s.fill.ids: expected a number"),
        (
            "pad = { a = { to = [4] }, b = { to = [4] }, c = { to = [4] }, d = { to = [4] }, e = { to = [4] } }",
            "models.net.pad: expected at most 4 axes, found 5",
        ),
        ("batch_elements_max = 0", "models.net.batch_elements_max: expected an integer from 1"),
        ("batch_elements_max = true", "models.net.batch_elements_max: expected an integer from 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(file: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        toml(file, text)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"other": {}}, "options.other: unknown key"),
        ({"net": 3}, "options.net: expected a table"),
        ({"net": {"file": "x"}}, "options.net.file: unknown key"),
        ({"net": {"pad": {"s": {"to": [8, 4]}}}}, "options.net.pad.s.to: expected rising sizes"),
    ],
)
def test_what_is_wrong_with_options_is_named_likewise(
    file: Path, said: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        configuration.from_models({"net": file}, model_options=said)
    assert problem in str(raised.value)
