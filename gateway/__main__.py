"""`python -m batchyard.gateway`: arguments, what must hold before anything listens, and the two servers.

0    done (Ctrl-C, SIGTERM)
1    it could not start, and stderr says why in one sentence
2    the command line is wrong
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import BatchyardError, InvalidRequest
from ..transport import extras, lifeline

log = logging.getLogger("gateway")
PORT = 8000
PORT_VARIABLE = "BATCHYARD_GATEWAY_PORT"
TOKEN_VARIABLE = "BATCHYARD_GATEWAY_TOKEN"
TOKEN_CHARS_MIN = 16
BACKLOG = 512
CONNECTIONS_PER_REQUEST = 2  # of HTTP and of gRPC each, for every request that may be under way
GRPC_IDLE_MS = 300_000  # a connection without calls is closed then; clients open it again
GRACE_S = 3.0  # for requests that are under way at the end
MIB = 1 << 20
EXAMPLES = """examples:
  python -m batchyard.gateway
  python -m batchyard.gateway --port 9000 --grpc-port 0
  BATCHYARD_GATEWAY_TOKEN=... python -m batchyard.gateway --host 0.0.0.0
  curl -d '{"data": [[0.5, 1.5]]}' -H 'Content-Type: application/json' localhost:8000/predict"""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO,
        format="gateway: %(message)s",
        stream=sys.stderr,
    )
    try:
        token = _token(options.token_file)
        _check(options, token)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(options, token))
    except (BatchyardError, OSError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"gateway: {error.name} is not installed: {extras.install('gateway')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _token(file: Path | None) -> str | None:
    """The token, of a file or the environment. Raises InvalidRequest for one that can be guessed."""
    token = file.read_text(encoding="utf-8").strip() if file is not None else os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    if len(token) < TOKEN_CHARS_MIN or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest(
            f"the token has {TOKEN_CHARS_MIN} or more printable ASCII characters and no spaces; "
            "one comes of: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def _check(options: argparse.Namespace, token: str | None) -> None:
    """Raises InvalidRequest for what would not be safe."""
    loopback = is_loopback(options.host)
    if not loopback and token is None:
        raise InvalidRequest(
            f"beyond this machine ({options.host}) a token is wanted: --token-file, or {TOKEN_VARIABLE}"
        )
    if options.shared_memory and not loopback:
        raise InvalidRequest("--shared-memory is for clients on this machine: only with a loopback --host")
    if options.shared_memory and sys.platform != "linux":
        raise InvalidRequest("--shared-memory is for Linux: it opens clients' memory in /dev/shm")


def is_loopback(host: str) -> bool:
    """Whether every address of a host name is this machine's own. Raises InvalidRequest for a name that is
    none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidRequest(f"{host!r} is no address to listen at: {error.strerror}") from None
    addresses = {str(entry[4][0]) for entry in found}
    return all(address == "::1" or address.startswith("127.") for address in addresses)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port that is taken is known before anything runs. Raises OSError."""
    family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, number)
    try:
        if os.name != "nt":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"cannot listen at {host}:{port}: {error.strerror}") from None
    return listening


async def _serve(options: argparse.Namespace, token: str | None) -> None:
    import uvicorn

    from .app import application, running
    from .body import Budget
    from .connection import connection_of, descriptors
    from .jobs import Jobs
    from .metrics import Metrics
    from .regions import Regions
    from .rooms import Limits, Rooms
    from .yard import Yard

    limits = Limits(
        body_bytes_max=min(options.body_mib, options.arena_mib) * MIB,  # more would never find room
        bodies_bytes_max=options.arena_mib * MIB,
        requests_max=options.requests,
        job_ttl_s=options.job_ttl,
    )
    rooms = Rooms(
        yard=Yard(options.url, options.keys, options.arena_mib * MIB),
        limits=limits,
        budget=Budget(limits.bodies_bytes_max),
        jobs=Jobs(limits.jobs_max, limits.job_bytes_max, limits.job_ttl_s),
        metrics=Metrics(),
        regions=Regions() if options.shared_memory else None,
        version=version("batchyard"),
    )
    connections_max = min(CONNECTIONS_PER_REQUEST * limits.requests_max, descriptors() // 4)
    config = uvicorn.Config(
        application(rooms, token),
        http=connection_of(connections_max),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # nobody asks here for whom somebody asks
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(GRACE_S),
        ws="none",
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn would raise the signal again when it has ended, and what is behind it would not be closed.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with _listen(options.host, options.port) as listening:
        async with running(rooms):
            grpc = (
                await _start_grpc(rooms, options, token, connections_max) if options.grpc_port != 0 else None
            )
            if options.lifeline:
                lifeline.hold(lambda: os.kill(os.getpid(), signal.SIGTERM))
            port = listening.getsockname()[1]
            log.info("serving at http://%s:%d", options.host, port)
            try:
                await server.serve([listening])
            finally:
                if grpc is not None:
                    await grpc.stop(GRACE_S)


async def _start_grpc(
    rooms: Any, options: argparse.Namespace, token: str | None, connections_max: int
) -> Any:
    """Raises OSError when the port is taken."""
    import grpc.aio

    from .connection import HEAD_WITHIN_S
    from .oip_grpc import Service

    limits = rooms.limits
    server = grpc.aio.server(
        maximum_concurrent_rpcs=limits.requests_max,
        options=(
            ("grpc.so_reuseport", 0),  # else a second gateway would take half of the first one's calls
            ("grpc.max_receive_message_length", limits.body_bytes_max),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_allowed_incoming_connections", connections_max),
            ("grpc.server_handshake_timeout_ms", int(HEAD_WITHIN_S * 1000)),
            ("grpc.max_connection_idle_ms", GRPC_IDLE_MS),
        ),
    )
    server.add_generic_rpc_handlers((Service(rooms, token).handler(),))
    host = f"[{options.host}]" if ":" in options.host else options.host
    port = options.port + 1 if options.grpc_port is None else options.grpc_port
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise OSError(f"cannot listen at {host}:{port} for gRPC; --grpc-port 0 leaves it out") from None
    await server.start()
    log.info("serving gRPC at %s:%d", host, port)
    return server


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m batchyard.gateway",
        description="REST jobs and the Open Inference Protocol (HTTP and gRPC) for a yard.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--url", help="the yard's address (default: $BATCHYARD_URL, else this user's yard)")
    add("--keys", type=Path, metavar="FOLDER", help="CURVE keys, for a yard that has them")
    add("--host", default="127.0.0.1", help="where to listen (%(default)s); elsewhere with a token only")
    port = os.environ.get(PORT_VARIABLE, str(PORT))
    add("--port", type=_port, default=port, help=f"of HTTP (${PORT_VARIABLE}, else {PORT})")
    add("--grpc-port", type=_port, help="of gRPC (the one after --port; 0: none)")
    add("--token-file", type=Path, metavar="FILE", help=f"holds the token (default: ${TOKEN_VARIABLE})")
    add("--shared-memory", action="store_true", help="let clients on this machine register their own")
    add("--arena-mib", type=_count, default=256, help="shared memory for tensors under way (%(default)s)")
    add("--body-mib", type=_count, default=64, help="the longest body (%(default)s)")
    add("--requests", type=_count, default=1024, help="under way at one time (%(default)s)")
    add("--job-ttl", type=_count, default=300, metavar="S", help="how long results are kept (%(default)s)")
    add("--lifeline", action="store_true", help="end when stdin does (the starter died)")
    add("-q", "--quiet", action="store_true", help="say nothing but what went wrong")
    return parser


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= 1 << 20:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return value


def _port(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"expected a port, found {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
