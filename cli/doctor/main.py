"""`batchyard doctor`: is this machine fit for a yard? One line for each check, and what to do.

Owns the order of the checks and their printing; `probes` reads the machine, `checks` judges.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import zmq

from ...broker import config as configuration
from ...transport import endpoints, extras, segments
from ...transport.arguments import add_yard
from ...transport.endpoints import Endpoint
from ...transport.errors import InvalidRequest
from ..arguments import parser
from ..text import plural
from ..up import CONFIG_DEFAULT
from . import checks, gpu_checks, gpu_probes, probes
from .checks import Finding, Level

MARKS = {Level.OK: "ok", Level.WARN: "warn", Level.FAIL: "FAIL"}
EXAMPLES = """examples:
  batchyard doctor
  batchyard doctor --fix
  batchyard doctor --url ipc:///tmp/yard --config examples/batchyard.toml"""


def main(argv: list[str]) -> int:
    """Return 1 if any check fails; warnings alone return 0."""
    arguments = parser("doctor", "Find problems on this machine and say how to fix them.", EXAMPLES)
    add_yard(arguments)
    arguments.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"a configuration to check as well (default: ./{CONFIG_DEFAULT} where there is one)",
    )
    arguments.add_argument("--fix", action="store_true", help="remove shared memory that dead processes left")
    options = arguments.parse_args(argv)
    config: Path | None = options.config
    if config is None and Path(CONFIG_DEFAULT).exists():
        config = Path(CONFIG_DEFAULT)
    findings = [
        *_installation(),
        *_machine(options.fix),
        *_config(config),
        *_yard(options.url or endpoints.default_url(), options.keys),
    ]
    print("\n".join(report(findings)))
    return 1 if any(finding.level is Level.FAIL for finding in findings) else 0


def report(findings: list[Finding]) -> list[str]:
    """A line for each finding, one more for its remedy, and a summary."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.level]:<4}  {finding.subject:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"      {'':<{width}}  -> {finding.remedy}")
    failed = sum(finding.level is Level.FAIL for finding in findings)
    warned = sum(finding.level is Level.WARN for finding in findings)
    if failed:
        lines.append(f"\n{plural(failed, 'check')} failed")
    elif warned:
        lines.append(f"\nfit for a yard, with {plural(warned, 'warning')}")
    else:
        lines.append("\nfit for a yard")
    return lines


def _installation() -> list[Finding]:
    major, minor, micro = sys.version_info[:3]
    wheels = probes.wheels()
    findings = [
        checks.python((major, minor, micro), platform.python_implementation()),
        checks.code(extras.code()),
        checks.messaging(
            zmq.__version__, zmq.zmq_version(), zmq.has("ipc"), zmq.has("curve"), sys.platform == "win32"
        ),
        checks.wheels(wheels),
    ]
    if wheels:
        findings.append(checks.providers(*probes.providers()))
        if len(wheels) == 1:  # of several, none can be relied on
            findings += gpu_checks.gpus(gpu_probes.facts(), wheels, gpu_probes.probed())
    return findings


def _machine(fix: bool) -> list[Finding]:
    backend = segments.default_backend()
    planned = os.environ.get("BATCHYARD_WORKERS", "")
    workers = max(1, int(planned)) if planned.isdecimal() else 1
    return [
        checks.segments(backend, probes.segment(backend)),
        checks.shm(*probes.shm_bytes(), backend),
        checks.orphans(probes.orphans(fix), fix),
        checks.memory(*probes.memory_bytes()),
        checks.cores(os.cpu_count() or 1, probes.cores_allowed(), workers),
    ]


def _config(path: Path | None) -> list[Finding]:
    if path is None:
        return []
    try:
        return checks.config(str(path), len(configuration.read(path).models), ())
    except configuration.ConfigError as error:
        return checks.config(str(path), 0, error.problems)


def _yard(url: str, keys: Path | None) -> list[Finding]:
    try:
        endpoint = Endpoint.parse(url)
    except InvalidRequest as error:
        return [checks.address(url, None, endpoints.SOCKET_PATH_BYTES_MAX, str(error))]
    path_bytes = probes.socket_path_bytes(endpoint)
    return [
        checks.address(endpoint.url, path_bytes, endpoints.SOCKET_PATH_BYTES_MAX),
        *checks.yard(probes.yard(endpoint, keys)),
    ]
