"""`python -m batchyard.sidecar`: serves the broker's counters to Prometheus until a signal."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from ..transport import endpoints, extras, lifeline
from ..transport.arguments import add_process, add_yard, port
from ..transport.errors import BatchyardError, EndpointInUse
from ..transport.flag import Flag
from ..transport.keys import KeyFolder
from ..transport.snapshot import pull

PORT = 9877
ANSWER_WITHIN_S = 2.0  # below any sensible scrape_timeout: a page that says "no broker" must be in time
REQUEST_WITHIN_S = 10.0
NICER_BY = 10  # what is watched goes before who watches
EXAMPLES = """examples:
  python -m batchyard.sidecar
  python -m batchyard.sidecar --url ipc:///tmp/yard --port 9900
  curl -s http://127.0.0.1:9877/metrics | grep batchyard_up"""

log = logging.getLogger("batchyard.sidecar")


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return 0 then, or 1 after an error, with a sentence."""
    options = _parser().parse_args(argv)
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(level=level, format="sidecar: %(message)s", stream=sys.stderr)
    try:
        return _serve(options)
    except ImportError as error:
        text = f"{error.name} is not installed: {extras.install('sidecar')}"
    except (BatchyardError, OSError) as error:
        text = str(error)
    print(f"sidecar: {text}", file=sys.stderr)
    return 1


def _serve(options: argparse.Namespace) -> int:
    from prometheus_client import CollectorRegistry, start_http_server

    from .collector import YardCollector
    from .sensors import readers

    endpoint = endpoints.Endpoint.parse(options.url or endpoints.default_url())
    keys = KeyFolder(options.keys) if options.keys is not None else None
    registry = CollectorRegistry()
    ask = partial(pull, endpoint, keys, options.timeout)
    registry.register(YardCollector(ask, readers(options.sysfs), endpoint.is_loopback))
    _step_back()
    stop = Flag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server, thread = start_http_server(options.port, options.host, registry)
    except OSError as error:
        text = f"cannot listen at {options.host}:{options.port}: {error.strerror or error}"
        raise EndpointInUse(text) from None
    close_silent(server)
    log.info("http://%s:%d/metrics, of the broker at %s", options.host, server.server_port, endpoint.url)
    if options.lifeline:
        lifeline.hold(stop.set)
    stop.wait()
    server.shutdown()
    server.server_close()
    thread.join()
    return 0


def close_silent(server: WSGIServer) -> None:
    """Close connections that send nothing, because each has a thread."""

    class Patient(server.RequestHandlerClass):  # type: ignore[misc,name-defined]
        timeout = REQUEST_WITHIN_S

        def handle(self) -> None:
            with contextlib.suppress(TimeoutError):
                super().handle()

    server.RequestHandlerClass = Patient


def _step_back() -> None:
    """Lower our priority: a page takes milliseconds of CPU time, a request less."""
    import psutil

    process = psutil.Process()
    try:
        if sys.platform == "win32":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            process.nice(process.nice() + NICER_BY)
    except (psutil.Error, OSError) as error:
        log.warning("cannot lower this process's priority: %s", error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m batchyard.sidecar",
        description="Serve a broker's figures, and those of this machine's GPUs, at /metrics for Prometheus.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_yard(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="where to listen; the page has no password, so keep it on loopback (%(default)s)",
    )
    parser.add_argument(
        "--port",
        type=port,
        default=os.environ.get("BATCHYARD_METRICS_PORT", str(PORT)),
        help=f"($BATCHYARD_METRICS_PORT, else {PORT})",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=ANSWER_WITHIN_S,
        metavar="S",
        help="seconds to wait for the broker's answer (%(default)s)",
    )
    parser.add_argument(
        "--sysfs",
        type=Path,
        default=Path("/sys"),
        metavar="FOLDER",
        help="where the host's /sys is mounted, in a container (%(default)s)",
    )
    add_process(parser)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 60:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, and 60 at most, found {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
