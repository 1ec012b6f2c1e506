"""The gateway's options on the command line of `up`, in [gateway], and in the documents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from batchyard.broker.config import ConfigError
from batchyard.cli.up import _parser
from batchyard.cli.up_gateway import gateway_of
from batchyard.gateway.options import OPTIONS, TOKEN_VARIABLE, parser
from batchyard.tests.certificates import certificate
from batchyard.transport.errors import InvalidRequest

pytest.importorskip("fastapi", reason="pip install 'batchyard[gateway]'")
ROOT = Path(__file__).parents[3]
# Of each option: what `up` is told, what [gateway] says, and what the gateway is told.
VALUES: dict[str, tuple[list[str], Any, Any]] = {
    "host": (["127.0.0.1"], "127.0.0.1", "127.0.0.1"),
    "port": (["9001"], 9001, 9001),
    "grpc_port": (["0"], 0, 0),
    "token_file": (["{folder}/token"], "token", Path("{folder}/token")),
    "tls_cert": (["{folder}/chain-127.0.0.1.pem"], "chain-127.0.0.1.pem", Path("{folder}/chain-127.0.0.1.pem")),
    "tls_key": (["{folder}/key-127.0.0.1.pem"], "key-127.0.0.1.pem", Path("{folder}/key-127.0.0.1.pem")),
    "shared_memory": ([], True, True),
    "model_control": ([], True, True),
    "arena_mib": (["32"], 32, 32),
    "body_mib": (["16"], 16, 16),
    "requests": (["9"], 9, 9),
    "ready": (["any"], "any", "any"),
    "notice": (["0"], 0, 0),
    "text_model": (["s={folder}/texts"], {"s": "texts"}, [("s", Path("{folder}/texts"))]),
    "job_ttl": (["7"], 7, 7),
}
TOGETHER = {"tls_cert", "tls_key"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    (tmp_path / "token").write_text("0123456789abcdef")
    return tmp_path


def read(folder: Path, arguments: list[str], table: dict[str, Any] | None) -> argparse.Namespace:
    found = gateway_of(_parser().parse_args(arguments), table, folder / "batchyard.toml")
    assert found is not None
    line, options = found
    assert parser().parse_args(line) == options
    return options


def placed(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [(name, placed(path, folder)) for name, path in value]
    return Path(str(value).format(folder=folder)) if isinstance(value, Path) else value


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_reached_from_up_and_from_the_file(option: Any, folder: Path) -> None:
    line, written, expected = VALUES[option.name]
    flag = "--gateway" if option.name == "port" else option.flag("gateway-")
    beside: dict[str, Any] = {}
    if option.name in TOGETHER:
        certificate(folder)
        (other,) = TOGETHER - {option.name}
        beside = {other: VALUES[other][1]}
    for arguments, table in (
        ([flag, *(part.format(folder=folder) for part in line)], beside or None),
        ([], {option.toml: written, **beside}),
    ):
        assert getattr(read(folder, arguments, table), option.name) == placed(expected, folder)


def test_the_command_line_overrides_the_file_and_a_table_alone_starts_one(folder: Path) -> None:
    table = {"port": 9001, "body_mib": 5}
    options = read(folder, ["--gateway", "9002"], table)
    assert (options.port, options.body_mib) == (9002, 5)
    assert read(folder, ["--gateway"], table).port == 9001
    assert read(folder, ["--gateway"], None).port == 8000
    assert read(folder, [], {}).port == 8000
    assert gateway_of(_parser().parse_args([]), None, folder / "batchyard.toml") is None


def test_what_is_wrong_in_the_file_is_told_by_its_key_all_at_once(folder: Path) -> None:
    wrong = {"prot": 1, "port": 70000, "ready": "some", "shared_memory": 1, "text_models": {"s": 5}, "host": 7}
    with pytest.raises(ConfigError) as caught:
        read(folder, [], wrong)
    told = "\n".join(caught.value.problems)
    for key in ("prot: unknown key", "port: expected", "ready: expected", "shared_memory", "text_models.s", "host"):
        assert f"gateway.{key}" in told


def test_what_is_not_safe_is_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="requires a token"):
        read(folder, ["--gateway-host", "0.0.0.0"], None)
    with pytest.raises(InvalidRequest, match="loopback"):
        read(folder, ["--gateway-shared-memory"], {"host": "0.0.0.0", "token_file": "token"})
    with pytest.raises(OSError, match="missing"):
        read(folder, ["--gateway"], {"token_file": "missing"})
