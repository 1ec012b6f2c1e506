"""`batchyard up`: a local yard in one supervised process, until Ctrl-C.

Owns the start (it checks first that everything can run), the messages, and the end. `client.yard.Yard` owns
the processes and restarts those that die.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from ..adapters.frigate import endpoint
from ..broker import config as configuration
from ..broker.config import YardConfig
from ..client import ModelInfo, Yard
from ..gpuworker.providers import LADDER
from ..transport import endpoints, extras
from ..transport.arguments import PORT_MAX, add_yard, count, port
from ..transport.endpoints import Endpoint
from ..transport.errors import BrokerLost, DeadlineExceeded, EndpointInUse, InvalidRequest
from ..transport.flag import Flag
from ..transport.keys import KeyFolder
from ..transport.messages import ModelState
from ..transport.processes import reap_orphans
from . import up_gateway, watch
from .arguments import parser
from .models import batching
from .text import plural
from .up_gateway import gateway_of

CONFIG_DEFAULT = "batchyard.toml"
BROKER_PATIENCE_S = 20.0
MODELS_PATIENCE_S = 120.0  # a big model's load and warm-up
WORKERS_PATIENCE_S = 10.0  # for the other workers, once some worker has loaded every model
LOOK_S = 0.1
AFTER = "for gRPC, the one after --gateway"
REPORT_S = 1.0  # how soon a restart is reported
EXAMPLES = """examples:
  batchyard up
  batchyard up --config examples/batchyard.toml --workers 2 --watch
  batchyard up --metrics 9877 --gateway 8000
  batchyard up --url tcp://0.0.0.0:7070 --keys keys
  batchyard up --url tcp://127.0.0.1:7070 --open-to-this-machine"""
NO_CONFIG = """there is no {path}. A yard is told what to serve; the least that it needs is

  [models.digits]          # clients ask for the model by this name
  file = "digits.onnx"     # lies beside this file
  max_batch = 32           # rows in one run

Write that, or pass --config FILE. `batchyard demo` needs no file."""
NO_MODELS = (
    "{model!r}: `up` serves what a batchyard.toml names, as file = {model!r} in a table [models.NAME]; "
    "pass that as --config FILE"
)


def main(argv: list[str]) -> int:
    """Return 0 after Ctrl-C or SIGTERM; if the yard cannot start, raises and leaves nothing behind."""
    line = _parser()
    options = line.parse_args(argv)
    if options.models:
        line.error(NO_MODELS.format(model=options.models[0]))
    if not options.config.exists():
        raise InvalidRequest(NO_CONFIG.format(path=options.config))
    config = configuration.read(options.config)
    extras.require("a worker", "onnxruntime")
    url = options.url or endpoints.default_url()
    is_open = options.open_to_this_machine or config.open_to_this_machine
    check_free(Endpoint.parse(url), options.keys, is_open)
    gateway = gateway_of(options, config.gateway, options.config)
    companions = companions_of(options, gateway)
    stop = Stop()
    restore = _on_signals(stop)
    try:
        notice_s = gateway[1].notice if gateway is not None else 0  # without one nobody asks for readiness
        arguments = ["--config", str(options.config), "--notice-seconds", str(notice_s)]
        with Yard(
            arguments,
            options.workers,
            options.threads,
            url,
            options.keys,
            provider=options.provider,
            companions=companions,
            stop_s=notice_s + config.stop_ns / 1e9,
            open_to_this_machine=is_open,
        ) as yard:
            stop.on_second(yard.hurry)
            _say(f"starting a yard at {yard.url}: broker and {plural(options.workers, 'worker')}")
            if started(yard, options.workers, stop):
                _say(f"listening at {yard.url}; Ctrl-C ends it")
                if is_open and yard.keys is None and yard.url.startswith("tcp"):
                    _say("every user of this machine may send requests; workers and operators must be yours")
                if options.metrics is not None:
                    _say(f"metrics for Prometheus at http://127.0.0.1:{options.metrics}/metrics")
                if gateway is not None:
                    _say(said_of_gateway(gateway[1]))
                if options.frigate is not None:
                    _say(f"detector for Frigate at {options.frigate_endpoint}")
                if options.watch and config.models_root is not None:
                    _follow(config, yard, stop)
                _watch(yard, stop)
            _say("stopping" + (f"; requests are refused in {notice_s} s" if notice_s else ""))
    finally:
        restore()
    return 0


