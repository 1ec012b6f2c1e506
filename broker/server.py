"""One broker process: its sockets, its memory, and its loop, put together and taken apart again.

The order matters: a listener's connections may begin before the next one is bound, and every descriptor
that a client may not have is set aside first. loop.py says what happens in between.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from socket import socketpair

from ..transport import codec
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.keys import KeyFolder
from ..transport.wire import Bounds, Listener, carrier
from ..transport.wire.watch import Watch
from .arenas import Arenas
from .clients import FRAMES_MAX, Clients
from .config import YardConfig
from .core import Core
from .descriptors import raise_limit
from .loop import Loop
from .operators import Operators
from .workers import Workers

BOUNDS = Bounds(frame_bytes=m.INLINE_BYTES_MAX, parts=1 + FRAMES_MAX)
WORKER_BOUNDS = Bounds(m.ANSWER_BYTES_MAX, parts=1 + FRAMES_MAX, message_bytes=2 * m.ANSWER_BYTES_MAX)
ADMIN_BOUNDS = Bounds(frame_bytes=codec.PAYLOAD_BYTES_MAX, parts=1)  # no frames there


class _OnReady:
    """Calls a function when its descriptor is ready."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def ready(self, readable: bool, writable: bool) -> None:
        self._act()


class Server:
    """Binds the endpoint's three sockets. `run` serves until `stop`, or an exception; then `close`.

    `wake_fd`: a byte written to it, as `signal.set_wakeup_fd` does, ends the loop's sleep. `secret`: see
    transport/secret.py; over ipc the folder's mode admits operators.
    """

    def __init__(
        self, endpoint: Endpoint, core: Core, config: YardConfig, keys: KeyFolder | None, secret: str = ""
    ) -> None:
        self._watch = Watch()
        self._woken, self._wake = socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._watch.add(self._woken.fileno(), _OnReady(self._swallow))
        self.wake_fd = self._wake.fileno()
        descriptors_max = raise_limit()
        self._carrier = carrier(endpoint, keys, serves=True)
        self._listeners: list[Listener] = []
        frontend = self._listen(endpoint.clients, BOUNDS)
        backend = self._listen(endpoint.workers, WORKER_BOUNDS)
        admin = self._listen(endpoint.admin, ADMIN_BOUNDS)
        self._arenas = Arenas(descriptors_max, config.named_segments or sys.platform != "linux")
        clients = Clients(
            frontend,
            endpoint,
            self._arenas,
            core.models,
            core.counters,
            core.epoch,
            config.limits.clients_max,
            descriptors_max,
        )
        self._workers = Workers(backend, self._arenas, core.models, core.counters, secret)
        operators_secret = "" if endpoint.is_ipc else secret
        operators = Operators(admin, core.models, core.counters, config, operators_secret)
        self.loop = Loop(
            core,
            clients,
            self._workers,
            operators,
            self._arenas,
            self._watch.wait,
            config.spin_ns,
            config.stop_ns,
            config.notice_ns,
        )
        if self._workers.sentinels.fd is not None:
            self._watch.add(self._workers.sentinels.fd, _OnReady(self.loop.look_soon))

    def run(self) -> None:
        """Serve. Returns after `stop()`."""
        self.loop.run()

    def stop(self) -> None:
        """Make `run` return when all that was admitted is answered; told twice, at once. For signals."""
        self.loop.stop()

    def halt(self) -> None:
        """Make `run` return at once. From any thread."""
        self.loop.halt()
        self._wake.send(b"\0")

    def close(self) -> None:
        """Close every socket and arena. Workers and clients see the connection end."""
        self.loop.close()
        self._workers.sentinels.close()
        for listener in self._listeners:
            listener.close()
        self._carrier.close()
        self._watch.close()
        self._woken.close()
        self._wake.close()
        self._arenas.close_all()

    def _listen(self, address: str, bounds: Bounds) -> Listener:
        listener = self._carrier.listen(address, self._watch, bounds)
        self._listeners.append(listener)
        return listener

    def _swallow(self) -> None:
        try:
            self._woken.recv(4096)
        except BlockingIOError:
            pass
