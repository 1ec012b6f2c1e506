"""What may be under way at once, of each client and of all, and the refusal when that is too much.

Bounds are on what has been admitted and has not ended, waiting or running, because both hold memory.
"""

from __future__ import annotations

from ..transport.errors import Overloaded
from .config import Limits
from .lanes import Request
from .registry import Model

RETRY_AFTER_MIN_NS = 1_000_000


class Account:
    """What one client has under way, over all its connections: those that share an arena."""

    __slots__ = ("nbytes", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.nbytes = 0


class Connection:
    """A client's connection and its requests under way."""

    __slots__ = ("account", "arena", "requests")

    def __init__(self, arena: int, account: Account) -> None:
        self.arena = arena
        self.account = account
        self.requests: dict[int, Request] = {}


class Admission:
    """The totals of all connections, held against the limits."""

    def __init__(self, limits: Limits) -> None:
        self.rows = 0
        self.nbytes = 0
        self._limits = limits

    def check(self, account: Account, model: Model, rows: int, nbytes: int) -> None:
        """Raise Overloaded when so much more would pass a bound."""
        limits = self._limits
        if (
            self.rows + rows > limits.queue_rows_max
            or self.nbytes + nbytes > limits.queue_bytes_max
            or account.rows + rows > limits.client_rows_max
            or account.nbytes + nbytes > limits.client_bytes_max
        ):
            raise self._overloaded(account, model, rows, nbytes)

    def _overloaded(self, account: Account, model: Model, rows: int, nbytes: int) -> Overloaded:
        limits = self._limits
        bounds = (
            ("queue_rows_max", "the yard", self.rows, rows, limits.queue_rows_max),
            ("queue_bytes_max", "the yard", self.nbytes, nbytes, limits.queue_bytes_max),
            ("client_rows_max", "this client", account.rows, rows, limits.client_rows_max),
            ("client_bytes_max", "this client", account.nbytes, nbytes, limits.client_bytes_max),
        )
        key, who, has, more, most = next(bound for bound in bounds if bound[2] + bound[3] > bound[4])
        # Time for half of what is queued to drain, by the model's own pace.
        drain_ns = int(self.rows * model.row_ns / max(1, len(model.workers)) / 2)
        text = f"too much under way: {who} has {has}, {more} more would pass {key} = {most}"
        return Overloaded(text, max(RETRY_AFTER_MIN_NS, drain_ns) / 1e9)

    def add(self, connection: Connection, request: Request) -> None:
        """The request is under way."""
        connection.requests[request.id] = request
        connection.account.rows += request.rows
        connection.account.nbytes += request.nbytes
        self.rows += request.rows
        self.nbytes += request.nbytes

    def remove(self, connection: Connection, request: Request) -> None:
        """The request has ended."""
        del connection.requests[request.id]
        connection.account.rows -= request.rows
        connection.account.nbytes -= request.nbytes
        self.rows -= request.rows
        self.nbytes -= request.nbytes
