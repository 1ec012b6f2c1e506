"""CURVE keys: who may speak to a yard that listens beyond this machine.

Owns the key folder and the socket options made of it. CURVE alone is encryption only: without a
ZAP handler libzmq lets any key in. So servers name a ZAP domain, enforce it, and `start_zap` holds
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

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
import zmq.auth

from .errors import Unauthorized

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

ZAP_DOMAIN = b"batchyard"


class KeyFolder:
    """The keys in one folder (layout: above). Reads them when they are asked for."""

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
        found = [name for name in ("server", "client") if (keys.path / f"{name}.key_secret").exists()]
        if found:
            raise Unauthorized(f"{keys.path} holds keys already ({', '.join(found)}); they are not replaced")
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
        """What a listening socket sets before it binds."""
        public, secret = self._load("server.key_secret")
        return {
            zmq.CURVE_SERVER: 1,
            zmq.CURVE_PUBLICKEY: public,
            zmq.CURVE_SECRETKEY: secret,
            zmq.ZAP_DOMAIN: ZAP_DOMAIN,
            zmq.ZAP_ENFORCE_DOMAIN: 1,  # without a handler nobody is let in, instead of everybody
        }

    def client_socket_options(self) -> Mapping[int, bytes | int]:
        """What a connecting socket sets before it connects."""
        public, secret = self._load("client.key_secret")
        server_public, _ = self._load("server.key")
        return {
            zmq.CURVE_SERVERKEY: server_public,
            zmq.CURVE_PUBLICKEY: public,
            zmq.CURVE_SECRETKEY: secret,
        }

    def apply_server(self, socket: zmq.Socket[Any]) -> None:
        """Make `socket` admit only authorized keys. Before bind; `start_zap` comes before that."""
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
                f"no usable key in {path} ({error}); "
                f"`batchyard keys create {shlex.quote(str(self.path))}` makes a pair"
            ) from error
        if name.endswith("_secret"):
            if not secret:
                raise Unauthorized(f"{path} holds no secret key")
            if os.name == "posix" and mode & 0o077:
                raise Unauthorized(f"others may read {path}: run `chmod 600 {shlex.quote(str(path))}`")
        return public, secret or b""


def start_zap(context: zmq.Context[Any], keys: KeyFolder) -> ThreadAuthenticator:
    """Start the context's one ZAP handler, which lets in `keys.authorized` alone; `stop()` ends it.

    Call before the first bind. The list is read once: a new key needs a new start. Raises
    Unauthorized when the list is empty or unreadable (pyzmq would only log that).
    """
    keys.authorized_keys()
    if sys.platform == "win32" and importlib.util.find_spec("tornado") is None:
        # pyzmq's handler runs an asyncio loop, whose Windows kind cannot watch sockets alone: the
        # thread would die unseen, and every client would wait for ever.
        raise Unauthorized("CURVE on Windows needs one more package: pip install 'tornado>=6.1'")
    from zmq.auth.thread import ThreadAuthenticator  # brings asyncio: only servers pay for it

    authenticator = ThreadAuthenticator(context)
    # The admitted keys come first: from the moment of start() on, answers are given.
    authenticator.configure_curve(domain=ZAP_DOMAIN.decode(), location=str(keys.authorized))
    authenticator.start()
    return authenticator
