"""`python -m batchyard.gateway`: the two servers, and what they need.

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
from typing import Any

from .. import BatchyardError
from ..client.yard import STOP_S
from ..transport import extras, lifeline
from .options import check, parser, token_of

log = logging.getLogger("gateway")
BACKLOG = 2048  # connections that the system keeps until they are accepted
CONNECTIONS_PER_REQUEST = 2  # of HTTP and of gRPC each, for every request that may be under way
GRPC_PENDING_MAX = 1 << 14  # calls that have come, and that this process has not begun
GRPC_IDLE_MS = 300_000  # a connection without calls is closed then; clients open it again
CANCEL_S = STOP_S  # what has no answer by then is answered with CANCELLED
GRACE_S = CANCEL_S + 1  # for requests that are under way at the end: uvicorn's own end is a bare 500
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; uvicorn's own choice has none that Envoy takes
MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal."""
    options = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO,
        format="gateway: %(message)s",
        stream=sys.stderr,
    )
    try:
        token = token_of(options.token_file)
        check(options, token)
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


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened before anything else runs. Raises OSError if the port is taken."""
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

    from .http_accept import Server
    from .http_app import application, running
    from .http_body import Budget
    from .http_connection import connection_of, descriptors
    from .jobs import Jobs
    from .metrics import Metrics
    from .regions import Regions
    from .rooms import Limits, Rooms
    from .texts import TextModel
    from .yard import Yard

    limits = Limits(
        body_bytes_max=min(options.body_mib, options.arena_mib) * MIB,  # more would never find room
        bodies_bytes_max=options.arena_mib * MIB,
        requests_max=options.requests,
        job_ttl_s=options.job_ttl,
    )
    rooms = Rooms(
        yard=Yard(options.url, options.keys, options.arena_mib * MIB, ready_with_any=options.ready == "any"),
        limits=limits,
        budget=Budget(limits.bodies_bytes_max),
        jobs=Jobs(limits.jobs_max, limits.job_bytes_max, limits.job_ttl_s),
        metrics=Metrics(version("batchyard")),
        regions=Regions() if options.shared_memory else None,
        version=version("batchyard"),
        model_control=options.model_control,
        texts={name: TextModel.read(name, folder) for name, folder in options.text_model},
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
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        ssl_ciphers=CIPHERS,
    )
    server = Server(config, connections_max)

    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []  # held, or it could be collected

    async def leave(notice_s: float) -> None:
        if notice_s:
            rooms.yard.leave()
            await asyncio.sleep(notice_s)
        server.should_exit = True
        if not await rooms.yard.is_gone():
            await asyncio.sleep(CANCEL_S)
        await rooms.yard.close()

    def stop(*_: object) -> None:
        loop.call_soon_threadsafe(begin, 0 if ending else options.notice)

    def begin(notice_s: float = 0) -> None:
        ending.append(loop.create_task(leave(notice_s)))

    def end() -> None:
        loop.call_soon_threadsafe(begin)

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
                lifeline.hold(end)
            port = listening.getsockname()[1]
            scheme = "http" if options.tls_cert is None else "https"
            log.info("serving at %s://%s:%d", scheme, options.host, port)
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

    from . import grpc_reflection
    from .grpc_door import Door
    from .grpc_health import Health
    from .grpc_service import Service
    from .http_connection import HEAD_WITHIN_S

    limits = rooms.limits
    server = grpc.aio.server(
        options=(
            # How many run at once is the Door's to say, with a sentence. gRPC cancels calls without a word
            # when more have come than were begun: at random from 1,000 on, by default.
            ("grpc.server.max_pending_requests", GRPC_PENDING_MAX),
            ("grpc.server.max_pending_requests_hard_limit", GRPC_PENDING_MAX),
            ("grpc.so_reuseport", 0),  # else a second gateway would take half of the first one's calls
            ("grpc.max_receive_message_length", limits.body_bytes_max),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_allowed_incoming_connections", connections_max),
            ("grpc.server_handshake_timeout_ms", int(HEAD_WITHIN_S * 1000)),
            ("grpc.max_connection_idle_ms", GRPC_IDLE_MS),
        ),
    )
    services = (Service(rooms).handler(), Health(rooms).handler(), *grpc_reflection.handlers())
    server.add_generic_rpc_handlers((Door(services, token, rooms.metrics, limits.requests_max),))
    host = f"[{options.host}]" if ":" in options.host else options.host
    port = options.port + 1 if options.grpc_port is None else options.grpc_port
    try:
        if options.tls_cert is None:
            server.add_insecure_port(f"{host}:{port}")
        else:
            pair = options.tls_key.read_bytes(), options.tls_cert.read_bytes()
            server.add_secure_port(f"{host}:{port}", grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        raise OSError(f"cannot listen at {host}:{port} for gRPC; --grpc-port 0 leaves it out") from None
    await server.start()
    log.info("serving gRPC at %s:%d", host, port)
    return server


if __name__ == "__main__":
    sys.exit(main())
