"""The judgement of `batchyard doctor`: facts in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ...transport.messages import ModelInfo, ModelState
from ..text import plural, size

PYTHONS = ((3, 11), (3, 13))  # first and last that are tested; later ones are expected to work
WHEELS = ("onnxruntime", "onnxruntime-directml", "onnxruntime-webgpu", "onnxruntime-gpu")
SHM_BYTES_MIN = 256 << 20
DOCKER_SHM_BYTES = 64 << 20
MEMORY_BYTES_MIN = 512 << 20


class Level(IntEnum):
    OK = 0
    WARN = 1
    FAIL = 2


@dataclass(frozen=True)
class Finding:
    """One line of the report: the subject, the finding, and the remedy."""

    level: Level
    subject: str
    found: str
    remedy: str = ""


def _ok(subject: str, found: str) -> Finding:
    return Finding(Level.OK, subject, found)


def warn(subject: str, found: str, remedy: str) -> Finding:
    return Finding(Level.WARN, subject, found, remedy)


def _fail(subject: str, found: str, remedy: str) -> Finding:
    return Finding(Level.FAIL, subject, found, remedy)


def python(version: tuple[int, int, int], implementation: str) -> Finding:
    found = f"{implementation} {'.'.join(map(str, version))}"
    first, last = PYTHONS
    tested = f"CPython {first[0]}.{first[1]} to {last[0]}.{last[1]}"
    if version[:2] < first:
        return _fail("python", found, f"make the environment with {tested}, or later")
    if version[:2] > last or implementation != "CPython":
        return warn("python", found, f"only {tested} is tested; if something fails, try one of these")
    return _ok("python", found)


def code(found: str) -> Finding:
    """`found`: "compiled" or "pure Python", of batchyard's own."""
    return _ok("batchyard", found)


def wheels(installed: Mapping[str, str]) -> Finding:
    """`installed`: versions by name, of everything that owns the name onnxruntime."""
    named = ", ".join(f"{name} {version}" for name, version in installed.items())
    if not installed:
        return _fail(
            "runtime", "no onnxruntime is installed", "pip install onnxruntime (a client needs none)"
        )
    if len(installed) > 1:
        keep = next(name for name in (*WHEELS[1:], WHEELS[0], *installed) if name in installed)
        return _fail(
            "runtime",
            f"{named}: they overwrite each other's files",
            f"pip uninstall -y {' '.join(installed)} && pip install {keep}",
        )
    return _ok("runtime", named)


def providers(available: Sequence[str], usable: Sequence[str], error: str = "") -> Finding:
    """`available`: onnxruntime's names; `usable`: ours, best first; `error`: why it can't be imported."""
    if error:
        return _fail("providers", f"onnxruntime cannot be imported: {error}", "install it again")
    listed = ", ".join(available) or "none"
    if not usable:
        return _fail("providers", f"batchyard can use none of: {listed}", "pip install onnxruntime")
    return _ok("providers", f"{listed}; batchyard uses {', '.join(usable)}")


def messaging(pyzmq: str, libzmq: str, has_ipc: bool, has_curve: bool, on_windows: bool) -> Finding:
    able = ", ".join(name if has else f"no {name}" for name, has in (("ipc", has_ipc), ("CURVE", has_curve)))
    found = f"pyzmq {pyzmq}, libzmq {libzmq}, {able}"
    if not has_ipc and not on_windows:
        return warn(
            "zeromq", found, "pip install pyzmq again from a wheel: yards are on loopback tcp without ipc"
        )
    if not has_curve:
        return warn(
            "zeromq", found, "no yard can be reached from other machines; pyzmq's own wheels have CURVE"
        )
    return _ok("zeromq", found)


def segments(backend: str, error: str = "") -> Finding:
    """`error`: why a small segment could not be made, filled, and attached."""
    if error:
        return _fail(
            "segments",
            f"{backend}: {error}",
            "shared memory is refused here; a client with tcp:// needs none",
        )
    return _ok("segments", f"{backend} works")


def shm(total_bytes: int | None, free_bytes: int, backend: str) -> Finding:
    """Of /dev/shm; None where there is none."""
    if total_bytes is None:
        if backend == "named":
            return _ok("/dev/shm", "not on this system")
        return _ok("/dev/shm", "not here; memfd needs none")
    found = f"{size(total_bytes)}, {size(free_bytes)} free"
    whose = "" if backend == "named" else "; only the named backend uses it, and here memfd does the work"
    if total_bytes < SHM_BYTES_MIN:
        docker = " (Docker's default)" if total_bytes == DOCKER_SHM_BYTES else ""
        return warn(
            "/dev/shm",
            f"{found}{docker}{whose}",
            "for the named backend: docker run --shm-size=1g, or remount it larger",
        )
    return _ok("/dev/shm", found)


