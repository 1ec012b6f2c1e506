"""`batchyard up`: a local yard in one supervised process, until Ctrl-C.

Owns the start (nothing is started that cannot stay), what is said while it runs, and the end. The
processes themselves are `client.yard.Yard`'s: a dead one comes back.
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

from ..broker import config as configuration
from ..broker.config import YardConfig
from ..client import ModelInfo, Yard
from ..transport import endpoints, extras
from ..transport.endpoints import Endpoint
from ..transport.errors import BrokerLost, DeadlineExceeded, EndpointInUse, InvalidRequest
from ..transport.keys import KeyFolder
from ..transport.messages import ModelState
from . import watch
from .arguments import PORT_MAX, add_yard, count, parser, port
from .models import batching
from .text import plural

CONFIG_DEFAULT = "batchyard.toml"
BROKER_PATIENCE_S = 20.0
MODELS_PATIENCE_S = 120.0  # a big model's load and warm-up
WORKERS_PATIENCE_S = 10.0  # for the other workers, once some worker has loaded every model
LOOK_S = 0.1
EXAMPLES = """examples:
  batchyard up
  batchyard up --config examples/batchyard.toml --workers 2 --watch
  batchyard up --metrics 9877 --gateway 8000
  batchyard up --url tcp://0.0.0.0:7070 --keys keys"""
NO_CONFIG = """there is no {path}. A yard is told what to serve; the least that it needs is

  [models.digits]          # clients ask for the model by this name
  file = "digits.onnx"     # lies beside this file
  max_batch = 32           # rows in one run

Write that, or pass --config FILE. `batchyard demo` needs no file."""


def main(argv: list[str]) -> int:
    """0 after Ctrl-C or SIGTERM; raises, with nothing left behind, when the yard cannot start."""
    options = _parser().parse_args(argv)
    if not options.config.exists():
        raise InvalidRequest(NO_CONFIG.format(path=options.config))
    config = configuration.read(options.config)
    extras.require("a worker", "onnxruntime")
    url = options.url or endpoints.default_url()
    check_free(Endpoint.parse(url), options.keys)
    companions = companions_of(options)
    stop = threading.Event()
    restore = _on_signals(stop)
    try:
        arguments = ["--config", str(options.config)]
        with Yard(
            arguments,
            options.workers,
            options.threads,
            url,
            options.keys,
            provider=options.provider,
            companions=companions,
        ) as yard:
            _say(f"starting a yard at {yard.url}: broker and {plural(options.workers, 'worker')}")
            if started(yard, options.workers, stop):
                _say(f"listening at {yard.url}; Ctrl-C ends it")
                if options.metrics is not None:
                    _say(f"metrics for Prometheus at http://127.0.0.1:{options.metrics}/metrics")
                if options.gateway is not None:
                    _say(f"HTTP at http://127.0.0.1:{options.gateway}, gRPC at port {options.gateway + 1}")
                if options.watch and config.models_root is not None:
                    _follow(config, yard, stop)
                _watch(yard, stop)
            _say("stopping")
    finally:
        restore()
    return 0


def check_free(endpoint: Endpoint, keys: Path | None) -> None:
    """Raises EndpointInUse or Unauthorized where the broker could not listen; it would be started
    again for ever, and another broker's answers taken for its own."""
    with endpoints.claim(endpoint, KeyFolder(keys) if keys is not None else None):
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


def companions_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """The processes that are wanted beside the yard. Raises what keeps one of them from running: it would
    be started again for ever."""
    companions = {}
    ports: dict[int, str] = {}
    if options.metrics is not None:
        extras.require("--metrics", "prometheus_client", "psutil")
        check_port("metrics", options.metrics, ports)
        companions["sidecar"] = ["batchyard.sidecar", "--port", str(options.metrics)]
    if options.gateway is not None:
        extras.require("--gateway", "fastapi", "uvicorn", "grpc")
        check_port("gateway", options.gateway, ports)
        check_port("gateway", options.gateway + 1, ports)
        companions["gateway"] = ["batchyard.gateway", "--port", str(options.gateway)]
    return companions


