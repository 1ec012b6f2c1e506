"""`batchyard fleet`: render Envoy's configuration for many nodes, run it for a try, look at the nodes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ...transport import extras
from ...transport.arguments import port
from ...transport.errors import InvalidRequest
from ..arguments import order, parser
from . import envoy
from .nodes import Fleet, fleet, node, served, share, token_in
from .render import render
from .status import as_text, status

PORT = 8000
ADMIN_PORT = 9901
EXAMPLES = """\
  batchyard fleet render --node gpu1 --node gpu2:8000 --token node.token > envoy.yaml
  batchyard fleet render --node gpu1 --node gpu2 --split gpu3=10 --mirror gpu4 --check > envoy.yaml
  batchyard fleet render --node gpu1 --node gpu2 --models gpu2=whisper,resnet18 --once whisper > envoy.yaml
  batchyard fleet up --node 127.0.0.2 --node 127.0.0.3 --port 9000
  batchyard fleet status --node gpu1 --node gpu2 --token node.token --json"""


def examples(order: str = "") -> str:
    """The examples of an order, or all."""
    return "\n".join(["examples:", *(line for line in EXAMPLES.splitlines() if f"fleet {order}" in line)])


def main(argv: list[str]) -> int:
    """Return 0; `status` returns 1 where a node is not ready or nodes differ."""
    options = _parser().parse_args(argv)
    made = fleet(options)
    if options.order == "status":
        found = status(made)
        print(json.dumps(found, indent=2) if options.json else "\n".join(as_text(found)))
        good = all(entry["health"] == "ready" for entry in found["nodes"])
        return int(not good or bool(found["differ"] or found["missing"]))
    text = rendered(made, options)
    if options.order == "up":
        return _up(text, options)
    if options.check:
        envoy.check(text)
    sys.stdout.write(text)
    return 0


def rendered(made: Fleet, options: argparse.Namespace) -> str:
    """Raises InvalidRequest for a fleet that anybody could use."""
    extras.require("`batchyard fleet`", "yaml")
    client_token = None if options.client_token is None else token_in(options.client_token)
    if made.tokens and client_token is None and options.listen not in ("127.0.0.1", "::1", "localhost"):
        raise InvalidRequest(
            f"listening at {options.listen} with the nodes' tokens requires --client-token: whoever reaches "
            "the fleet could use them"
        )
    if (options.tls_cert is None) != (options.tls_key is None):
        raise InvalidRequest("--tls-cert and --tls-key go together: a certificate and its key, in PEM")
    certificate = None if options.tls_cert is None else (options.tls_cert, options.tls_key)
    ports = options.port, _grpc_port(options), options.admin_port
    return render(made, options.listen, *ports, client_token, certificate)


def _grpc_port(options: argparse.Namespace) -> int:
    given: int | None = options.grpc_port
    return int(options.port) + 1 if given is None else given


def _up(text: str, options: argparse.Namespace) -> int:
    with envoy.written(text) as file:
        http = "http" if options.tls_cert is None else "https"
        where = f"HTTP at {http}://{options.listen}:{options.port}, gRPC at port {_grpc_port(options)}"
        print(f"batchyard: {where}", flush=True)
        page = f"http://127.0.0.1:{options.admin_port}"
        print(f"batchyard: Envoy's own page at {page}; Ctrl-C ends it", flush=True)
        with subprocess.Popen(envoy.command(file)) as process:
            try:
                return process.wait()
            except BaseException:  # Ctrl-C, SIGTERM
                process.terminate()
                raise


def _parser() -> argparse.ArgumentParser:
    arguments = parser("fleet", "Many nodes behind one address, by Envoy.", examples())
    orders = arguments.add_subparsers(dest="order", metavar="ORDER", required=True)
    made = order(orders, "render", "print Envoy's configuration", examples("render"))
    made.add_argument("--check", action="store_true", help="let Envoy itself check it first")
    run = order(orders, "up", "run Envoy with that configuration until Ctrl-C", examples("up"))
    look = order(orders, "status", "show each node's health, load, and models", examples("status"))
    look.add_argument("--json", action="store_true", help="print JSON")
    for each in (made, run, look):
        _add_nodes(each)
    for each in (made, run):
        _add_listeners(each)
    return arguments


def _add_nodes(each: argparse.ArgumentParser) -> None:
    where = "a node's gateway; gRPC is at the port after it (repeatable; default port: 8000)"
    each.add_argument("--node", type=node, action="append", required=True, metavar="HOST[:PORT]", help=where)
    canary = "one more node, and its share of all requests (repeatable)"
    each.add_argument(
        "--split", type=share, action="append", default=[], metavar="HOST[:PORT]=PERCENT", help=canary
    )
    shadow = "a node that gets a copy of every request; nobody waits for its answers"
    each.add_argument("--mirror", type=node, metavar="HOST[:PORT]", help=shadow)
    has = "the only models that a node serves (repeatable; default: all)"
    each.add_argument(
        "--models", type=served, action="append", default=[], metavar="HOST[:PORT]=MODEL[,MODEL...]", help=has
    )
    tokens = "a file with the nodes' token, or with one node's (repeatable)"
    each.add_argument("--token", action="append", default=[], metavar="[HOST[:PORT]=]FILE", help=tokens)
    ca = "ask nodes by TLS only; their certificates are signed by this authority's, a PEM file"
    each.add_argument("--node-ca", type=Path, metavar="FILE", help=ca)
    once = "a model with `idempotent = false`: never asked again once it may have run (repeatable)"
    each.add_argument("--once", action="append", default=[], metavar="MODEL", help=once)


def _add_listeners(each: argparse.ArgumentParser) -> None:
    add = each.add_argument
    add("--listen", default="127.0.0.1", metavar="HOST", help="address that Envoy listens at (%(default)s)")
    add("--port", type=port, default=PORT, help="HTTP port (%(default)s)")
    add("--grpc-port", type=port, help="gRPC port (default: the one after the HTTP port)")
    add("--admin-port", type=port, default=ADMIN_PORT, help="Envoy's own page, on loopback (%(default)s)")
    for name, what in (("cert", "certificate"), ("key", "key")):
        add(f"--tls-{name}", type=Path, metavar="FILE", help=f"TLS for clients: a PEM file with the {what}")
    token = "a file with the token that clients send to the fleet"
    add("--client-token", type=Path, metavar="FILE", help=token)
