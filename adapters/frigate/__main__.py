"""`batchyard frigate`, `python -m batchyard.adapters.frigate`: a detector for Frigate, until a signal.

0    done (Ctrl-C, SIGTERM)
1    it could not start, and stderr says why in one sentence
2    the command line is wrong
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import zmq

from ...client import AsyncClient, Operator, serve
from ...transport import lifeline
from ...transport.arguments import add_process, count
from ...transport.errors import BatchyardError, InvalidRequest
from . import endpoint
from .detections import KINDS
from .detector import Detector
from .messages import normalized_type
from .uploads import Uploads

TIMEOUT_MS = 200  # the plugin's own default
EXAMPLES = """examples:
  batchyard frigate --model yolo.onnx --model-type yolo-generic
  batchyard frigate --model yolo.onnx --model-type yolo-generic --endpoint tcp://127.0.0.1:5555
  batchyard frigate --model yolo --url ipc:///run/user/1000/batchyard   (a yard that runs already)"""

log = logging.getLogger("frigate")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal."""
    options = _parser().parse_args(argv)
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(level=level, format="frigate: %(message)s", stream=sys.stderr)
    try:
        _check(options)
        with ExitStack() as stack:
            asyncio.run(_serve(options, stack))
    except (BatchyardError, OSError) as error:
        print(f"frigate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises InvalidRequest for what would not be safe or could not be, EndpointInUse."""
    endpoint.check(options.endpoint, options.allow_remote)
    if options.model is None and not options.accept:
        raise InvalidRequest("name a --model, or --accept the SHA-256 of the one that Frigate sends")


async def _serve(options: argparse.Namespace, stack: ExitStack) -> None:
    folder = (options.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
    url, keys, name, file_name = options.url, options.keys, options.model or "", ""
    if options.model is None or _is_file(options.model):
        sources = {}
        if options.model is not None:
            path = Path(options.model).resolve()
            name, file_name = path.stem, path.name
            sources = {name: str(path)}
        folder.mkdir(parents=True, exist_ok=True)
        yard = stack.enter_context(
            serve(
                sources,
                workers=options.workers,
                threads=options.threads,
                provider=options.provider,
                models_root=folder,
            )
        )
        url, keys = yard.url, yard.keys
    operator = Operator(url, keys)

    async def load(model: str, file: str) -> None:
        known = {info.name for info in await client.models()}
        order = operator.swap if model in known else operator.load
        await asyncio.to_thread(order, model, folder / file)

    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    if os.name != "nt":
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, done.set)
    if options.lifeline:
        lifeline.hold(partial(_end, loop, done))
    uploads = Uploads(folder, options.accept)
    deadline_s = options.timeout_ms / 1000
    async with AsyncClient(url, keys=keys) as client:
        detector = Detector(client, name, options.model_type or "", deadline_s, file_name, uploads, load)
        if name:
            await client.wait_ready(name)
        with zmq.Context() as context, endpoint.bind(context, options.endpoint) as socket:
            log.info("serving %s to Frigate at %s", name or "what Frigate sends", options.endpoint)
            serving = asyncio.ensure_future(detector.serve(socket))
            await asyncio.wait([serving, asyncio.ensure_future(done.wait())], return_when="FIRST_COMPLETED")
            serving.cancel()
            await asyncio.wait([serving])
            if not serving.cancelled():
                serving.result()


def _end(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> None:
    loop.call_soon_threadsafe(done.set)


def _is_file(model: str) -> bool:
    """Whether --model means a file, not the name of a model that a yard serves already."""
    return model.endswith(".onnx") or os.sep in model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "batchyard frigate",
        description="Be Frigate's ZMQ detector (type: zmq), on whatever this machine runs models on.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", metavar="FILE|NAME", help="an ONNX file, or the name of a model that --url serves")
    kinds = "yolo-generic, yolonas, rfdetr, or dfine; default: as Frigate's frames say"
    add("--model-type", type=_model_type, metavar="TYPE", help=kinds)
    add("--endpoint", default=endpoint.DEFAULT, help="address in Frigate's configuration (%(default)s)")
    patience = "Frigate's request_timeout_ms: later frames are not run (%(default)s)"
    add("--timeout-ms", type=count, default=TIMEOUT_MS, metavar="MS", help=patience)
    add("--allow-remote", action="store_true", help="listen where other machines can reach it")
    add("--accept", action="append", default=[], metavar="SHA256", help="a model that Frigate may send")
    add("--models", type=Path, metavar="FOLDER", help="where such models are kept (default: until the end)")
    add("--workers", type=count, default=1, help="worker processes, for a FILE (%(default)s)")
    add("--threads", type=count, metavar="N", help="of each worker (default: cores divided by workers)")
    add("--provider", default="auto", help="webgpu, openvino, cpu, ... (default: the best that works)")
    add("--url", help="the yard that serves NAME (default: $BATCHYARD_URL, else this user's yard)")
    add("--keys", type=Path, metavar="FOLDER", help="CURVE keys, for a yard that has them")
    add_process(parser)
    return parser


def _model_type(text: str) -> str:
    if normalized_type(text) not in KINDS:
        raise argparse.ArgumentTypeError(f"expected yolo-generic, yolonas, rfdetr, or dfine, found {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
