"""`batchyard top` on a real terminal, in a file, and as JSON, beside a yard that works."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard import Yard

TOP = [sys.executable, "-m", "batchyard.cli.main", "top"]
PATIENCE_S = 30.0
X = np.ones((3, 4), np.float32)


@pytest.fixture(scope="module")
def yard(neg_model: Path) -> Iterator[Yard]:
    with batchyard.serve(neg_model, threads=1) as yard:
        yield yard


@pytest.fixture
def load(yard: Yard) -> Iterator[None]:
    """A client that asks for something all the time."""
    is_over = threading.Event()

    def ask() -> None:
        with yard.client() as client:
            while not is_over.is_set():
                client.infer("neg", X, priority="high")
                time.sleep(0.002)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    is_over.set()
    thread.join()


class Terminal:
    """A terminal with `batchyard top` on it."""

    def __init__(self, *arguments: str, columns: int = 120, lines: int = 40) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(slave)
        environment = os.environ | {"TERM": "xterm-256color", "PYTHONUTF8": "1"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [*TOP, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that its Ctrl-C is a signal
        )
        self.slave = slave
        self.text = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def until(self, pattern: str) -> None:
        """Read until the pattern is shown; what comes later is looked for in what comes later."""
        give_up_s = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self.text, re.DOTALL)) is None:
            left_s = give_up_s - time.monotonic()
            assert left_s > 0, f"{pattern!r} is not in {self.text[-3000:]!r}"
            if select.select([self.master], [], [], left_s)[0]:
                self.text += os.read(self.master, 65536).decode(errors="replace")
        self.text = self.text[found.end() :]

    def ended(self) -> int:
        """Its exit status. The terminal is as it was before."""
        self.until("\x1b\\[\\?1049l")  # out of the alternate screen
        status = self.process.wait(PATIENCE_S)
        assert termios.tcgetattr(self.slave) == self.modes
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(yard: Yard, load: None) -> Iterator[Terminal]:
    found = Terminal("--url", yard.url, "--interval", "0.2")
    yield found
    found.close()


@pytest.mark.parametrize("key", [b"q", b"\x1b", b"\x03"], ids=["q", "Escape", "Ctrl-C"])
def test_a_key_ends_it_and_leaves_the_terminal_as_it_was(terminal: Terminal, key: bytes) -> None:
    terminal.until(r"\x1b\[\?1049h.*neg.*HIGH.*all ended well")
    terminal.press(b"\x1b[A")  # an arrow begins like Escape, and is none
    terminal.until("q ends it.*q ends it")
    terminal.press(key)
    assert terminal.ended() == 0


@pytest.mark.parametrize("shown", [r"\x1b\[\?1049h", "q ends it", "q ends it.*q ends it"])
def test_a_terminal_is_left_as_it_was_when_something_else_ends_it(terminal: Terminal, shown: str) -> None:
    """Also where the end meets the first frame."""
    terminal.until(shown)
    terminal.process.terminate()
    assert terminal.ended() == 143


def test_it_is_drawn_anew_in_another_size_and_survives_its_broker(
    terminal: Terminal, yard: Yard, tools: Any
) -> None:
    terminal.until("queue p99.*q ends it")
    terminal.resize(80, 24)
    terminal.until("rows waiting.*arenas [0-9]+, .*q ends it")  # the short form of a narrow terminal
    broker = yard.snapshot()["pid"]
    os.kill(broker, signal.SIGSTOP)
    terminal.until("waiting for the broker… [0-9]+ s")
    tools.kill(broker)
    terminal.until("all ended well.*q ends it")
    terminal.press(b"q")
    assert terminal.ended() == 0


def test_as_json_every_request_is_in_one_interval(yard: Yard, tools: Any) -> None:
    top = subprocess.Popen([*TOP, "--url", yard.url, "--json", "--interval", "0.2"], stdout=subprocess.PIPE)
    assert top.stdout is not None
    try:
        seen = [json.loads(top.stdout.readline())]
        with yard.client() as client:
            list(client.map("neg", [X] * 500, priority="urgent"))
            with pytest.raises(batchyard.UnknownModel):
                client.infer("nobody", X)
        while seen[-1]["requests_per_s"] or sum(map(_requests, seen)) < 400:
            seen.append(json.loads(top.stdout.readline()))
    finally:
        top.send_signal(signal.SIGINT)
        assert top.wait(PATIENCE_S) == 0
        top.stdout.close()

    assert sum(map(_requests, seen)) == pytest.approx(500)
    models = [model | {"interval_s": one["interval_s"]} for one in seen for model in one["models"]]
    assert sum(model["rows_per_s"] * model["interval_s"] for model in models) == pytest.approx(1_500)
    (busy, *_) = (model for model in models if model["requests_per_s"])
    (track,) = (track for track in busy["tracks"] if track["priority"] == "URGENT")
    assert 0 < track["latency"]["p50_ns"] <= track["latency"]["p99_ns"] < 30e9
    (worker,) = seen[-1]["workers"]
    assert worker["providers"] == ["cpu"]
    assert tools.alive(worker["pid"])


def _requests(interval: dict[str, Any]) -> float:
    return sum(model["requests_per_s"] for model in interval["models"]) * interval["interval_s"]


def test_in_a_file_it_prints_plain_blocks_and_leaves_a_picture(
    yard: Yard, load: None, tmp_path: Path
) -> None:
    picture = tmp_path / "top.svg"
    done = subprocess.run(
        [*TOP, "--url", yard.url, "--once", "--interval", "0.3", "--svg", str(picture)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.count("requests/s") == 1
    assert "HIGH" in done.stdout
    assert "HIGH" in picture.read_text(encoding="utf-8")


def test_without_a_broker_it_says_so_in_one_sentence_as_text_and_as_json(run_folder: Path) -> None:
    command = [*TOP, "--url", f"ipc://{run_folder}/nobody"]
    for started in [
        subprocess.Popen([*command, *how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for how in ([], ["--json"])
    ]:
        _, said = started.communicate(timeout=PATIENCE_S)
        assert started.returncode == 1
        assert re.fullmatch(r"batchyard: no broker answers at ipc://\S+ within 2 s.*\n", said)
