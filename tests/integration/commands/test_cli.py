"""The `batchyard` command against real yards: what it prints, its exit codes, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.cli.demo.programs import Scans
from batchyard.cli.demo.report import findings
from batchyard.cli.demo.tally import Tally
from batchyard.client import Client, Priority

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="ipc, and /proc to see what is left"),
]

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "examples" / "batchyard.toml"
SCANS = ROOT / "examples" / "digits_test.npz"
PATIENCE_S = 30.0
BATCHYARD = [sys.executable, "-m", "batchyard.cli.main"]


def eventually(is_so: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


def processes_of(url: str) -> dict[int, list[str]]:
    """Command lines, by pid, of the living processes whose arguments name the yard."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if url in arguments:
                found[int(folder.name)] = arguments
    return found


class Up:
    """`batchyard up` as a process, with what it has said so far."""

    def __init__(self, url: str, log: Path, *arguments: str) -> None:
        self.url = url
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*BATCHYARD, "up", "--url", url, "--config", str(CONFIG), *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_until_it_says(self, text: str) -> None:
        eventually(lambda: text in self.said or self.process.poll() is not None, f"{text!r} in {self.said}")
        assert text in self.said

    def pid_of(self, module: str) -> int:
        (pid,) = (pid for pid, arguments in processes_of(self.url).items() if module in arguments)
        return pid

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def url() -> Iterator[str]:
    """A place of its own, short enough for a socket's path."""
    folder = tempfile.mkdtemp(prefix="yt-", dir="/tmp")
    yield f"ipc://{folder}/y"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One running `batchyard up --workers 2` for the tests that only ask it something."""
    folder = tempfile.mkdtemp(prefix="yt-", dir="/tmp")
    up = Up(f"ipc://{folder}/y", tmp_path_factory.mktemp("up") / "log", "--workers", "2", "--threads", "1")
    try:
        up.wait_until_it_says("listening at")
        yield up
    finally:
        up.end()
        shutil.rmtree(folder, ignore_errors=True)


def batchyard(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BATCHYARD_URL"}
    return subprocess.run(
        [*BATCHYARD, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=60,
        check=False,
    )


def test_up_says_where_it_listens_and_which_models_are_ready(yard: Up) -> None:
    assert f"listening at {yard.url}; Ctrl-C ends it" in yard.said
    assert "digits: ready on 2 workers (cpu), up to 32 rows in a run" in yard.said


def test_models_shows_the_workers_in_text_and_in_json(yard: Up) -> None:
    done = batchyard("models", "--url", yard.url)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^digits +ready +1 +up to 32 rows +2$", done.stdout, re.MULTILINE)
    assert "image: float32[batch, 1, 8, 8]" in done.stdout
    (model,) = json.loads(batchyard("models", "--url", yard.url, "--json").stdout)
    assert (model["name"], model["state"], len(model["workers"])) == ("digits", "ready", 2)


def test_models_show_has_the_digest_of_the_file_that_is_served(yard: Up) -> None:
    done = batchyard("models", "show", "digits", "--url", yard.url)
    digest = hashlib.sha256((SCANS.parent / "digits.onnx").read_bytes()).hexdigest()
    assert f"sha256   {digest}" in done.stdout
    assert "it says nothing of where it comes from" in done.stdout
    found = json.loads(batchyard("models", "show", "digits", "--json", "--url", yard.url).stdout)
    assert found["origin"]["sha256"] == digest
    unknown = batchyard("models", "show", "cats", "--url", yard.url)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no model is called 'cats'; this yard has: digits" in unknown.stderr


def test_infer_answers_as_onnxruntime_does_and_writes_what_it_got(yard: Up, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    with np.load(SCANS, allow_pickle=False) as data:
        scans = data["images"][:40]  # more than one batch
    np.save(tmp_path / "scans.npy", scans)
    out = tmp_path / "logits.npy"
    done = batchyard(
        "infer", "digits", str(tmp_path / "scans.npy"), "--url", yard.url, "--output", str(out),
        "--priority", "high", "--deadline", "20", "--receipt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "logits  float32[40, 10]" in done.stdout
    assert re.search(r"receipt: queue .*, compute ", done.stdout)
    model = str(ROOT / "examples/digits.onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": scans})
    np.testing.assert_allclose(np.load(out, allow_pickle=False), expected, rtol=1e-5, atol=1e-5)
    assert " ".join(map(str, expected[:16].argmax(1))) in done.stdout


def test_infer_takes_inputs_by_name(yard: Up) -> None:
    done = batchyard("infer", "digits", "--input", f"image={SCANS}:images", "--url", yard.url)
    assert done.returncode == 0, done.stderr
    assert "logits  float32[450, 10]" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digit", f"{SCANS}:images"], "no model is called 'digit'; this yard has: digits"),
        (["digits", f"{SCANS}:labels"], "digits"),
        (
            ["digits", "--input", f"picture={SCANS}:images"],
            "has the input image; the request has the input picture",
        ),
        (["digits", "absent.npy"], "there is no file 'absent.npy'"),
        (["digits", f"{SCANS}:images", "--output", "absent/y.npy"], "absent/y.npy cannot be written"),
    ],
)
def test_infer_says_what_is_wrong_in_one_sentence(yard: Up, arguments: list[str], said: str) -> None:
    done = batchyard("infer", *arguments, "--url", yard.url)
    assert done.returncode == 1
    assert done.stderr.startswith("batchyard: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_finds_the_yard_and_its_models(yard: Up) -> None:
    done = batchyard("doctor", "--url", yard.url, "--config", str(CONFIG))
    broker = yard.pid_of("batchyard.broker")
    assert re.search(
        rf"^ok +yard +it runs \(process {broker}\): 2 workers, 1 model$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^ok +config +.*batchyard.toml: 1 model$", done.stdout, re.MULTILINE)
    assert (done.returncode == 0) is ("FAIL" not in done.stdout)


def test_a_second_up_on_one_url_names_the_process_that_is_there(yard: Up) -> None:
    done = batchyard("up", "--url", yard.url, "--config", str(CONFIG))
    assert done.returncode == 1
    assert f"(process {yard.pid_of('batchyard.broker')})" in done.stderr
    assert batchyard("models", "--url", yard.url).returncode == 0


def test_up_with_metrics_serves_them_and_starts_the_sidecar_again_when_it_dies(
    url: str, tmp_path: Path, tools: Any
) -> None:
    port = tools.free_port()
    up = Up(url, tmp_path / "log", "--metrics", str(port))
    address = f"http://127.0.0.1:{port}/metrics"

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(address, timeout=5) as page:
                return "batchyard_up 1.0" in page.read().decode()
        except OSError:
            return False

    try:
        up.wait_until_it_says(f"metrics for Prometheus at {address}")
        eventually(is_up, f"{address} answers: {up.said}")
        os.kill(up.pid_of("batchyard.sidecar"), signal.SIGKILL)
        up.wait_until_it_says("sidecar ended and was started again")
        eventually(is_up, f"{address} answers again: {up.said}")
        done = batchyard("up", "--url", f"{url}2", "--config", str(CONFIG), "--metrics", str(port))
        assert done.returncode == 1
        assert (
            f"cannot listen at port {port} (Address already in use): choose another --metrics" in done.stderr
        )
    finally:
        assert up.end() == 0


def test_doctor_calls_a_free_endpoint_free_and_a_silent_holder_by_its_pid(url: str) -> None:
    assert "none runs; the endpoint is free" in batchyard("doctor", "--url", url).stdout
    hold = (
        "import sys\nfrom batchyard.transport.endpoints import Endpoint, claim\n"
        "with claim(Endpoint.parse(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = batchyard("doctor", "--url", url)
        holder.communicate()
    assert done.returncode == 1
    assert f"process {holder.pid} holds the endpoint, and: no answer" in done.stdout


def test_doctor_fails_with_every_problem_of_a_configuration(url: str, tmp_path: Path) -> None:
    (tmp_path / "batchyard.toml").write_text('[models.a]\nfile = "absent.onnx"\nmax_batch = 0\n')
    done = batchyard("doctor", "--url", url, cwd=tmp_path)
    assert done.returncode == 1
    assert "models.a.file: expected a file" in done.stdout
    assert "models.a.max_batch: expected an integer" in done.stdout


def test_without_a_yard_a_client_verb_says_how_to_start_one(url: str) -> None:
    done = batchyard("models", "--url", url)
    assert done.returncode == 1
    assert "start one with `batchyard up`" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_up_with_status_0_and_leaves_no_process(
    url: str, tmp_path: Path, number: signal.Signals
) -> None:
    up = Up(url, tmp_path / "log")
    try:
        up.wait_until_it_says("listening at")
        assert len(processes_of(url)) == 4  # up, the broker, a worker and its session child
        assert up.end(number) == 0
    finally:
        up.process.kill()
        up.process.wait()
    eventually(lambda: not processes_of(url), f"gone: {processes_of(url)}")
    folder = Path(url.removeprefix("ipc://"))
    assert sorted(path.name for path in folder.iterdir()) == ["lock"]


def test_a_signal_during_the_start_ends_it_too(url: str, tmp_path: Path) -> None:
    up = Up(url, tmp_path / "log")
    up.wait_until_it_says("starting a yard")
    assert up.end() == 0
    eventually(lambda: not processes_of(url), f"gone: {processes_of(url)}")


def test_a_killed_up_leaves_no_process(url: str, tmp_path: Path) -> None:
    up = Up(url, tmp_path / "log")
    up.wait_until_it_says("listening at")
    up.end(signal.SIGKILL)
    eventually(lambda: not processes_of(url), f"gone: {processes_of(url)}")


def test_a_killed_broker_comes_back_with_its_models(url: str, tmp_path: Path) -> None:
    up = Up(url, tmp_path / "log")
    try:
        up.wait_until_it_says("listening at")
        os.kill(up.pid_of("batchyard.broker"), signal.SIGKILL)
        up.wait_until_it_says("broker ended and was started again")

        def ready_again() -> bool:
            done = batchyard("models", "--url", url)
            return re.search(r"^digits +ready ", done.stdout, re.MULTILINE) is not None

        eventually(ready_again, f"digits is ready again: {up.said}")
        done = batchyard("infer", "digits", f"{SCANS}:images", "--url", url)
        assert done.returncode == 0, done.stderr
        assert up.end() == 0
    finally:
        up.process.kill()
        up.process.wait()
    eventually(lambda: not processes_of(url), f"gone: {processes_of(url)}")


def test_up_with_only_a_broken_model_fails_with_its_reason(url: str, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    (tmp_path / "yard.toml").write_text('[models.bad]\nfile = "bad.onnx"\n')
    done = batchyard("up", "--url", url, "--config", str(tmp_path / "yard.toml"))
    assert done.returncode == 1
    assert "bad: FAILED: " in done.stdout
    assert "no model can be served" in done.stderr
    eventually(lambda: not processes_of(url), f"gone: {processes_of(url)}")


def test_a_client_of_the_demo_that_is_refused_asks_again(url: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "small.toml").write_text(
        f"models_root = {json.dumps(str(CONFIG.parent))}\n"
        '[models.digits]\nfile = "digits.onnx"\n'
        "[limits]\nclient_rows_max = 150\n"  # less than the 4 x 64 scans of LOW alone
    )
    with np.load(SCANS, allow_pickle=False) as scans:
        images, labels = scans["images"], scans["labels"]
    expected = Scans.answered(CONFIG.parent / "digits.onnx", images, labels).expected
    np.savez(tmp_path / "data.npz", images=images, expected=expected, labels=labels)
    up = Up(url, tmp_path / "log", "--config", str(tmp_path / "small.toml"))
    try:
        up.wait_until_it_says("listening at")
        client = [sys.executable, "-m", "batchyard.cli.demo.client", "--url", url, "--model", "digits"]
        client += ["--data", str(tmp_path / "data.npz"), "--tally", str(tmp_path / "tally.npz")]
        # stdin is its lifeline: it stays open until the client has ended.
        command = [*client, "--seconds", "1"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.wait(PATIENCE_S) == 0, process.stderr and process.stderr.read()
    finally:
        up.end()
    tally = Tally.load(tmp_path / "tally.npz", expected, labels)
    assert tally.refused[Priority.LOW] > 0
    assert tally.rows[Priority.LOW] > 0
    assert tally.seen.all()
    assert tally.unequal == 0
    assert "there was more to do than time" in "\n".join(findings(tally, 1.0))


def test_the_demo_passes_and_says_what_it_found() -> None:
    pytest.importorskip("onnxruntime")
    done = batchyard("demo", "--seconds", "3", "--clients", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    for priority in ("URGENT", "HIGH", "NORMAL", "LOW"):
        assert re.search(rf"^  {priority} +[\d,]+ +\d+ +[\d.]+ ms +[\d.]+ ms$", done.stdout, re.MULTILINE)
    assert re.search(r"accuracy +98\.\d% ", done.stdout)
    same = re.search(r"equality +([\d,]+) of ([\d,]+) answers equal the direct run", done.stdout)
    assert same is not None
    assert same[1] == same[2]
    assert "Passed: " in done.stdout
    assert done.stderr == ""


def test_files_beside_the_configuration_are_not_imported_in_the_place_of_pythons_own(
    url: str, tmp_path: Path
) -> None:
    for name in ("queue", "json", "types", "numpy", "batchyard"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py was run')\n")
    (tmp_path / "mine.py").write_text("def double(x):\n    return x * 2\n")
    (tmp_path / "batchyard.toml").write_text(
        "[models.double]\npython = 'mine:double'\ninputs = 'float32[n, 4]'\n"
    )
    with (tmp_path / "log").open("wb") as log:
        script = Path(sys.executable).with_name("batchyard")
        process = subprocess.Popen([script, "up", "--url", url], cwd=tmp_path, stdout=log, stderr=log)
    try:
        eventually(
            lambda: "listening at" in (tmp_path / "log").read_text() or process.poll() is not None, "it is up"
        )
        with Client(url) as client:
            assert np.array_equal(client.infer("double", np.ones((1, 4), np.float32)), np.full((1, 4), 2))
        for pid, arguments in processes_of(url).items():
            if "batchyard.gpuworker.child" in arguments:
                assert b"ORT_DISABLE_TELEMETRY=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert "was run" not in (tmp_path / "log").read_text()
