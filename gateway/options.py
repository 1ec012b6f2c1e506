"""The gateway's options: one table for its command line, for that of `up`, and for [gateway] in a
batchyard.toml.

Owns what must hold before anything listens (`check`). Loads no server.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .. import InvalidRequest
from ..transport.arguments import PORT_MAX, add_process, add_yard, notice, whole

PORT = 8000
PORT_VARIABLE = "BATCHYARD_GATEWAY_PORT"
TOKEN_VARIABLE = "BATCHYARD_GATEWAY_TOKEN"
TOKEN_CHARS_MIN = 16
METAVARS = {"port": "PORT", "count": "N", "text": "HOST", "notice": "S"}
COUNT_MAX = 1 << 20  # MiB, requests, seconds
EXAMPLES = """examples:
  python -m batchyard.gateway
  python -m batchyard.gateway --port 9000 --grpc-port 0
  BATCHYARD_GATEWAY_TOKEN=... python -m batchyard.gateway --host 0.0.0.0
  curl -d '{"data": [[0.5, 1.5]]}' -H 'Content-Type: application/json' localhost:8000/predict"""


@dataclass(frozen=True, slots=True)
class Option:
    """`kind`: port, count (from 1), notice (seconds), flag, text, file, choice of `choices`, or folders (by a
    model's name). `key`: in batchyard.toml."""

    name: str
    kind: str
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    key: str = ""

    @property
    def toml(self) -> str:
        return self.key or self.name

    def flag(self, prefix: str = "") -> str:
        return f"--{prefix}{self.name.replace('_', '-')}"


OPTIONS = (
    Option("host", "text", "address to listen at (%(default)s); any other needs a token", "127.0.0.1"),
    Option("port", "port", f"HTTP port (default: ${PORT_VARIABLE}, else {PORT})"),
    Option("grpc_port", "port", "gRPC port (default: the one after the HTTP port; 0: no gRPC)"),
    Option("token_file", "file", f"a file with the token (default: ${TOKEN_VARIABLE})", metavar="FILE"),
    Option("tls_cert", "file", "TLS over HTTP and gRPC: a PEM file with the certificate and its chain",
           metavar="FILE"),
    Option("tls_key", "file", "a PEM file with the certificate's key, not encrypted", metavar="FILE"),
    Option("shared_memory", "flag", "let clients on this machine register shared memory", False),
    Option("model_control", "flag", "let clients load and unload models", False),
    Option("arena_mib", "count", "shared memory for tensors in flight, in MiB (%(default)s)", 256),
    Option("body_mib", "count", "largest body, in MiB (%(default)s)", 64),
    Option("requests", "count", "most requests in flight (%(default)s)", 1024),
    Option("ready", "choice", "when health/ready says yes: all models can be served, or any (%(default)s)",
           "all", ("all", "any")),
    Option("notice", "notice", "when stopped, be not ready for S seconds before requests are refused "
           "(%(default)s)", 2, key="notice_seconds"),
    Option("text_model", "folders", "answer /v1/embeddings, /embed and /rerank with this model; FOLDER has "
           "its tokenizer.json", metavar="NAME=FOLDER", key="text_models"),
    Option("job_ttl", "count", "seconds that job results are kept (%(default)s)", 300, metavar="S",
           key="job_ttl_seconds"),
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m batchyard.gateway",
        description="REST jobs and the Open Inference Protocol (HTTP and gRPC) for a yard.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_yard(made)
    for option in OPTIONS:
        _add(made, option)
    made.set_defaults(port=os.environ.get(PORT_VARIABLE, str(PORT)))
    add_process(made)
    return made


def add_to(other: argparse._ActionsContainer, prefix: str, without: Sequence[str] = ()) -> None:
    """Every option under a prefix; what is not given is None there."""
    for option in OPTIONS:
        if option.name not in without:
            _add(other, option, prefix)


def _add(to: argparse._ActionsContainer, option: Option, prefix: str = "") -> None:
    default = None if prefix else option.default
    text = option.help
    if prefix:
        text = text.replace("%(default)s", str(option.default))
    how: dict[str, Any] = {"default": default, "help": text}
    if option.kind == "flag":
        how["action"] = "store_true"
    else:
        how["type"] = KINDS.get(option.kind, str)
        how["choices"] = option.choices or None
        how["metavar"] = option.metavar or METAVARS.get(option.kind)
    if option.kind == "folders":
        how |= {"action": "append", "default": None if prefix else []}
    to.add_argument(option.flag(prefix), **how)


def arguments(values: Mapping[str, Any]) -> list[str]:
    """Values by the options' names, as the gateway's command line."""
    line: list[str] = []
    for option in OPTIONS:
        value = values.get(option.name)
        if value is None or value is False:
            continue
        if option.kind == "folders":
            for name, folder in value:
                line += [option.flag(), f"{name}={folder}"]
        else:
            line += [option.flag()] if option.kind == "flag" else [option.flag(), str(value)]
    return line


def token_of(file: Path | None) -> str | None:
    """The token from a file or the environment. Raises InvalidRequest if it can be guessed, and OSError."""
    token = file.read_text(encoding="utf-8").strip() if file is not None else os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    if len(token) < TOKEN_CHARS_MIN or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest(
            f"the token has {TOKEN_CHARS_MIN} or more printable ASCII characters and no spaces; "
            "one comes of: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def check(options: argparse.Namespace, token: str | None) -> None:
    """Raises InvalidRequest if the options are unsafe."""
    loopback = is_loopback(options.host)
    if not loopback and token is None:
        raise InvalidRequest(
            f"listening at {options.host} requires a token, by --token-file or {TOKEN_VARIABLE}: "
            "other machines can reach it"
        )
    if options.shared_memory and not loopback:
        raise InvalidRequest("--shared-memory is for clients on this machine: only with a loopback --host")
    if options.shared_memory and sys.platform != "linux":
        raise InvalidRequest("--shared-memory is for Linux: it opens clients' memory in /dev/shm")
    _check_certificate(options.tls_cert, options.tls_key)


def _check_certificate(cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        raise InvalidRequest("--tls-cert and --tls-key go together: a certificate and its key, in PEM")
    if cert is None:
        return
    import ssl

    for file in (cert, key):
        cast(Path, file).read_bytes()  # ssl's own error does not name it
    try:
        # A password: else ssl asks for it at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise InvalidRequest(f"{cert} and {key} are no certificate and its key in PEM: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether every address of a host name is this machine's own. Raises InvalidRequest for a name that is
    none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidRequest(f"{host!r} is no address to listen at: {error.strerror}") from None
    addresses = {str(entry[4][0]) for entry in found}
    return all(address == "::1" or address.startswith("127.") for address in addresses)


def _count(text: str) -> int:
    return whole(text, "a whole number of 1 or more", most=COUNT_MAX)


def _folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not name or not separator or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, found {text!r}")
    return name, Path(folder)


def _port(text: str) -> int:
    return whole(text, "a port", least=0, most=PORT_MAX)


KINDS: Mapping[str, Callable[[str], Any]] = {
    "port": _port, "count": _count, "file": Path, "folders": _folder, "notice": notice,
}  # fmt: skip