def check_free(endpoint: Endpoint, keys: Path | None, open_to_this_machine: bool = False) -> None:
    """Raises EndpointInUse or Unauthorized if the broker could not listen. Otherwise it would be restarted
    forever, and another broker's answers would be taken for its own."""
    with endpoints.claim(endpoint, KeyFolder(keys) if keys is not None else None, open_to_this_machine):
        if endpoint.is_ipc:
            return
        with zmq.Context() as context:
            for address in (endpoint.clients, endpoint.workers, endpoint.admin):
                with context.socket(zmq.ROUTER) as socket:
                    socket.setsockopt(zmq.IPV6, int(endpoint.is_ipv6))
                    try:
                        socket.bind(address)
                    except zmq.ZMQError as error:
                        if error.errno == zmq.EADDRINUSE:
                            raise EndpointInUse(
                                f"{address} is in use by another process: stop it, or choose another --url"
                            ) from None
                        raise InvalidRequest(f"cannot listen at {address}: {error.strerror}") from None


def companions_of(
    options: argparse.Namespace, gateway: tuple[list[str], argparse.Namespace] | None
) -> dict[str, list[str]]:
    """The processes to run beside the yard; `gateway`: of `gateway_of`. Raises if one of them could not run:
    it would be restarted forever."""
    companions = {}
    ports: dict[int, str] = {}
    if options.metrics is not None:
        extras.require("--metrics", "prometheus_client", "psutil")
        check_port("metrics", options.metrics, ports)
        companions["sidecar"] = ["batchyard.sidecar", "--port", str(options.metrics)]
    if gateway is not None:
        line, chosen = gateway
        check_port("gateway", chosen.port, ports, host=chosen.host)
        if chosen.grpc_port is None:
            check_port("gateway", chosen.port + 1, ports, AFTER, chosen.host)
        elif chosen.grpc_port:
            check_port("gateway-grpc-port", chosen.grpc_port, ports, host=chosen.host)
        companions["gateway"] = ["batchyard.gateway", *line, "--notice", "0"]  # the broker gives it
    if options.frigate is not None:
        endpoint.check(options.frigate_endpoint)
        where = ["--model", options.frigate, "--endpoint", options.frigate_endpoint]
        companions["frigate"] = ["batchyard.adapters.frigate", *where]
    return companions


def check_port(
    option: str, port: int, taken: dict[int, str], what: str = "", host: str = "127.0.0.1"
) -> None:
    """Note that `option` will listen at `port`. Raises InvalidRequest or EndpointInUse where it could not;
    `taken`: option by port; `what`: what the port is, where the option does not name it."""
    why = f" {what}" if what else ""
    if port > PORT_MAX:
        raise InvalidRequest(f"gRPC listens at the port after --{option}, and there is no port {port}")
    if port in taken:
        raise InvalidRequest(f"--{taken[port]} and --{option} both use port {port}{why}: choose another one")
    taken[port] = option
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        if os.name != "nt":  # there it would let two listen at once
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            text = f"cannot listen at port {port}{why} ({error.strerror}): choose another --{option}"
            raise EndpointInUse(text) from None


def started(yard: Yard, workers: int, stop: Flag) -> bool:
    """Wait until every model serves or has failed, and report it; False if told to stop.

    Raises BrokerLost when the broker ended, InvalidRequest when no model can be served.
    """
    if not _broker_answers(yard, stop):
        return False
    models = _settled_models(yard, workers, stop)
    if stop.is_set():
        return False
    for model in models:
        _say(said_of(model, workers))
    if models and all(model.state == ModelState.FAILED for model in models):
        raise InvalidRequest("no model can be served; the reasons are above")
    return True


def said_of(model: ModelInfo, workers: int) -> str:
    if model.state == ModelState.FAILED:
        return f"{model.name}: FAILED: {model.reason}"
    if model.state == ModelState.LOADING:
        return f"{model.name}: still loading; `batchyard models` shows when it's ready"
    providers = ", ".join(sorted({worker.provider for worker in model.workers}))
    number = len(model.workers)
    on = plural(number, "worker") if number == workers else f"{number} of {plural(workers, 'worker')}"
    rows = f"{batching(model)} in a run" if model.batchable else f"requests run alone: {model.alone_reason}"
    return f"{model.name}: ready on {on} ({providers}), {rows}"


def said_of_gateway(options: argparse.Namespace) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    grpc = options.port + 1 if options.grpc_port is None else options.grpc_port
    http = "http" if options.tls_cert is None else "https"
    return f"HTTP at {http}://{host}:{options.port}" + (f", gRPC at port {grpc}" if grpc else "")


