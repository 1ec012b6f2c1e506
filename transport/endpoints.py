"""Endpoints: where a yard listens, and the claim that it is the only one there.

Owns the reading of yard URLs and the yard folder:

    ipc:///run/user/1000/batchyard    a folder (0700): sockets clients, workers, admin; file lock
    tcp://127.0.0.1:7070              clients on 7070, workers on 7071, admin on 7072

Opens no ZeroMQ socket. A second bind on an ipc path steals it silently, so whoever binds holds a
`Claim` first: an flock on the folder's lock file, which the kernel drops when the holder dies.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shlex
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import zmq

from .errors import EndpointInUse, InvalidRequest, Unauthorized, shown

if TYPE_CHECKING:
    from .keys import KeyFolder

URL_VARIABLE = "BATCHYARD_URL"
DEFAULT_TCP_URL = "tcp://127.0.0.1:7070"
PORT_MAX = 65533  # two more ports follow
SOCKETS = ("clients", "workers", "admin")
LOCK_FILE = "lock"
# sockaddr_un holds 108 bytes with the closing zero on Linux, 104 on macOS and the BSDs.
SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103

LAST_RESORT = "/tmp"
RANDOM_CHARACTERS = 8  # of such a folder's name
_ANOTHER = "use another address (--url ipc:///tmp/other; in Python, url=)"
_ALLOWED = "a yard URL is ipc:///absolute/folder or tcp://host:port"


@dataclass(frozen=True)
class Endpoint:
    """A yard's address. `clients`, `workers` and `admin` are addresses for ZeroMQ.

    `folder` is the yard folder of an ipc endpoint. `is_loopback` is True when no other machine can
    reach it: always for ipc, and for 127.0.0.0/8, ::1 and localhost.
    """

    url: str
    scheme: str
    clients: str
    workers: str
    admin: str
    is_loopback: bool
    folder: Path | None = None

    @property
    def is_ipc(self) -> bool:
        return self.scheme == "ipc"

    @property
    def is_ipv6(self) -> bool:
        """True when the sockets need the option IPV6."""
        return self.clients.startswith("tcp://[")

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read a yard URL. Raises InvalidRequest with the mistake and the allowed forms."""
        if not isinstance(url, str):
            raise InvalidRequest(f"{shown(url)} is no yard URL: {_ALLOWED}")
        scheme, separator, rest = url.partition("://")
        if scheme == "ipc" and separator:
            return _parse_ipc(url, rest)
        if scheme == "tcp" and separator:
            return _parse_tcp(url, rest)
        raise InvalidRequest(f"{url!r} has no scheme that batchyard knows: {_ALLOWED}")


def _parse_ipc(url: str, path: str) -> Endpoint:
    if not zmq.has("ipc"):
        raise InvalidRequest(f"{url!r}: this system's ZeroMQ has no ipc; use {DEFAULT_TCP_URL}")
    if not path.startswith("/") or "\0" in path:
        raise InvalidRequest(f"{url!r} does not name an absolute folder: write ipc:///folder, three slashes")
    folder = os.path.normpath("/" + path.lstrip("/"))
    if not _is_short(folder):
        raise InvalidRequest(
            f"{url!r} is too long: a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes, this one "
            f"{_socket_path_bytes(folder)}; choose a shorter folder, such as ipc:///tmp/yard"
        )
    clients, workers, admin = (f"ipc://{folder.rstrip('/')}/{name}" for name in SOCKETS)
    return Endpoint(f"ipc://{folder}", "ipc", clients, workers, admin, True, Path(folder))


def _parse_tcp(url: str, rest: str) -> Endpoint:
    host, separator, port_text = rest.rpartition(":")
    if not separator or not host or (":" in host and not host.startswith("[")):
        raise InvalidRequest(f"{url!r} has no port: write tcp://host:port (an IPv6 host in [brackets])")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise InvalidRequest(f"{url!r}: {port_text!r} is no port; a port is a number from 1 to {PORT_MAX}")
    port = int(port_text)
    if not 1 <= port <= PORT_MAX:
        raise InvalidRequest(
            f"{url!r}: port {port} is not in 1 to {PORT_MAX}, the next two being ours as well"
        )
    if host == "localhost":
        host = "127.0.0.1"  # ZeroMQ cannot bind a name, and a hosts file could point it elsewhere
    elif host == "*":
        host = "0.0.0.0"  # the same for a bind, and the yard's own workers can connect to it
    is_loopback = _is_loopback(url, host)
    clients, workers, admin = (f"tcp://{host}:{port + step}" for step in range(3))
    return Endpoint(clients, "tcp", clients, workers, admin, is_loopback)