def check_port(option: str, port: int, taken: dict[int, str]) -> None:
    """Note that `option` will listen at `port`. Raises InvalidRequest or EndpointInUse where it could not;
    `taken`: option by port."""
    if port > PORT_MAX:
        raise InvalidRequest(f"gRPC listens at the port after --{option}, and there is no port {port}")
    if port in taken:
        raise InvalidRequest(f"port {port} is wanted by --{taken[port]} and --{option}: choose another one")
    taken[port] = option
    with socket.socket() as probe:
        if os.name != "nt":  # there it would let two listen at once
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            text = f"cannot listen at port {port} ({error.strerror}): choose another --{option}"
            raise EndpointInUse(text) from None


def started(yard: Yard, workers: int, stop: threading.Event) -> bool:
    """Wait until it is known of every model whether it serves, and say so; False when told to stop.

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
    """One line about a model at the start."""
    if model.state == ModelState.FAILED:
        return f"{model.name}: FAILED: {model.reason}"
    if model.state == ModelState.LOADING:
        return f"{model.name}: still loading; `batchyard models` shows when it's ready"
    providers = ", ".join(sorted({worker.provider for worker in model.workers}))
    number = len(model.workers)
    on = plural(number, "worker") if number == workers else f"{number} of {plural(workers, 'worker')}"
    rows = f"{batching(model)} in a run" if model.batchable else f"requests run alone: {model.alone_reason}"
    return f"{model.name}: ready on {on} ({providers}), {rows}"


def _broker_answers(yard: Yard, stop: threading.Event) -> bool:
    give_up_s = time.monotonic() + BROKER_PATIENCE_S
    while not stop.is_set():
        try:
            yard.wait_for_broker(LOOK_S)
            return True
        except DeadlineExceeded:
            if time.monotonic() > give_up_s:
                raise
    return False


def _settled_models(yard: Yard, workers: int, stop: threading.Event) -> list[ModelInfo]:
    """The models once none is loading and every worker has them, or patience is over."""
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


def _watch(yard: Yard, stop: threading.Event) -> None:
    """Sleep until told to stop; say when a process had to be started again."""
    seen = [process.restarts for process in yard.processes]
    while not stop.wait(LOOK_S):
        for index, process in enumerate(yard.processes):
            if process.restarts != seen[index]:
                seen[index] = process.restarts
                _say(f"{process.name} ended and was started again (process {process.pid})")


def _follow(config: YardConfig, yard: Yard, stop: threading.Event) -> None:
    """Let the yard's models follow the files of models_root, on a thread of its own."""
    root = config.models_root
    assert root is not None
    files = {name: model.path for name, model in config.models.items() if model.function is None}
    served = {path.name: name for name, path in files.items() if path.parent == root}
    _say(f"following the .onnx files of {root}")
    arguments = (root, lambda: served, yard.operator, stop.wait, _say)
    threading.Thread(target=watch.follow, args=arguments, name="batchyard-watch", daemon=True).start()


def _on_signals(stop: threading.Event) -> Callable[[], None]:
    """Let signals set `stop`; what is returned puts the old handlers back."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):
        numbers.append(signal.SIGHUP)  # the terminal was closed
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def _say(text: str) -> None:
    print(f"batchyard: {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    arguments = parser("up", "A yard on this machine: a broker and its workers, until Ctrl-C.", EXAMPLES)
    arguments.add_argument(
        "--config", type=Path, default=Path(CONFIG_DEFAULT), metavar="FILE", help="(./%(default)s)"
    )
    arguments.add_argument(
        "--workers", type=count, default=1, metavar="N", help="worker processes (%(default)s)"
    )
    arguments.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help=f"of each worker (cores / workers; cores here: {os.cpu_count() or 1})",
    )
    arguments.add_argument(
        "--provider",
        choices=("auto", "directml", "webgpu", "cuda", "cpu"),
        default="auto",
        help="what the workers run on (%(default)s: the best that works here)",
    )
    arguments.add_argument(
        "--watch", action="store_true", help="load, swap and unload models as the files of models_root do"
    )
    arguments.add_argument(
        "--metrics", type=port, metavar="PORT", help="serve figures to Prometheus at 127.0.0.1:PORT/metrics"
    )
    arguments.add_argument(
        "--gateway", type=port, metavar="PORT", help="serve HTTP at 127.0.0.1:PORT, gRPC at the port after it"
    )
    add_yard(arguments)
    return arguments
