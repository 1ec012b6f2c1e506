"""The loop's sockets: a client that was waiting for the broker is there before the broker looks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import zmq
from batchyard.broker.config import YardConfig
from batchyard.broker.core import Core
from batchyard.broker.loop import Loop
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.endpoints import Endpoint
from zmq.utils.monitor import recv_monitor_message

PATIENCE_MS = 10_000


@pytest.mark.skipif(not zmq.has("ipc"), reason="no ipc here")
def test_a_client_that_connects_the_moment_the_broker_listens_is_welcome(tmp_path: Path) -> None:
    (tmp_path / "y").mkdir()
    endpoint = Endpoint.parse(f"ipc://{tmp_path}/y")
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        client.setsockopt(zmq.LINGER, 0)
        monitor: Any = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        monitor.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)

        class Slow(Loop):
            """Between its first address and whatever comes next there is time for a client."""

            @staticmethod
            def _bind(socket: Any, address: str) -> None:
                Loop._bind(socket, address)
                if address == endpoint.clients:
                    client.connect(address)
                    client.send(codec.encode([m.Hello(None, "the first")]))
                    recv_monitor_message(monitor)

        loop = Slow(endpoint, Core(YardConfig({}), 7, 4711), YardConfig({}), None)
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            (welcome,) = codec.broker_to_client.decode(client.recv())
        finally:
            loop.stop()
            client.send(codec.encode([m.Bye()]))  # so that it looks
            thread.join()
            loop.close()
            client.disable_monitor()
            monitor.close()
        assert isinstance(welcome, m.Welcome)