def _is_loopback(url: str, host: str) -> bool:
    bare = host
    if host.startswith("["):
        if not host.endswith("]"):
            raise InvalidRequest(f"{url!r}: the bracket around the IPv6 address is not closed")
        bare = host[1:-1]
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        pass
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-._")
    if host.startswith("[") or not set(host.lower()) <= allowed:
        raise InvalidRequest(f"{url!r}: {host!r} is neither an address nor a host name; {_ALLOWED}") from None
    return False  # a name: it may resolve to another address tomorrow


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """$BATCHYARD_URL; else this user's ipc folder; else (no ipc here) loopback tcp. Raises Unauthorized where
    another user has made that folder."""
    if environ.get(URL_VARIABLE):
        return environ[URL_VARIABLE]
    if sys.platform == "win32" or not zmq.has("ipc"):
        return DEFAULT_TCP_URL
    runtime_folder = os.path.abspath(environ.get("XDG_RUNTIME_DIR") or "/nowhere")
    if _is_usable(runtime_folder) and _is_short(f"{runtime_folder}/batchyard"):
        return f"ipc://{runtime_folder}/batchyard"
    name = f"batchyard-{os.getuid()}"
    places = [place for place in (_temporary(), LAST_RESORT) if _is_short(f"{place}/{name}")]
    folder = Path(places[0], name)
    if os.path.lexists(folder):  # anybody can make it, and would be sent our tensors
        check_private(folder)
    return f"ipc://{folder}"


def private_folder(note: Callable[[str], object] = str) -> str:
    """A new folder of mode 0700 for a yard of one program: where temporary files are made, or, where that
    has too long a name for sockets, in this user's runtime folder or in /tmp. `note` is called with its name
    before it is made. Raises InvalidRequest."""
    for place in (_temporary(), os.environ.get("XDG_RUNTIME_DIR") or LAST_RESORT, LAST_RESORT):
        folder = f"{place}/yard-{secrets.token_hex(RANDOM_CHARACTERS // 2)}"
        if _is_usable(place) and _is_short(folder):
            note(folder)
            os.mkdir(folder, 0o700)
            return folder
    raise InvalidRequest(
        f"there is no folder for the yard's sockets: {LAST_RESORT} can't be written, and TMPDIR is too long "
        "or can't be written either; give the yard a url=\"ipc:///a/short/folder\""
    )


def _temporary() -> str:
    """Where temporary files are made."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # not even here
        return LAST_RESORT


def _is_usable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _is_short(folder: str) -> bool:
    return _socket_path_bytes(folder) <= SOCKET_PATH_BYTES_MAX


def _socket_path_bytes(folder: str) -> int:
    return len(os.fsencode(folder)) + 1 + max(len(name) for name in SOCKETS)


def require_curve(
    endpoint: Endpoint, keys: KeyFolder | None, open_to_this_machine: bool = False
) -> None:
    """Unauthorized unless the endpoint is this user's alone, or `keys` list the admitted clients.
    `open_to_this_machine`: all users of this machine may be clients at a loopback address."""
    if endpoint.is_ipc or (endpoint.is_loopback and keys is None and open_to_this_machine):
        return
    if keys is None and endpoint.is_loopback:
        raise Unauthorized(
            f"refuses to start on {endpoint.url} without CURVE keys: every user of this machine could send "
            "requests there. Make keys with `batchyard keys create FOLDER` and run "
            "`batchyard up --keys FOLDER`, listen on ipc:///a/folder, or, if that is meant, pass "
            "--open-to-this-machine"
        )
    if keys is None:
        raise Unauthorized(
            f"refuses to start on {endpoint.url} without CURVE keys: everybody who reaches the port would be "
            "served. Make keys with `batchyard keys create FOLDER` and run `batchyard up --keys FOLDER`"
        )
    keys.server_socket_options()
    keys.authorized_keys()


class Claim:
    """The right to bind an endpoint's sockets, until `release()` or the end of the process."""

    def __init__(self, endpoint: Endpoint, lock_fd: int | None) -> None:
        self.endpoint = endpoint
        self._lock_fd = lock_fd

    def release(self) -> None:
        """Remove the socket files and let the lock go. The lock file stays: removing it would let
        two processes lock two files of one name. Idempotent."""
        if self._lock_fd is None:
            return
        assert self.endpoint.folder is not None
        _remove_sockets(self.endpoint.folder)
        os.ftruncate(self._lock_fd, 0)
        os.close(self._lock_fd)
        self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim(
    endpoint: Endpoint, keys: KeyFolder | None = None, open_to_this_machine: bool = False
) -> Claim:
    """Become the one process that binds `endpoint`; socket files that a dead one left are removed.

    Raises EndpointInUse (with the holder's pid), Unauthorized (the folder is another user's or
    open to others; a tcp address without keys: see `require_curve`). tcp needs no lock: the kernel
    refuses a second bind by itself.
    """
    require_curve(endpoint, keys, open_to_this_machine)
    if endpoint.folder is None:
        return Claim(endpoint, None)
    _make_private(endpoint.folder)
    lock_fd = _lock(endpoint, endpoint.folder / LOCK_FILE)
    try:
        _remove_sockets(endpoint.folder)
    except BaseException:
        os.close(lock_fd)
        raise
    return Claim(endpoint, lock_fd)


