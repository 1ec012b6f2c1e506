"""A web application whose worker processes share one yard: the model is loaded once, and requests that
come to different workers share batches.

    batchyard up --config examples/batchyard.toml                      # in another shell
    gunicorn --workers 4 --preload examples.programs.web:application   # or any other server of WSGI
    python examples/programs/web.py                                    # or without: four processes of its own

    curl localhost:8080 -d "[$(python -c 'print(*[0, 0, 5, 13, 9, 1, 0, 0] * 8, sep=",")')]"
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import batchyard
import numpy as np

PORT = int(os.environ.get("PORT", "8080"))
PROCESSES = 4
BODY_BYTES_MAX = 1 << 16

# Connects at its first request. A process that is forked from one that has used it begins anew by itself, so
# it may be made before the fork; and every thread of a worker may use it.
client = batchyard.Client()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A scan's 64 pixels as JSON, 0 to 16, to the digit that it shows."""
    status = "200 OK"
    answer: dict[str, Any]
    try:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        pixels = np.array(json.loads(environ["wsgi.input"].read(min(size, BODY_BYTES_MAX))), np.float32)
        logits: Any = client.infer("digits", pixels.reshape(1, 1, 8, 8) / 16, deadline=1.0)
        answer = {"digit": int(logits.argmax()), "process": os.getpid()}
    except batchyard.Overloaded as error:
        status, answer = "503 Service Unavailable", {"error": str(error)}
    except ValueError:
        status, answer = "400 Bad Request", {"error": "expected a list of 64 numbers"}
    except batchyard.BatchyardError as error:
        status, answer = "500 Internal Server Error", {"error": str(error)}
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing for every request."""


class Shared(WSGIServer):
    """Takes connections of a socket that all processes have."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.getsockname(), Quiet, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()
        self.setup_environ()
        self.set_app(application)


def prefork(listening: socket.socket, processes: int) -> list[int]:
    """Fork processes that serve until they are told to stop; their numbers."""
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: os._exit(0))
            Shared(listening).serve_forever()
        pids.append(pid)
    return pids


def end(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGTERM)


def main() -> None:
    with socket.create_server(("127.0.0.1", PORT)) as listening:
        pids = prefork(listening, PROCESSES)
        signal.signal(signal.SIGTERM, lambda number, _: end(pids))
        print(f"{PROCESSES} processes answer at http://127.0.0.1:{PORT}; Ctrl-C ends them", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for pid in pids:
                os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
