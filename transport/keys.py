"""CURVE keys: which clients may talk to a yard that listens beyond this machine.

Owns the key folder and the socket options made of it. CURVE alone is encryption only: without a
ZAP handler libzmq lets any key in. So servers name a ZAP domain, enforce it, and `Zap` holds
the list of admitted keys.

    server.key            the yard's public key: clients and workers need it
    server.key_secret     the yard's secret key: stays with the yard
    client.key            this client's public key
    client.key_secret     this client's secret key
    authorized/*.key      public keys that the yard lets in, read when it starts

A client on another machine has a folder with server.key and its own client.key and
client.key_secret; its client.key lies in the yard's authorized/.
"""

from __future__ import annotations

import os
import shlex
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq
import zmq.auth
import zmq.utils.z85

from .errors import Unauthorized

ZAP_DOMAIN = b"batchyard"
END_ADDRESS = "inproc://batchyard.zap.end"


class KeyFolder:
    """The keys in one folder (layout: above). Reads them on use."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.authorized = self.path / "authorized"

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> KeyFolder:
        """Make a folder (0700) with a server's and a client's pair (secrets 0600), the client admitted.

        Never overwrites: Unauthorized when the folder holds a key already.
        """
        keys = cls(path)
        keys.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys.path.chmod(0o700)  # before a secret is written: create_certificates follows the umask
        existing = [name for name in ("server", "client") if (keys.path / f"{name}.key_secret").exists()]
        if existing:
            names = ", ".join(existing)
            raise Unauthorized(f"{keys.path} holds keys already ({names}); they are not replaced")
        for name in ("server", "client"):
            _, secret = zmq.auth.create_certificates(keys.path, name)
            os.chmod(secret, 0o600)
        keys.authorized.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(keys.path / "client.key", keys.authorized / "client.key")
        return keys

    def authorized_keys(self) -> frozenset[bytes]:
        """The public keys that are let in; Unauthorized when there is none."""
        try:
            certificates = zmq.auth.load_certificates(self.authorized)
        except (OSError, ValueError) as error:
            raise Unauthorized(f"the admitted keys cannot be read: {error}") from error
        if not certificates:
            raise Unauthorized(f"{self.authorized} holds no *.key: copy the public keys of clients there")
        return frozenset(certificates)

    def server_socket_options(self) -> Mapping[int, bytes | int]:
        """Set on a listening socket before it binds."""
        public, secret = self._load("server.key_secret")
        return {
            zmq.CURVE_SERVER: 1,
            zmq.CURVE_PUBLICKEY: public,
            zmq.CURVE_SECRETKEY: secret,
            zmq.ZAP_DOMAIN: ZAP_DOMAIN,
            zmq.ZAP_ENFORCE_DOMAIN: 1,  # without a handler no client is admitted, instead of every client
        }

    def client_socket_options(self) -> Mapping[int, bytes | int]:
        """Set on a connecting socket before it connects."""
        public, secret = self._load("client.key_secret")
        server_public, _ = self._load("server.key")
        return {
            zmq.CURVE_SERVERKEY: server_public,
            zmq.CURVE_PUBLICKEY: public,
            zmq.CURVE_SECRETKEY: secret,
        }

    def apply_server(self, socket: zmq.Socket[Any]) -> None:
        """Make `socket` admit only authorized keys. Before bind; `Zap` comes before that."""
        for option, value in self.server_socket_options().items():
            socket.setsockopt(option, value)

    def apply_client(self, socket: zmq.Socket[Any]) -> None:
        """Give `socket` this client's keys and the yard's public key. Before connect."""
        for option, value in self.client_socket_options().items():
            socket.setsockopt(option, value)

    def _load(self, name: str) -> tuple[bytes, bytes]:
        """(public, secret) of one file; the secret is empty in a public file."""
        path = self.path / name
        try:
            mode = path.stat().st_mode
            public, secret = zmq.auth.load_certificate(path)
        except (OSError, ValueError) as error:
            raise Unauthorized(
                f"no usable key in {path} ({getattr(error, 'strerror', None) or error}); "
                f"`batchyard keys create {shlex.quote(str(self.path))}` makes a pair"
            ) from error
        if name.endswith("_secret"):
            if not secret:
                raise Unauthorized(f"{path} holds no secret key")
            if os.name == "posix" and mode & 0o077:
                raise Unauthorized(f"others may read {path}: run `chmod 600 {shlex.quote(str(path))}`")
        return public, secret or b""


class Zap:
    """A context's one ZAP handler (https://rfc.zeromq.org/spec/27/): it lets in `keys.authorized` alone.

    Made before the first bind. It reads the list once: a new key needs a new start. Raises Unauthorized when
    the list is empty or unreadable. Our own, because pyzmq's runs an asyncio loop, whose Windows kind needs
    tornado.
    """

    def __init__(self, context: zmq.Context[Any], keys: KeyFolder) -> None:
        self._admitted = frozenset(zmq.utils.z85.decode(key) for key in keys.authorized_keys())
        # Both are bound here, so that the first connection finds the handler.
        self._socket = context.socket(zmq.REP)
        self._end, end = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        for socket in (self._socket, self._end, end):
            socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        end.bind(END_ADDRESS)
        self._end.connect(END_ADDRESS)
        self._thread = threading.Thread(target=self._serve, args=(end,), name="batchyard-zap", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more: nobody else is let in. Idempotent."""
        if not self._end.closed:
            self._end.send(b"")
            self._thread.join()
            self._end.close()

    def _serve(self, end: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(end, zmq.POLLIN)
        while end not in dict(poller.poll()):
            request = self._socket.recv_multipart()
            self._socket.send_multipart(self._answer(request))
        end.close()
        self._socket.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """[version, request, status, text, user, metadata] to
        [version, request, domain, address, identity, mechanism, public key]."""
        is_admitted = (
            len(request) == 7
            and request[2] == ZAP_DOMAIN
            and request[5] == b"CURVE"
            and request[6] in self._admitted
        )
        status, text = (b"200", b"OK") if is_admitted else (b"400", b"this key is not admitted")
        return [b"1.0", request[1], status, text, b"", b""]
