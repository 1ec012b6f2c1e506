"""The doctor's judgements, from facts that no machine here has."""

from __future__ import annotations

import pytest
from batchyard.cli.doctor import checks
from batchyard.cli.doctor.checks import Finding, Level, YardFacts
from batchyard.cli.doctor.main import report
from batchyard.transport.messages import ModelInfo, ModelState

MB = 1 << 20


def model(state: ModelState, reason: str = "", batchable: bool = True) -> ModelInfo:
    return ModelInfo(
        "m", state, reason, 1, [], [], batchable, "" if batchable else "axis 0 of x is fixed", 8, []
    )


@pytest.mark.parametrize(
    ("version", "implementation", "level"),
    [
        ((3, 11, 0), "CPython", Level.OK),
        ((3, 13, 9), "CPython", Level.OK),
        ((3, 10, 14), "CPython", Level.FAIL),
        ((3, 14, 0), "CPython", Level.WARN),
        ((4, 0, 0), "CPython", Level.WARN),
        ((3, 11, 0), "PyPy", Level.WARN),
    ],
)
def test_python_must_be_a_supported_one(
    version: tuple[int, int, int], implementation: str, level: Level
) -> None:
    assert checks.python(version, implementation).level is level


def test_no_runtime_fails_with_the_command_that_installs_one() -> None:
    finding = checks.wheels({})
    assert finding.level is Level.FAIL
    assert "pip install onnxruntime" in finding.remedy


def test_two_runtimes_fail_and_the_accelerated_one_is_kept() -> None:
    finding = checks.wheels({"onnxruntime": "1.20", "onnxruntime-directml": "1.24"})
    assert finding.level is Level.FAIL
    assert finding.remedy == (
        "pip uninstall -y onnxruntime onnxruntime-directml && pip install onnxruntime-directml"
    )
    assert checks.wheels({"onnxruntime": "1.20"}).level is Level.OK


def test_a_runtime_that_cannot_be_imported_or_used_fails() -> None:
    assert checks.providers([], [], "ImportError: no such symbol").level is Level.FAIL
    assert checks.providers(["TensorrtExecutionProvider"], []).level is Level.FAIL
    found = checks.providers(["CPUExecutionProvider"], ["cpu"])
    assert (found.level, found.found) == (Level.OK, "CPUExecutionProvider; batchyard uses cpu")


def test_missing_ipc_is_a_warning_except_on_windows() -> None:
    assert checks.messaging("26", "4.3.5", False, True, on_windows=False).level is Level.WARN
    assert checks.messaging("26", "4.3.5", False, True, on_windows=True).level is Level.OK
    assert checks.messaging("26", "4.3.5", True, False, on_windows=False).level is Level.WARN
    assert checks.messaging("26", "4.3.5", True, True, on_windows=False).level is Level.OK


def test_dockers_shared_memory_is_named_with_its_option() -> None:
    finding = checks.shm(64 * MB, 64 * MB, "named")
    assert finding.level is Level.WARN
    assert "Docker's default" in finding.found
    assert "--shm-size" in finding.remedy
    assert checks.shm(256 * MB, 0, "named").level is Level.OK
    assert checks.shm(None, 0, "memfd").level is Level.OK


def test_little_memory_and_a_tight_container_are_warnings() -> None:
    assert checks.memory(4096 * MB, None).level is Level.OK
    assert checks.memory(100 * MB, None).level is Level.WARN
    assert checks.memory(4096 * MB, 100 * MB).level is Level.WARN
    assert checks.memory(None, None).level is Level.OK


def test_fewer_cores_than_the_machine_has_say_how_many_threads_to_use() -> None:
    assert checks.cores(8, 8.0, 2).found == "8 cores: 2 workers with 4 threads each"
    finding = checks.cores(64, 2.0, 1)
    assert finding.level is Level.WARN
    assert "--threads 2" in finding.remedy


def test_a_url_that_is_none_fails_with_its_reason() -> None:
    assert checks.address("x", None, 107, "'x' has no scheme").level is Level.FAIL
    assert "24 of 107" in checks.address("ipc:///tmp/yard", 24, 107).found


@pytest.mark.parametrize(
    ("facts", "levels", "said"),
    [
        (YardFacts(), [Level.OK], "the endpoint is free"),
        (YardFacts(error="/x is open to other users"), [Level.FAIL], "open to other users"),
        (YardFacts(holder=12), [Level.FAIL], "process 12 holds the endpoint, and: no answer"),
        (YardFacts(holder=0, silence="not admitted"), [Level.FAIL], "a process holds the endpoint"),
        (YardFacts(12, answers=True, workers=0), [Level.OK, Level.FAIL], "no worker is there"),
        (
            YardFacts(12, answers=True, models=(model(ModelState.READY),), workers=2),
            [Level.OK],
            "it runs (process 12): 2 workers, 1 model",
        ),
        (
            YardFacts(12, answers=True, models=(model(ModelState.FAILED, "bad file"),), workers=1),
            [Level.OK, Level.FAIL],
            "bad file",
        ),
        (
            YardFacts(0, answers=True, models=(model(ModelState.LOADING),), workers=1),
            [Level.OK, Level.WARN],
            "still loading",
        ),
        (
            YardFacts(12, answers=True, models=(model(ModelState.READY, batchable=False),), workers=1),
            [Level.OK, Level.WARN],
            "requests run alone: axis 0 of x is fixed",
        ),
    ],
)
def test_a_yard_is_judged_by_what_it_answers(facts: YardFacts, levels: list[Level], said: str) -> None:
    findings = checks.yard(facts)
    assert [finding.level for finding in findings] == levels
    assert any(said in finding.found for finding in findings)


def test_orphans_are_a_warning_until_they_are_removed() -> None:
    assert checks.orphans([], False).level is Level.OK
    assert checks.orphans(["a"], False).level is Level.WARN
    assert checks.orphans(["a"], True).level is Level.OK


def test_every_problem_of_a_configuration_is_a_line() -> None:
    findings = checks.config("yard.toml", 0, ("models: none", "limits.x: unknown key"))
    assert [finding.level for finding in findings] == [Level.FAIL, Level.FAIL]
    assert checks.config("yard.toml", 2, ())[0].found == "yard.toml: 2 models"


def test_the_report_shows_every_remedy_and_counts_what_failed() -> None:
    findings = [Finding(Level.OK, "a", "fine"), Finding(Level.FAIL, "long", "broken", "mend it")]
    assert report(findings) == [
        "ok    a     fine",
        "FAIL  long  broken",
        "            -> mend it",
        "\n1 check failed",
    ]
    assert report(findings[:1])[-1] == "\nfit for a yard"
    assert report([Finding(Level.WARN, "a", "odd", "look")])[-1] == "\nfit for a yard, with 1 warning"
