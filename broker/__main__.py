"""`python -m batchyard.broker`: one broker, in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import secrets
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import zmq

from ..transport import endpoints, lifeline, secret
from ..transport.arguments import notice
from ..transport.errors import BatchyardError, Code
from ..transport.keys import KeyFolder
from ..transport.processes import open_standard_streams
from ..transport.python_models import FunctionSignature
from . import config as configuration
from .core import Core
from .options import MAX_BATCH_DEFAULT
from .server import Server

OPEN_HELP = (
    "listen at a loopback address without keys: every user of this machine may send requests; workers and "
    "operators must know the yard's secret"
)
log = logging.getLogger("batchyard.broker")


def main(argv: list[str] | None = None) -> int:
    """Parse, claim the endpoint, serve. 0 after SIGTERM or SIGINT, 1 with a sentence on an error."""
    parser = argparse.ArgumentParser(
        prog="python -m batchyard.broker",
        description="Serve models to clients, through workers.",
        epilog="example: python -m batchyard.broker --config examples/batchyard.toml",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="FILE", help="a batchyard.toml")
    source.add_argument(
        "--model",
        action="append",
        metavar="NAME=FILE",
        help="serve this model (repeatable): an ONNX file, module:function, or file.py:function",
    )
    parser.add_argument("--max-batch", type=int, default=MAX_BATCH_DEFAULT, help="rows, with --model")
    parser.add_argument(
        "--run-seconds-max",
        type=float,
        metavar="S",
        help="with --model: a worker that runs one batch for longer is ended (default: no such bound)",
    )
    parser.add_argument(
        "--models-root", metavar="FOLDER", help="with --model: what `batchyard models load` may load from"
    )
    parser.add_argument(
        "--signature",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="with --model: what its function takes and gives, as a Signature of the protocol in JSON",
    )
    parser.add_argument(
        "--options",
        metavar="JSON",
        help="with --model: by name, what a model's table in a batchyard.toml may say besides its file",
    )
    parser.add_argument(
        "--limits", metavar="JSON", help="with --model: the table [limits] of a batchyard.toml"
    )
    parser.add_argument(
        "--load-python", action="store_true", help="with --model: orders may load Python files, too"
    )
    parser.add_argument("--url", default=None, help="where to listen (default: $BATCHYARD_URL, else local)")
    parser.add_argument("--keys", type=Path, metavar="FOLDER", help="CURVE keys; needed over tcp")
    parser.add_argument("--open-to-this-machine", action="store_true", help=OPEN_HELP)
    parser.add_argument(
        "--spin-us", type=int, metavar="US", help="poll this long before sleeping (config: broker.spin_us)"
    )
    parser.add_argument(
        "--notice-seconds",
        type=notice,
        default=0,
        metavar="S",
        help="when stopped, be not ready for so long before requests are refused (%(default)s)",
    )
    parser.add_argument(
        "--named-segments", action="store_true", help="clients may use them (config: broker.named_segments)"
    )
    parser.add_argument("--lifeline", action="store_true", help="end when stdin does (the starter died)")
    parser.add_argument(
        "--report",
        action="store_true",
        help="an error that ends it goes to stdout, as [code, text] in JSON",
    )
    parser.add_argument("--remove-folder", action="store_true", help="remove the yard's folder at the end")
    parser.add_argument(
        "--remove-keys", action="store_true", help="remove the folder of --keys if the starter has died"
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    open_standard_streams()
    arguments = parser.parse_args(argv)
    if arguments.config is None and not arguments.model and arguments.models_root is None:
        parser.error("one of --config, --model, and --models-root is needed")
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.WARNING if arguments.quiet else logging.INFO,
        format="broker: %(message)s",
        stream=sys.stderr,
    )
    try:
        if arguments.config is not None:
            config = configuration.read(arguments.config)
        else:
            config = configuration.from_models(
                _named("--model", arguments.model or []),
                arguments.max_batch,
                arguments.models_root,
                _signatures(arguments.signature),
                arguments.load_python,
                arguments.run_seconds_max,
                _options("--options", arguments.options),
                _options("--limits", arguments.limits),
            )
        if arguments.spin_us is not None:
            config = replace(config, spin_ns=max(0, min(arguments.spin_us, configuration.SPIN_US_MAX)) * 1000)
        if arguments.open_to_this_machine:
            config = replace(config, open_to_this_machine=True)
        config = replace(config, notice_ns=arguments.notice_seconds * 10**9)
        if arguments.named_segments:
            config = replace(config, named_segments=True)
        endpoint = endpoints.Endpoint.parse(arguments.url or endpoints.default_url())
        keys = KeyFolder(arguments.keys) if arguments.keys is not None else None
        _serve(config, endpoint, keys, arguments)
    except (BatchyardError, zmq.ZMQError, OSError) as error:
        if arguments.report:
            code = error.code if isinstance(error, BatchyardError) else Code.INTERNAL
            print(json.dumps([code, str(error)]), flush=True)
        else:
            print(f"broker: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(
    config: configuration.YardConfig,
    endpoint: endpoints.Endpoint,
    keys: KeyFolder | None,
    arguments: argparse.Namespace,
) -> None:
    # With keys, they say who may be what.
    shared = "" if keys is not None else secret.take() or secret.make()
    orphaned = False

    def end() -> None:
        nonlocal orphaned
        orphaned = True
        server.halt()

    with endpoints.claim(endpoint, keys, config.open_to_this_machine):
        core = Core(config, secrets.randbits(62), os.getpid())
        if shared:
            secret.write(endpoint, shared)
        server = Server(endpoint, core, config, keys, shared)
        try:
            # No exception: one that is raised in a destructor would be lost, and the signal with it.
            signal.set_wakeup_fd(server.wake_fd, warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: server.stop())
            if arguments.lifeline:
                lifeline.hold(end)  # whoever started us is gone, and so are the workers
            # Everything that lives now lives to the end, and nothing here makes cycles: a collection
            # would only be a pause in some request's latency.
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 125, 1000)
            log.info("serving %s at %s", ", ".join(config.models), endpoint.url)
            server.run()
        finally:
            signal.set_wakeup_fd(-1)
            server.close()
            if shared:
                secret.remove(endpoint, shared)
    if arguments.remove_keys and keys is not None and orphaned:
        shutil.rmtree(keys.path, ignore_errors=True)
    if arguments.remove_folder and endpoint.folder is not None:
        shutil.rmtree(endpoint.folder, ignore_errors=True)


def _named(option: str, pairs: list[str]) -> dict[str, str]:
    values = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise configuration.ConfigError(option, (f"expected NAME=..., found {pair!r}",))
        values[name] = value
    return values


def _signatures(pairs: list[str]) -> dict[str, FunctionSignature]:
    values = {}
    for name, text in _named("--signature", pairs).items():
        try:
            values[name] = msgspec.json.decode(text, type=FunctionSignature)
        except msgspec.MsgspecError as error:
            raise configuration.ConfigError("--signature", (f"{name}: {error}",)) from None
    return values


def _options(option: str, text: str | None) -> dict[str, object]:
    try:
        return msgspec.json.decode(text, type=dict[str, object]) if text is not None else {}
    except msgspec.MsgspecError as error:
        raise configuration.ConfigError(option, (str(error),)) from None


if __name__ == "__main__":
    sys.exit(main())
