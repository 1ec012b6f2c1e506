"""What the command line says of a fleet: nodes, shares, tokens. Pure, but for the files that hold tokens."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from ...transport.arguments import PORT_MAX, whole
from ...transport.errors import InvalidRequest

PORT = 8000


@dataclass(frozen=True)
class Node:
    """A gateway; gRPC is at the port after HTTP's, as a gateway has it."""

    host: str
    port: int = PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass
class Fleet:
    """`shares`: percent of all requests, by canary. `tokens`: by node. `models`: what a node serves, if not
    all that the fleet does. `ca`: the authority of the nodes' certificates; None: they are asked without TLS.
    """

    nodes: list[Node]
    shares: dict[Node, int] = field(default_factory=dict)
    mirror: Node | None = None
    tokens: dict[Node, str] = field(default_factory=dict)
    once: list[str] = field(default_factory=list)
    models: dict[Node, list[str]] = field(default_factory=dict)
    ca: Path | None = None

    @property
    def apart(self) -> list[str]:
        """The models that only some nodes serve."""
        return sorted({model for models in self.models.values() for model in models})

    def serves(self, node: Node, model: str) -> bool:
        """Whether requests for this model may go to this node."""
        return node not in self.models or model in self.models[node]

    @property
    def all(self) -> list[Node]:
        """Every node that is asked something."""
        return [*self.nodes, *self.shares, *([self.mirror] if self.mirror else [])]


def node(text: str) -> Node:
    """HOST, HOST:PORT, or an IPv6 address in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(character in host for character in "/=@ "):
        raise argparse.ArgumentTypeError(f"expected HOST[:PORT], found {text!r}")
    return Node(host, whole(port, f"a port below {PORT_MAX}", most=PORT_MAX - 1))


def share(text: str) -> tuple[Node, int]:
    """HOST[:PORT]=PERCENT."""
    where, _, percent = text.rpartition("=")
    if not where:
        raise argparse.ArgumentTypeError(f"expected HOST[:PORT]=PERCENT, found {text!r}")
    return node(where), whole(percent, "a share of 1 to 99 percent", most=99)


def served(text: str) -> tuple[Node, list[str]]:
    """HOST[:PORT]=MODEL[,MODEL...]."""
    where, _, names = text.partition("=")
    models = names.split(",")
    if not where or not all(models):
        raise argparse.ArgumentTypeError(f"expected HOST[:PORT]=MODEL[,MODEL...], found {text!r}")
    return node(where), models


def fleet(options: argparse.Namespace) -> Fleet:
    """Raises InvalidRequest for nodes that contradict each other, and OSError for a token's file."""
    mirror: Node | None = options.mirror
    made = Fleet(options.node, dict(options.split), mirror, once=options.once, ca=options.node_ca)
    if len(set(made.all)) < len(made.all):
        raise InvalidRequest("a node is named twice: it is one of --node, --split and --mirror")
    if sum(made.shares.values()) > 99:
        raise InvalidRequest("the shares of --split leave nothing for --node")
    for each, models in options.models:
        if each not in made.nodes and each not in made.shares:
            raise InvalidRequest(f"--models names {each}, which is neither a --node nor a --split")
        made.models.setdefault(each, []).extend(models)
    for text in options.token:
        where, _, file = text.rpartition("=")
        token = token_in(Path(file))
        for each in made.all if not where else [node(where)]:
            if each not in made.all:
                raise InvalidRequest(f"--token names {each}, which is no node")
            made.tokens[each] = token
    without = [str(each) for each in made.all if each not in made.tokens]
    if made.tokens and without:
        raise InvalidRequest(f"no token for {', '.join(without)}: all nodes have one, or none has")
    return made


def token_in(file: Path) -> str:
    """A file's token. Raises InvalidRequest for what can't stand in a header."""
    token = file.read_text(encoding="utf-8").strip()
    if not token or not token.isascii() or not token.isprintable() or any(c in token for c in ' "%'):
        raise InvalidRequest(f"{file} holds no token: printable ASCII without spaces, quotes, and %")
    return token