def memory(available_bytes: int | None, limit_bytes: int | None) -> Finding:
    """`limit_bytes`: the container's, None without one; `available_bytes` None where nothing tells."""
    if available_bytes is None:
        return _ok("memory", "this system doesn't say how much is free")
    usable = available_bytes if limit_bytes is None else min(available_bytes, limit_bytes)
    found = f"{size(usable)} available" + (f", limit {size(limit_bytes)}" if limit_bytes is not None else "")
    if usable < MEMORY_BYTES_MIN:
        return warn(
            "memory", found, "a worker and a client take 100 MB and more; end other programs, or add memory"
        )
    return _ok("memory", found)


def cores(machine: int, allowed: float, workers: int) -> Finding:
    """`machine`: what a worker divides by; `allowed`: what this process may use; `workers`: planned."""
    each = max(1, machine // workers)
    found = f"{plural(machine, 'core')}: {plural(workers, 'worker')} with {plural(each, 'thread')} each"
    if allowed < machine:
        return warn(
            "cores",
            f"{found}, and this process may use {allowed:g}",
            f"batchyard up --threads {max(1, int(allowed // workers))}: more would be in each other's way",
        )
    return _ok("cores", found)


def address(url: str, path_bytes: int | None, path_bytes_max: int, error: str = "") -> Finding:
    """`error`: why the url is none; `path_bytes`: of the longest socket path, None for tcp."""
    if error:
        return _fail("address", error, "set BATCHYARD_URL, or pass --url")
    length = "" if path_bytes is None else f" (socket path {path_bytes} of {path_bytes_max} bytes)"
    return _ok("address", f"{url}{length}")


@dataclass(frozen=True)
class YardFacts:
    """What was found at an endpoint. `holder`: the pid that claims it (0: unknown, None: nobody)."""

    holder: int | None = None
    error: str = ""  # nobody may listen there
    answers: bool = False
    silence: str = ""  # why nothing more is known of a yard that is there
    models: tuple[ModelInfo, ...] = ()
    workers: int = 0


def yard(facts: YardFacts) -> list[Finding]:
    if facts.error:
        return [_fail("yard", facts.error, "allow it, or choose another --url")]
    whom = f"process {facts.holder}" if facts.holder else "a process"
    if not facts.answers and facts.holder is None:
        return [_ok("yard", "none runs; the endpoint is free (`batchyard up` starts one)")]
    if not facts.answers or facts.silence:
        why = facts.silence or "no answer"
        remedy = "pass --keys if it has keys; else look at its output, or stop it"
        return [_fail("yard", f"{whom} holds the endpoint, and: {why}", remedy)]
    served = f"{plural(facts.workers, 'worker')}, {plural(len(facts.models), 'model')}"
    findings = [_ok("yard", f"it runs ({whom}): {served}" if facts.holder else f"it runs: {served}")]
    if facts.workers == 0:
        findings.append(
            _fail("workers", "no worker is there", "see why they end: python -m batchyard.gpuworker")
        )
    for model in facts.models:
        if model.state == ModelState.FAILED:
            findings.append(
                _fail(f"model {model.name}", model.reason, "put another file there, and start the yard again")
            )
        elif model.state == ModelState.LOADING and facts.workers:
            findings.append(
                warn(f"model {model.name}", "still loading", "wait, then look at `batchyard models`")
            )
        elif model.state == ModelState.READY and not model.batchable:
            remedy = "leave it so, or say batch_axis in batchyard.toml if its rows are on another axis"
            findings.append(warn(f"model {model.name}", f"requests run alone: {model.alone_reason}", remedy))
        elif model.state == ModelState.READY and model.evidence:
            findings.append(_ok(f"model {model.name}", f"rows share a run: {model.evidence}"))
    return findings


def orphans(names: Sequence[str], removed: bool) -> Finding:
    """Segments in /dev/shm whose creators are dead."""
    if not names:
        return _ok("orphans", "no shared memory is left over")
    found = f"{plural(len(names), 'segment')} of dead processes in /dev/shm"
    if removed:
        return _ok("orphans", f"{found}: removed")
    return warn("orphans", found, "batchyard doctor --fix removes them")


def config(path: str, models: int, problems: Sequence[str]) -> list[Finding]:
    """`problems`: lines of the configuration's error, empty when it can be used."""
    if not problems:
        return [_ok("config", f"{path}: {plural(models, 'model')}")]
    return [
        _fail("config", f"{path}: {problem}", "examples/batchyard.toml shows every key")
        for problem in problems
    ]
