"""A detector for Frigate: what a frame of 307 kB costs beside the model's own run, and cameras side by side.

Ways, one frame after the other in turn: onnxruntime alone on float32 pixels that are there already; the same
frame sent to a REP that runs nothing; a detector written by hand (plain_detector.py); `batchyard frigate`. All
have one thread. Then 8 cameras of 10 frames a second ask `batchyard frigate`, which has every core. Every row is
compared with the plain run's.

The adapter's own cost is what it takes beyond the run and the bare way there and back, of the same frame.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from batchyard.adapters.frigate.detections import yolo

from ...camera import SIDE, Camera, frames
from ...plain import Plain

CAMERAS, PER_S = 8, 10.0
FRAMES = 8  # different ones of a camera
WARM_UP = 20  # frames that do not count
PATIENCE_MS = 10_000  # where time-outs are not the question
START_S = 60.0
ROUNDING = 1e-4
ALONE, BARE, BY_HAND, ADAPTER = "onnxruntime alone", "REQ/REP alone", "by hand", "batchyard frigate"
CHAIN = "three processes"
WANTED_MS = 0.5

Array = np.ndarray[Any, Any]


@contextmanager
def detector(folder: Path, name: str, *command: str) -> Iterator[str]:
    """The endpoint of a detector's process, once it listens."""
    path = folder / name
    process = subprocess.Popen([sys.executable, "-m", *(word.format(f"ipc://{path}") for word in command)])
    try:
        give_up_s = time.monotonic() + START_S
        while not path.exists():
            if process.poll() is not None or time.monotonic() > give_up_s:
                raise RuntimeError(f"no detector: {' '.join(command)}")
            time.sleep(0.02)
        yield f"ipc://{path}"
    finally:
        process.terminate()
        process.wait()


