"""Which Python functions the broker enters for one request; calls.py counts every process, and names none of it.

`python -m batchyard.tests.campaigns.broker_calls [--requests N] [--top N]`. A broker on a thread of its own, with real
unix sockets, one client and one worker that only speak the protocol; one request in flight. Functions are
counted by `sys.setprofile` on the broker's thread alone, so times are not: it slows what it counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchyard.broker import config as configuration
from batchyard.broker.core import Core
from batchyard.broker.server import Server
from batchyard.transport import codec, endpoints, segments
from batchyard.transport import messages as m
from batchyard.transport.tensors import Slot, Tensor, TensorSpec
from batchyard.transport.wire import Bounds, Connection, carrier

EPOCH = 7
WARM = 50  # requests before the count begins
BOUNDS = Bounds(1 << 20, 64)
PATIENCE_MS = 10_000
SPEC = [TensorSpec("x", 1, ["n", 4])]
LOADED = m.Loaded("net", 1, SPEC, SPEC, True, "", 8, "cpu", "", {1: 10_000, 8: 20_000})


def hear(connection: Connection, decoder: codec.Decoder[Any], kind: type) -> Any:
    """The next message of this kind."""
    while True:
        parts = connection.receive(PATIENCE_MS)
        assert parts is not None, f"no {kind.__name__} came"
        for message in decoder.decode(parts[0]):
            if isinstance(message, kind):
                return message


def count(requests: int) -> Counter[str]:
    """Functions entered by the broker, by name, in all of these requests."""
    entered: Counter[str] = Counter()
    counting = threading.Event()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and counting.is_set():
            code = frame.f_code
            entered[f"{Path(code.co_filename).name}:{code.co_qualname}"] += 1

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.onnx").touch()
        endpoint = endpoints.Endpoint.parse(f"ipc://{folder}/yard")
        config = replace(configuration.from_models({"net": f"{folder}/net.onnx"}, 8), spin_ns=0)
        with endpoints.claim(endpoint, None):
            server: Any = Server(endpoint, Core(config, EPOCH, os.getpid()), config, None)

            def serve() -> None:
                sys.setprofile(profile)
                server.run()

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                talk(endpoint, requests, counting)
            finally:
                counting.clear()
                server.stop()
                os.write(server.wake_fd, b"\0")
                thread.join()
                server.close()
    return entered


def talk(endpoint: endpoints.Endpoint, requests: int, counting: threading.Event) -> None:
    """One client and one worker, both on this thread."""
    wire = carrier(endpoint)
    worker = wire.connect(endpoint.workers, BOUNDS)
    worker.send([codec.encode([m.Register(os.getpid(), ["cpu"])])])
    hear(worker, codec.broker_to_worker, m.Load)
    worker.send([codec.encode([LOADED])])
    segment = segments.create(1 << 16)
    client = wire.connect(endpoint.clients, BOUNDS)
    client.send([codec.encode([m.Hello(segment.handle, "calls"), m.Describe(1, "net")])])
    hear(client, codec.broker_to_client, m.Described)
    for number in range(1, WARM + requests + 1):
        if number == WARM + 1:
            counting.set()
        submit = m.Submit(number, "net", 2, 0, [Tensor(1, [1, 4], 0)], [Slot(64, 16)])
        client.send([codec.encode([submit])])
        batch = hear(worker, codec.broker_to_worker, m.LentBatch)
        worker.send([codec.encode([m.Done(EPOCH, batch.batch, 100, 5_000, 100, 32, [])])])
        hear(client, codec.broker_to_client, m.Completed)
    counting.clear()
    for each in (client, worker):
        each.close()
    segment.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--top", type=int, default=0, help="show so many functions by how often they are entered")
    options = parser.parse_args()
    entered = count(options.requests)
    print(f"{sum(entered.values()) / options.requests:.1f} Python functions entered for one request")
    for name, times in entered.most_common(options.top):
        print(f"{times / options.requests:8.2f}  {name}")


if __name__ == "__main__":
    main()
