"""What may be under way at once, of each client and of all, and the refusal when that is too much.

Bounds are on what has been admitted and has not ended, waiting or running, because both hold memory.
A request that is expected to miss its deadline is refused at once: an answer in time that says when
to come back is worth more than a late one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from ..transport.errors import BatchyardError, InvalidRequest, Overloaded
from .config import Limits
from .forecast import Forecast
from .lanes import Request
from .registry import Model, Worker

# Of the yard's bounds, by priority: a queue that fills is closed for LOW first, and never full of it.
SHARES = (1.0, 0.95, 0.9, 0.8)
RETRY_AFTER_MIN_NS = 1_000_000
FAR_FACTOR = 32  # OVERDUE_SHARE times CAUTION_MAX: even what gets the least share would be through by then
FAR_NS = 2_000_000_000


class Account:
    """What one client has under way, over all its connections: those that share an arena."""

    __slots__ = ("nbytes", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.nbytes = 0


class Connection:
    """A client's connection and its requests under way."""

    __slots__ = ("account", "arena", "held", "requests")

    def __init__(self, arena: int, account: Account) -> None:
        self.arena = arena
        self.account = account
        self.requests: dict[int, Request] = {}
        self.held: set[int] = set()  # requests that have ended while a worker may touch their slots


class Admission:
    """The totals of all connections, held against the limits and against the workers' pace."""

    def __init__(self, limits: Limits, models: Mapping[str, Model], workers: Mapping[int, Worker]) -> None:
        self.rows = 0
        self.nbytes = 0
        self.slowest_row_ns = 0.0  # of all models; see Model.row_ns
        self._limits = limits
        self._rows_max = [ceil(limits.queue_rows_max * share) for share in SHARES]
        self._nbytes_max = [ceil(limits.queue_bytes_max * share) for share in SHARES]
        self.forecast = Forecast(models, workers)

    def check(
        self,
        account: Account,
        model: Model,
        rows: int,
        nbytes: int,
        priority: int,
        deadline_ns: int,
        now_ns: int,
    ) -> None:
        """Raise Overloaded when so much more would pass a bound, or would come too late.

        deadline_ns: time left; 0: no deadline.
        """
        limits = self._limits
        if (
            self.rows + rows > self._rows_max[priority]
            or self.nbytes + nbytes > self._nbytes_max[priority]
            or account.rows + rows > limits.client_rows_max
            or account.nbytes + nbytes > limits.client_bytes_max
        ):
            raise self._full(account, model, rows, nbytes, priority, now_ns)
        # A far deadline needs no forecast: even the slowest model would be through by then.
        if deadline_ns and self.rows and self.rows * self.slowest_row_ns * FAR_FACTOR > deadline_ns - FAR_NS:
            finish_ns = self.forecast.finish_ns(model, rows, priority, now_ns) - now_ns
            if finish_ns > deadline_ns:
                raise Overloaded(
                    f"{model.name!r} is expected to need {finish_ns / 1e6:.1f} ms for what comes before this "
                    f"request, and its deadline is in {deadline_ns / 1e6:.1f} ms",
                    max(RETRY_AFTER_MIN_NS, finish_ns - deadline_ns) / 1e9,
                )

    def _full(
        self, account: Account, model: Model, rows: int, nbytes: int, priority: int, now_ns: int
    ) -> BatchyardError:
        limits = self._limits
        part = f"{SHARES[priority]:.0%} of " if priority else ""
        bounds = (
            (f"{part}queue_rows_max", "the yard", self.rows, rows, self._rows_max[priority]),
            (f"{part}queue_bytes_max", "the yard", self.nbytes, nbytes, self._nbytes_max[priority]),
            ("client_rows_max", "this client", account.rows, rows, limits.client_rows_max),
            ("client_bytes_max", "this client", account.nbytes, nbytes, limits.client_bytes_max),
        )
        key, who, has, more, most = next(bound for bound in bounds if bound[2] + bound[3] > bound[4])
        if more > most:  # later is no better
            return InvalidRequest(f"one request of {more} is more than {key} = {most} allows: split it")
        # Time for half of what waits to drain.
        drain_ns = (self.forecast.finish_ns(model, rows, len(model.waiting) - 1, now_ns) - now_ns) // 2
        text = f"too much under way: {who} has {has}, {more} more would pass {key} = {most}"
        return Overloaded(text, max(RETRY_AFTER_MIN_NS, drain_ns) / 1e9)

    def add(self, connection: Connection, request: Request) -> None:
        """The request is under way."""
        connection.requests[request.id] = request
        connection.account.rows += request.rows
        connection.account.nbytes += request.nbytes
        self.rows += request.rows
        self.nbytes += request.nbytes

    def queued(self, request: Request) -> None:
        """It is going to be run. What waits for another's result, or has one already, asks for no work."""
        self.forecast.asked_ns[request.priority] += request.rows * request.model.row_ns

    def remove(self, connection: Connection, request: Request) -> None:
        """The request has ended."""
        del connection.requests[request.id]
        connection.account.rows -= request.rows
        connection.account.nbytes -= request.nbytes
        self.rows -= request.rows
        self.nbytes -= request.nbytes