def _broker_answers(yard: Yard, stop: Flag) -> bool:
    give_up_s = time.monotonic() + BROKER_PATIENCE_S
    while not stop.is_set():
        try:
            yard.wait_for_broker(LOOK_S)
            return True
        except DeadlineExceeded:
            if time.monotonic() > give_up_s:
                raise
    return False


def _settled_models(yard: Yard, workers: int, stop: Flag) -> list[ModelInfo]:
    """The models, once none is loading and every worker has them, or the wait is over."""
    models: list[ModelInfo] = []
    give_up_s = time.monotonic() + MODELS_PATIENCE_S
    others_s: float | None = None
    with yard.client(segment="frames", connect_timeout=LOOK_S) as client:
        while not stop.wait(LOOK_S):
            yard.check_workers()
            try:
                models = client.models()
            except BrokerLost:  # it is being started again
                models = []
            now_s = time.monotonic()
            if now_s > give_up_s:
                break
            if not models or any(model.state == ModelState.LOADING for model in models):
                continue
            others_s = others_s or now_s + WORKERS_PATIENCE_S
            ready = [model for model in models if model.state == ModelState.READY]
            if now_s > others_s or all(len(model.workers) >= workers for model in ready):
                break
    return models


def _watch(yard: Yard, stop: Flag) -> None:
    """Sleep until told to stop; report every restarted process."""
    seen = [process.restarts for process in yard.processes]
    while not stop.wait(REPORT_S):
        reap_orphans()
        for index, process in enumerate(yard.processes):
            if process.restarts != seen[index]:
                seen[index] = process.restarts
                _say(f"{process.name} ended and was started again (process {process.pid})")


def _follow(config: YardConfig, yard: Yard, stop: Flag) -> None:
    """Let the yard's models follow the files of models_root, on a thread of its own."""
    root = config.models_root
    assert root is not None
    files = {name: model.path for name, model in config.models.items() if model.function is None}
    served = {path.name: name for name, path in files.items() if path.parent == root}
    _say(f"following the .onnx files of {root}")
    arguments = (root, lambda: served, yard.operator, stop.wait, _say)
    threading.Thread(target=watch.follow, args=arguments, name="batchyard-watch", daemon=True).start()


class Stop(Flag):
    """Set by the first signal. A second one ends the yard at once."""

    def __init__(self) -> None:
        super().__init__()
        self._hurry: Callable[[], None] = lambda: None

    def on_second(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry

    def signalled(self) -> None:
        if self.is_set():
            self._hurry()
        self.set()


def _on_signals(stop: Stop) -> Callable[[], None]:
    """Let signals set `stop`; the returned function restores the old handlers."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):
        numbers.append(signal.SIGHUP)  # the terminal was closed
    before = {number: signal.signal(number, lambda *_: stop.signalled()) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def _say(text: str) -> None:
    print(f"batchyard: {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    arguments = parser("up", "Run a yard, a broker and its workers, on this machine until Ctrl-C.", EXAMPLES)
    arguments.add_argument("models", nargs="*", help=argparse.SUPPRESS)  # which newcomers pass
    arguments.add_argument(
        "-c",
        "--config",
        type=Path,
        default=Path(CONFIG_DEFAULT),
        metavar="FILE",
        help="what to serve (default: ./%(default)s)",
    )
    arguments.add_argument(
        "--workers", type=count, default=1, metavar="N", help="worker processes (%(default)s)"
    )
    arguments.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help=f"threads per worker (default: cores / workers; cores here: {os.cpu_count() or 1})",
    )
    arguments.add_argument(
        "--provider",
        choices=("auto", *LADDER),
        default="auto",
        help="what the workers run on (%(default)s: the best that works here)",
    )
    arguments.add_argument(
        "--watch",
        action="store_true",
        help="load, swap and unload models as files in models_root appear, change and vanish",
    )
    arguments.add_argument(
        "--metrics", type=port, metavar="PORT", help="serve metrics to Prometheus at 127.0.0.1:PORT/metrics"
    )
    arguments.add_argument(
        "--frigate", metavar="MODEL", help="be Frigate's detector with this model (docs/frigate.md)"
    )
    arguments.add_argument(
        "--frigate-endpoint",
        default=endpoint.DEFAULT,
        metavar="URL",
        help="address in Frigate's configuration (%(default)s)",
    )
    arguments.add_argument(
        "--open-to-this-machine",
        action="store_true",
        help="listen at a loopback tcp address without keys: every user of this machine may send requests",
    )
    add_yard(arguments)
    up_gateway.add(arguments)
    return arguments
