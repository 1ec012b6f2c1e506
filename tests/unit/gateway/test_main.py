"""What must hold before anything listens, and the page's policy."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from batchyard.gateway import __main__ as gateway
from batchyard.gateway import http_page as page
from batchyard.gateway import options
from batchyard.tests.certificates import certificate


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "requires a token"),
        (["--host", "::"], "requires a token"),
        (["--host", "192.0.2.1"], "requires a token"),
        (["--host", "no such host"], "no address"),
        (["--token-file", "SHORT"], "16 or more"),
        (["--token-file", "NONE"], "NONE"),
        (["--host", "0.0.0.0", "--token-file", "GOOD", "--shared-memory"], "loopback"),
        (["--tls-cert", "GOOD"], "go together"),
        (["--tls-key", "GOOD"], "go together"),
        (["--tls-cert", "NONE", "--tls-key", "GOOD"], "NONE"),
        (["--tls-cert", "GOOD", "--tls-key", "NONE"], "NONE"),
        (["--tls-cert", "GOOD", "--tls-key", "SHORT"], "no certificate and its key in PEM"),
        (["--tls-cert", "CHAIN", "--tls-key", "OTHER"], "mismatch"),
        (["--tls-cert", "CHAIN", "--tls-key", "LOCKED"], "no certificate and its key in PEM"),
    ],
)
def test_what_is_not_safe_does_not_start(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(options.TOKEN_VARIABLE, raising=False)
    (tmp_path / "SHORT").write_text("123\n")
    (tmp_path / "GOOD").write_text("0123456789abcdef\n")
    if "CHAIN" in arguments:
        chain, key = certificate(tmp_path)
        chain.rename(tmp_path / "CHAIN")
        lock = ["openssl", "pkey", "-in", str(key), "-aes128", "-passout", "pass:secret", "-out", str(tmp_path / "LOCKED")]
        subprocess.run(lock, check=True)
        certificate(tmp_path)[1].rename(tmp_path / "OTHER")
    files = [str(tmp_path / one) if one.isupper() else one for one in arguments]
    assert gateway.main(files) == 1
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["--port", "70000"], ["--port", "x"], ["--requests", "0"], ["--nonsense"]]
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gateway.main(arguments)
    assert ended.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize("html", [page.HTML, page.DOCS], ids=["status", "docs"])
def test_a_page_runs_under_its_own_policy(html: str) -> None:
    policy = page.headers(html)["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        for body in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    # What the policy would stop in silence: handlers and styles in attributes, and anything from elsewhere.
    assert not re.search(r"\s(style|on\w+)=|https?://|innerHTML", html)


def test_figures_are_cumulative_and_by_model() -> None:
    class Spec:
        def __str__(self) -> str:
            return "x: float32[n]"

    snapshot = {
        "pid": 1, "clients": 2, "rows_under_way": 3, "refused": {"a": 1, "b": 2}, "workers_lost": 0,
        "requests": [["m", 0, "ok", 5], ["m", 1, "ok", 5], ["m", 1, "expired", 1], ["gone", 1, "ok", 9]],
        "models": [["m", 7, 1, [2, 0, 1, 0], {"cpu": 1}]],
        "stages": [["m", 0, "total", {"counts": {4: 2}, "sum": 1}], ["m", 1, "total", {"counts": {4: 1, 9: 1}, "sum": 1}]],
        "batch_stages": [["m", "rows", {"counts": {1: 4}, "sum": 12}]],
    }  # fmt: skip
    from batchyard import ModelInfo
    from batchyard.transport.messages import ModelState

    info = ModelInfo("m", ModelState.READY, "", 1, [], [], True, "", 8, [])
    told = page.figures([info], snapshot)
    (model,) = told["models"]
    assert (model["ok"], model["failed"], model["rows"], model["batches"]) == (10, 1, 12, 4)
    assert model["latency"] == {4: 3, 9: 1}
    assert model["waiting"] == 3
    urgent, high, normal, _ = told["priorities"]
    assert [one["waiting"] for one in (urgent, high, normal)] == [2, 0, 1]
    assert (high["name"], high["ok"], high["failed"], high["latency"]) == ("high", 14, 1, {4: 1, 9: 1})
    assert told["refused"] == 3