def measure(file: Path, seconds: float) -> dict[str, Any]:
    """Times of a frame by way, in ms, and what 8 cameras met. `seconds`: of each of the two."""
    plain = Plain(str(file))
    adapter = ["batchyard.cli.main", "frigate", "--quiet", "--model", str(file)]
    adapter += ["--model-type", "yolo-generic", "--endpoint", "{}"]
    by_hand = ["batchyard.tests.campaigns.pace.plain_detector", str(file), "{}"]
    bare = [by_hand[0], "", "{}"]
    chain = ["batchyard.tests.campaigns.pace.bare_chain", str(file), "{}"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context: zmq.Context[Any] = stack.enter_context(zmq.Context())
        with (
            detector(folder, "one", *adapter, "--threads", "1", "--timeout-ms", str(PATIENCE_MS)) as ours,
            detector(folder, "hand", *by_hand) as theirs,
            detector(folder, "chain", *chain) as floor,
            detector(folder, "bare", *bare) as nobody,
        ):
            ways = {
                BARE: Camera(context, nobody, PATIENCE_MS),
                BY_HAND: Camera(context, theirs, PATIENCE_MS),
                CHAIN: Camera(context, floor, PATIENCE_MS),
                ADAPTER: Camera(context, ours, PATIENCE_MS),
            }
            found: dict[str, Any] = one_by_one(plain, ways, seconds)
            for camera in ways.values():
                camera.socket.close()
        with detector(folder, "crowd", *adapter) as ours:
            found["cameras"] = crowd(plain, context, ours, seconds)
    return found


def one_by_one(plain: Plain, ways: dict[str, Camera], seconds: float) -> dict[str, list[float]]:
    """ms of every frame: of the model's run, and of a camera's wait."""
    (name,) = plain.inputs
    shown = frames(0, FRAMES)
    floats = [pixels.astype(np.float32) for pixels in shown]
    times: dict[str, list[float]] = {way: [] for way in (ALONE, *ways)}
    give_up_s = time.perf_counter() + seconds
    number = 0
    while number < 2 * WARM_UP or time.perf_counter() < give_up_s:
        pixels = shown[number % FRAMES]
        started_s = time.perf_counter()
        outputs = plain.session.run(None, {name: floats[number % FRAMES]})
        times[ALONE].append((time.perf_counter() - started_s) * 1e3)
        expected = yolo(outputs, SIDE, SIDE)
        for way, camera in ways.items():
            started_s = time.perf_counter()
            rows = camera.detect(pixels)
            times[way].append((time.perf_counter() - started_s) * 1e3)
            if way != BARE:
                _compare(rows, expected, f"{way}: frame {number}{camera.error and ': ' + camera.error}")
            plain.session.run(None, {name: floats[number % FRAMES]})  # no way finds the last one's code in a cache
        number += 1
    return {way: each[WARM_UP:] for way, each in times.items()}


def crowd(plain: Plain, context: Any, endpoint: str, seconds: float) -> dict[str, float]:
    """What 8 cameras of 10 frames a second meet, with the plugin's patience of 200 ms."""
    times: list[float] = []
    answers: list[tuple[Array, Array]] = []
    late: list[int] = []

    def film(number: int) -> None:
        camera = Camera(context, endpoint)
        shown = frames(number, FRAMES)
        due_s = time.perf_counter() + number / CAMERAS / PER_S
        end_s = due_s + seconds
        while due_s < end_s:
            time.sleep(max(0.0, due_s - time.perf_counter()))
            pixels = shown[len(times) % FRAMES]
            before, started_s = camera.late, time.perf_counter()
            rows = camera.detect(pixels)
            times.append((time.perf_counter() - started_s) * 1e3)
            if camera.late == before:
                answers.append((pixels, rows))
            due_s += 1 / PER_S
        late.append(camera.late)
        camera.socket.close()

    warm = Camera(context, endpoint, PATIENCE_MS)
    for pixels in frames(0, WARM_UP):
        warm.detect(pixels)
    warm.socket.close()
    cameras = [threading.Thread(target=film, args=(number,)) for number in range(CAMERAS)]
    for each in cameras:
        each.start()
    for each in cameras:
        each.join()
    (name,) = plain.inputs
    for number, (pixels, rows) in enumerate(answers):
        outputs = plain.session.run(None, {name: pixels.astype(np.float32)})
        _compare(rows, yolo(outputs, SIDE, SIDE), f"answer {number}")
    p50, p99 = np.percentile(times, [50, 99])
    return {"frames": len(times), "late": sum(late), "p50_ms": float(p50), "p99_ms": float(p99)}


def _compare(rows: Array, expected: Array, what: str) -> None:
    """A time of a wrong answer is none."""
    if np.abs(rows - expected).max() > ROUNDING:
        raise AssertionError(f"{what}: not the rows of the plain run")


def report(measured: dict[str, Any]) -> dict[str, float]:
    """Prints times and what a detector adds to the run; returns the latter, in ms."""
    alone = np.array(measured[ALONE])
    added = {}
    print(f"frames of {frames(0, 1)[0].nbytes:,} bytes, in turn: {len(alone)} of each")
    bare = np.array(measured[BARE])
    for way in (ALONE, BARE, BY_HAND, CHAIN, ADAPTER):
        p10, p50, p90 = np.percentile(measured[way], [10, 50, 90])
        text = f"  {way:18} {p50:6.2f} ms (p10 {p10:.2f}, p90 {p90:.2f})"
        if way in (BY_HAND, CHAIN, ADAPTER):
            added[way] = float(np.median(np.array(measured[way]) - alone))
            own = float(np.median(np.array(measured[way]) - alone - bare))
            text += f"; by the frame, beyond the run {added[way]:.2f} ms, and beyond the bare way too {own:.2f} ms"
        print(text)
    own = float(np.median(np.array(measured[ADAPTER]) - alone - bare))
    print(f"  own cost of batchyard frigate: {own:.2f} ms (wanted: {WANTED_MS:g})")
    met = measured["cameras"]
    print(f"{CAMERAS} cameras of {PER_S:g} frames/s: {met['frames']} frames, {met['late']} without an answer in 200 ms;")
    print(f"  p50 {met['p50_ms']:.1f} ms, p99 {met['p99_ms']:.1f} ms; every row is the plain run's")
    return added
