"""`python3 run peers`: a yard beside other servers, with the same models, loads and rates, in turns.

Peers: a script of pyzmq and pickle (naive), Mosec, LitServe, and Triton (nvidia-pytriton). Each has an environment
of its own in .peers/ of this folder, made when it is wanted; one that can't be installed or does not start says
so, and the others go on. Every round starts every server afresh, in an order that turns, and one client process
sends: closed loops, then Poisson arrivals at the same rates for all, with latency from the intended send time.
Before it is timed, every server's answer is compared with onnxruntime's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from batchyard.bench import models
from batchyard.bench.bare import Bare
from batchyard.bench.loops import closed_loop, mapped_loop, open_loop
from batchyard.bench.report import machine, machine_line
from batchyard.bench.statistics import Measured, summary_of
from batchyard.client import serve

from .clients import Http, Naive

ROOT = Path(__file__).resolve().parents[3]
SERVERS = Path(__file__).resolve().parent / "servers"
PACKAGES = {"naive": ["pyzmq"], "mosec": ["mosec"], "litserve": ["litserve"], "triton": ["nvidia-pytriton"]}
OURS = "batchyard"
SYSTEM_PYTHON = "/usr/bin/python3"
IN_FLIGHT = (1, 16, 64)
PORT = 18_300
SHARED_MEMORY = Path("/dev/shm")
START_S = 60.0
MAX_BATCH = 8
TOLERANCE = 1e-4
LATE_SHARE_MAX = 0.01  # of the sends; beyond, the rate was not the one that is named
EPILOG = """\
examples:
  python3 run peers
  python3 run peers --peers naive,mosec --models tiny --rounds 3
  python3 run peers --rates 1000,2000,4000 --plot peers.svg
