"""`python -m batchyard.broker`: one broker, in the foreground, until it is told to stop."""

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

from ..transport import endpoints, lifeline
from ..transport.errors import BatchyardError, Code
from ..transport.functions import Signature
from ..transport.keys import KeyFolder
from . import config as configuration
from .core import Core
from .loop import Loop

log = logging.getLogger("batchyard.broker")


def main(argv: list[str] | None = None) -> int:
    """Parse, claim the endpoint, serve. 0 after SIGTERM or SIGINT, 1 with a sentence on an error."""
    parser = argparse.ArgumentParser(
        prog="python -m batchyard.broker",
        description="Serve models to clients, through workers.",
        epilog="example: python -m batchyard.broker --config examples/batchyard.toml",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, metavar="FILE", help="a batchyard.toml")
    source.add_argument(
        "--model",
        action="append",
        metavar="NAME=FILE",
        help="serve this model (repeatable): an ONNX file, module:function, or file.py:function",
    )
    parser.add_argument(
        "--max-batch", type=int, default=configuration.MAX_BATCH_DEFAULT, help="rows, with --model"
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
        "--load-python", action="store_true", help="with --model: orders may load Python files, too"
    )
    parser.add_argument("--url", default=None, help="where to listen (default: $BATCHYARD_URL, else local)")
    parser.add_argument("--keys", type=Path, metavar="FOLDER", help="CURVE keys; needed beyond this machine")
    parser.add_argument(
        "--spin-us", type=int, metavar="US", help="poll this long before sleeping (config: broker.spin_us)"
    )
    parser.add_argument("--lifeline", action="store_true", help="end when stdin does (the starter died)")
    parser.add_argument(
        "--report",
        action="store_true",
        help="an error that ends it goes to stdout, as [code, text] in JSON",
    )
    parser.add_argument("--remove-folder", action="store_true", help="remove the yard's folder at the end")
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what went wrong")
    arguments = parser.parse_args(argv)
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
                _named("--model", arguments.model),
                arguments.max_batch,
                arguments.models_root,
                _signatures(arguments.signature),
                arguments.load_python,
            )
        if arguments.spin_us is not None:
            config = replace(config, spin_ns=max(0, min(arguments.spin_us, configuration.SPIN_US_MAX)) * 1000)
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
    with endpoints.claim(endpoint, keys):
        core = Core(config, secrets.randbits(62), os.getpid())
        loop = Loop(endpoint, core, config, keys)
        try:
            # No exception: one that is raised in a destructor would be lost, and the signal with it.
            signal.set_wakeup_fd(loop.wake_fd, warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: loop.stop())
            if arguments.lifeline:
                lifeline.hold(lambda: os.kill(os.getpid(), signal.SIGTERM))
            # What lives now lives to the end; and nothing here makes cycles, so a collection would
            # only be a pause in some request's latency.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 50, 1000)
            log.info("serving %s at %s", ", ".join(config.models), endpoint.url)
            loop.run()
        finally:
            signal.set_wakeup_fd(-1)
            loop.close()
    if arguments.remove_folder and endpoint.folder is not None:
        shutil.rmtree(endpoint.folder, ignore_errors=True)


def _named(option: str, pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise configuration.ConfigError(option, (f"expected NAME=..., found {pair!r}",))
        found[name] = value
    return found


def _signatures(pairs: list[str]) -> dict[str, Signature]:
    found = {}
    for name, text in _named("--signature", pairs).items():
        try:
            found[name] = msgspec.json.decode(text, type=Signature)
        except msgspec.MsgspecError as error:
            raise configuration.ConfigError("--signature", (f"{name}: {error}",)) from None
    return found


if __name__ == "__main__":
    sys.exit(main())
