"""Parts that may be missing: a skip with a sentence, a failure where nothing may be missing."""

from __future__ import annotations

import pytest

from ..required import VARIABLE, module, part, required

HOW = "prometheus is not here; to get it: on Debian, python3 run tools prometheus"


def test_what_is_there_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "prometheus,torch")
    assert part("prometheus", "/usr/bin/prometheus") == "/usr/bin/prometheus"
    assert module("json").loads("1") == 1


def test_what_is_missing_is_skipped_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "webgpu")
    with pytest.raises(pytest.skip.Exception, match=HOW):
        part("prometheus", None)


@pytest.mark.parametrize("wanted", ["prometheus,torch", " webgpu, prometheus ,torch,"])
def test_what_is_missing_and_required_fails(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, wanted)
    with pytest.raises(pytest.fail.Exception, match=HOW):
        part("prometheus", None)
    with pytest.raises(pytest.fail.Exception, match="torch is not here; to get it: python3 run test --export"):
        module("no_such_package")


def test_a_name_that_requires_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "promethius")
    with pytest.raises(pytest.UsageError, match="names 'promethius'; there is: chromium, crds, dask, envoy, models, openvino, perf_analyzer"):
        required()