"""


class Absent(Exception):
    """A peer that is not to be had here."""


def environment(name: str, folder: Path) -> Path:
    """The Python of a peer's environment. Raises Absent, with the end of what pip said."""
    python = folder / name / "bin" / "python"
    stamp = folder / name / "installed"
    if stamp.exists():
        return python
    # Triton's Python stub links the system's libpython, which must be of the environment's very release.
    base = SYSTEM_PYTHON if name == "triton" and Path(SYSTEM_PYTHON).exists() else sys.executable
    made = [base, "-m", "venv", "--clear", str(folder / name)]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        raise Absent(f"{base} can't make an environment (Debian: python3-venv)")
    command = [str(python), "-m", "pip", "install", "-q", *PACKAGES[name], "numpy", "onnxruntime"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Absent(f"it can't be installed: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    stamp.touch()
    return python


@contextmanager
def started(name: str, python: Path, model: Path, port: int, log: Path) -> Iterator[Any]:
    """A client of a server that has just been started. Raises Absent when it does not start."""
    address = f"ipc://{log.parent}/naive-{port}"
    own: dict[str, list[str]] = {
        "naive": [str(model), address],
        "mosec": ["--address", "127.0.0.1", "--port", str(port), "--log-level", "warning"],
    }
    script = SERVERS / ("naive.py" if name == "naive" else f"{name}_server.py")
    variables = os.environ | {"MODEL": str(model), "PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    before = set(SHARED_MEMORY.glob("psm_*"))
    with log.open("w") as output:
        command = [str(python), str(script), *own.get(name, [])]
        server = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
    try:
        client = connected(name, server, address, port, log)
        try:
            yield client
        finally:
            client.close()
    finally:
        with suppress(ProcessLookupError):  # a session of its own: what it started ends, too
            os.killpg(server.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.wait(10)
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        for left in set(SHARED_MEMORY.glob("psm_*")) - before:  # pytriton leaves what its processes shared
            left.unlink(missing_ok=True)


def connected(name: str, server: subprocess.Popen[bytes], address: str, port: int, log: Path) -> Any:
    triton = b'{"inputs":[{"name":"image","shape":[1,3,32,32],"datatype":"FP32","parameters":{"binary_data_size":12288}}],"outputs":[{"name":"output","parameters":{"binary_data":true}}]}'
    ways: dict[str, Callable[[], Any]] = {
        "naive": lambda: Naive(address),
        "mosec": lambda: Http(port, "/inference"),
        "litserve": lambda: Http(port, "/predict"),
        "triton": lambda: Http(
            port, "/v2/models/model/infer", f"Inference-Header-Content-Length: {len(triton)}\r\n", triton, True
        ),
    }
    give_up_s = time.monotonic() + START_S
    while time.monotonic() < give_up_s:
        if server.poll() is not None:
            break
        if name == "naive" and not Path(address.removeprefix("ipc://")).exists():
            time.sleep(0.1)
            continue
        try:
            client = ways[name]()
        except OSError:
            time.sleep(0.2)
            continue
        try:
            client.infer("model", models.sample("tiny"))
            return client
        except Exception:  # it listens before it serves
            client.close()
            time.sleep(0.5)
    lines = [line for line in log.read_text(errors="replace").splitlines() if any(map(str.isalpha, line))]
    raise Absent(f"it does not start: {lines[-1] if lines else 'and says nothing'}")


def measured(client: Any, name: str, model: str, seconds: float, rates: list[float], seed: int, is_ours: bool) -> dict[str, Any]:
    """One round of one server: a figure for every load."""
    x = models.sample(model)
    found: dict[str, Any] = {}
    for in_flight in IN_FLIGHT:
        found[f"closed {in_flight}"] = figures(closed_loop(client, name, [x], in_flight, seconds))
    if is_ours:
        found[f"map {IN_FLIGHT[-1]}"] = figures(mapped_loop(client, name, [x], IN_FLIGHT[-1], seconds))
    for rate in rates:
        loop = open_loop(client, name, [x], rate, seconds, seed)
        late = loop.late_sends > LATE_SHARE_MAX * max(1, len(loop.latencies_ns))
        found[f"open {rate:g}"] = figures(loop) | {"late": late}
    return found


def figures(loop: Measured) -> dict[str, Any]:
    summary = summary_of(loop)
    errors = {kind: [times, loop.error_texts.get(kind, "")] for kind, times in loop.errors.items()}
    return {"p50": summary.p50_ns / 1e3, "p99": summary.p99_ns / 1e3, "rate": summary.rate_per_s, "errors": errors}


def checked(client: Any, name: str, path: Path, model: str) -> None:
    x = models.sample(model, seed=7)
    expected = Bare(path, x).run().ravel()
    answer = np.asarray(client.infer(name, x)).ravel()
    if not np.allclose(answer, expected, TOLERANCE, TOLERANCE):
        raise Absent("its answer is wrong")


def play(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(every round's figures, the peers that are not to be had and why)."""
    rounds: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    pythons: dict[str, Path] = {}
    for name in options.peers:
        try:
            pythons[name] = environment(name, options.folder)
        except Absent as why:
            absent[name] = str(why)
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        port = PORT
        for number in range(options.rounds):
            for model in options.models:
                path = models.write(model, Path(scratch))
                order = [OURS, *pythons]
                turn = number % len(order)
                for name in [*order[turn:], *order[:turn]]:
                    if name in absent:
                        continue
                    port += 2
                    how = (model, options.seconds, options.rates, number)
                    try:
                        if name == OURS:
                            with serve({model: path}, workers=1, max_batch=MAX_BATCH, threads=1) as yard, yard.client() as client:
                                checked(client, model, path, model)
                                found = measured(client, model, *how, True)
                        else:
                            with started(name, pythons[name], path, port, Path(scratch) / f"{name}.log") as client:
                                checked(client, model, path, model)
                                found = measured(client, model, *how, False)
                    except Absent as why:
                        absent[name] = str(why)
                        continue
                    rounds.append({"round": number, "model": model, "server": name, "loads": found})
                    print(f"round {number + 1}, {model}, {name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return rounds, absent


def spread(rounds: list[dict[str, Any]], model: str, server: str, load: str, figure: str) -> list[float]:
    return sorted(
        one["loads"][load][figure]
        for one in rounds
        if one["model"] == model and one["server"] == server and load in one["loads"]
    )


def table(rounds: list[dict[str, Any]], absent: dict[str, str]) -> str:
    """Medians of the rounds, with the lowest and the highest."""
    lines = []
    for model in dict.fromkeys(one["model"] for one in rounds):
        loads = [load for one in rounds if one["model"] == model for load in one["loads"]]
        loads = list(dict.fromkeys(loads))
        lines += [f"| {model} | " + " | ".join(loads) + " |", "|---" * (len(loads) + 1) + "|"]
        for server in dict.fromkeys(one["server"] for one in rounds):
            cells = [cell(rounds, model, server, load) for load in loads]
            lines.append(f"| {server} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"{name} is not in it: {why}" for name, why in absent.items()]
    return "\n".join(lines)


def cell(rounds: list[dict[str, Any]], model: str, server: str, load: str) -> str:
    p50, p99, rate = (spread(rounds, model, server, load, figure) for figure in ("p50", "p99", "rate"))
    if not rate:
        return ""
    late = spread(rounds, model, server, load, "late") if load.startswith("open") else []
    mark = "*" if any(late) else ""
    if load.startswith("open"):
        return f"{median(p50) / 1e3:.2f} / {median(p99) / 1e3:.1f} ms{mark}"
    if load == "closed 1":
        return f"{median(p50):.0f} us ({p50[0]:.0f}-{p50[-1]:.0f})"
    return f"{median(rate):,.0f}/s ({rate[0]:,.0f}-{rate[-1]:,.0f})"


def plot(rounds: list[dict[str, Any]], rates: list[float], path: Path) -> None:
    """Latency over offered load."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(one["model"] for one in rounds))
    figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    for place, model in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), place)
        for number, server in enumerate(dict.fromkeys(one["server"] for one in rounds)):
            for quantile, style in (("p50", "-"), ("p99", ":")):
                values = [spread(rounds, model, server, f"open {rate:g}", quantile) for rate in rates]
                points = [(rate, median(found) / 1e3) for rate, found in zip(rates, values, strict=True) if found]
                label = server if quantile == "p50" else None
                axes.plot(*zip(*points, strict=True), style, marker="o", color=f"C{number}", label=label)
        axes.set_yscale("log")
        axes.set_title(f"{model}: p50 (line), p99 (dots)")
        axes.set_xlabel("requests a second")
        axes.set_ylabel("ms")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> int:
    parser = argparse.ArgumentParser("run peers", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PACKAGES), help="(all)")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["tiny", "cnn"], help="(tiny,cnn)")
    parser.add_argument("--rates", type=lambda text: [float(part) for part in text.split(",")], default=[500.0, 1000.0, 2000.0, 4000.0])
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load (%(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".peers", help="of the environments (.peers)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="latency over offered load: PNG or SVG")
    options = parser.parse_args()
    unknown = [name for name in options.peers if name not in PACKAGES]
    if unknown:
        parser.error(f"there is no peer {unknown[0]!r}: {', '.join(PACKAGES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no server outlives it
    rounds, absent = play(options)
    print(f"{machine_line(machine())}\n\n{table(rounds, absent)}")
    print("\nclosed 1: p50; closed and map: requests/s, medians (lowest-highest); open: p50 / p99 at that rate")
    print(f"*: more than {LATE_SHARE_MAX:.0%} of the sends of a round were over 1 ms late")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rounds": rounds, "absent": absent}, indent=1))
    if options.plot:
        plot(rounds, options.rates, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