def _make_private(folder: Path) -> None:
    """Make `folder` with mode 0700, or check that it is ours alone."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not folder.parent.is_dir():
            text = f"{folder.parent} is a file, and no folder can be in it: {_ANOTHER}"
            raise InvalidRequest(text) from None
    except OSError as error:
        raise InvalidRequest(f"{folder} can't be made ({error.strerror}): {_ANOTHER}") from None
    check_private(folder)


def require_own(endpoint: Endpoint) -> None:
    """Unauthorized where what listens at `endpoint`, or will, is another user's. Root may go anywhere."""
    if endpoint.folder is None or os.geteuid() == 0:
        return
    try:
        owner = os.stat(endpoint.folder / LOCK_FILE).st_uid
    except FileNotFoundError:
        return  # no yard is there, and its folder can't be another's for long: see the wire's own check
    except OSError:
        raise Unauthorized(another_users(endpoint.url)) from None
    if owner not in (0, os.geteuid()):
        raise Unauthorized(another_users(endpoint.url))


def another_users(url: str) -> str:
    """The error text for a yard that this process may not enter, or should not trust."""
    return (
        f"the yard at {url} is another user's: this process runs as user {os.geteuid()}, and may not use it"
    )


def check_private(folder: Path) -> None:
    """Unauthorized unless `folder`, which exists, is a folder that this user alone can enter."""
    status = os.lstat(folder)  # not stat: in /tmp anybody can put a link of that name
    if not stat.S_ISDIR(status.st_mode):
        raise Unauthorized(f"{folder} is not a folder: remove it, or {_ANOTHER}")
    if status.st_uid != os.getuid():
        raise Unauthorized(
            f"{folder} belongs to user {status.st_uid}, and this process runs as user {os.getuid()}: "
            f"{_ANOTHER}"
        )
    if status.st_mode & 0o077:
        raise Unauthorized(
            f"{folder} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}): "
            f"run `chmod 700 {shlex.quote(str(folder))}`"
        )


def _lock(endpoint: Endpoint, path: Path) -> int:
    import fcntl  # absent on Windows, where there is no ipc either

    lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock_fd)
        raise EndpointInUse(
            f"a yard already runs at {endpoint.url} (process {holder}): stop it, or {_ANOTHER}"
        ) from None
    except BaseException:
        os.close(lock_fd)
        raise
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, b"%d\n" % os.getpid(), 0)
    return lock_fd


def holder(endpoint: Endpoint) -> int | None:
    """The pid of the process whose Claim holds an ipc endpoint (0: not known); None when nobody
    does, and for tcp, which has no lock. Shares the lock for a moment to ask."""
    if endpoint.folder is None:
        return None
    import fcntl

    try:
        lock_fd = os.open(endpoint.folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(lock_fd)


def _remove_sockets(folder: Path) -> None:
    for name in SOCKETS:
        path = folder / name
        try:
            is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
        except FileNotFoundError:
            continue
        if not is_socket:
            raise InvalidRequest(f"{path} is in the way and is no socket: a yard folder holds nothing else")
        path.unlink(missing_ok=True)
