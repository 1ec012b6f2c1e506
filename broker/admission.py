"""Bounds on the requests under way, of each client and of all, and the refusal beyond them.

Bounds are on what has been admitted and has not ended, waiting or running, because both hold memory.
A request that is expected to miss its deadline is refused at once: an answer in time that says when
to come back is worth more than a late one.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..transport.errors import BatchyardError, InvalidRequest, Overloaded
from .config import Limits
from .forecast import Forecast
from .models import Model
from .requests import Request
from .serving import Worker

# Of the yard's bounds, by priority: a queue that fills is closed for LOW first, and never full of it.
PERCENT = (100, 95, 90, 80)
RETRY_AFTER_MIN_NS = 1_000_000
FAR_FACTOR = 32  # OVERDUE_SHARE times CAUTION_MAX: even the least share of the time would do by then
FAR_NS = 2_000_000_000


def _share(bound: int, percent: int) -> int:
    """This percentage of a bound; all of it if less than 1 would be held back."""
    return bound * percent // 100 if bound * (100 - percent) >= 100 else bound


class Account:
    """The load of one client, over all its connections: those that share an arena."""

    __slots__ = ("nbytes", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.nbytes = 0


class ClientAccount:
    """A client's connection and its requests under way."""

    __slots__ = ("account", "arena", "held", "requests")

    def __init__(self, arena: int, account: Account) -> None:
        self.arena = arena
        self.account = account
        self.requests: dict[int, Request] = {}
        self.held: set[int] = set()  # requests that have ended while a worker may touch their slots


class Arena:
    """An arena: its size, its owner's account, and the counts that keep it open. `pinned`: the broker's own,
    for all connections that send frames."""

    __slots__ = ("account", "connections", "nbytes", "pinned", "requests")

    def __init__(self, nbytes: int, pinned: bool) -> None:
        self.nbytes = nbytes
        self.pinned = pinned
        self.account = Account()
        self.connections = 0
        self.requests = 0  # requests whose slots have not been released


class Admission:
    """The totals of all connections, held against the limits and against the workers' pace."""

    def __init__(self, limits: Limits, models: Mapping[str, Model], workers: Mapping[int, Worker]) -> None:
        self.rows = 0
        self.nbytes = 0
        self.slowest_row_ns = 0.0  # of all models; see Model.row_ns
        self._limits = limits
        self._rows_max = [_share(limits.queue_rows_max, percent) for percent in PERCENT]
        self._nbytes_max = [_share(limits.queue_bytes_max, percent) for percent in PERCENT]
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
        part = f"{PERCENT[priority]} % of " if priority else ""
        of_rows = f"{part}queue_rows_max = {limits.queue_rows_max:,}"
        of_bytes = f"{part}queue_bytes_max = {limits.queue_bytes_max:,}"
        bounds = (
            (of_rows, "rows", "the yard", self.rows, rows, self._rows_max[priority]),
            (of_bytes, "bytes", "the yard", self.nbytes, nbytes, self._nbytes_max[priority]),
            ("client_rows_max", "rows", "this client", account.rows, rows, limits.client_rows_max),
            ("client_bytes_max", "bytes", "this client", account.nbytes, nbytes, limits.client_bytes_max),
        )
        key, unit, who, has, more, most = next(bound for bound in bounds if bound[3] + bound[4] > bound[5])
        if more > most:  # later is no better
            least = min(bound[5] for bound in bounds if bound[1] == unit)
            return InvalidRequest(
                f"{more:,} {unit} exceed the {most:,} allowed ({key}); split the request into parts of at "
                f"most {least:,} {unit}"
            )
        # Time for half of the queue to drain.
        drain_ns = (self.forecast.finish_ns(model, rows, len(model.waiting) - 1, now_ns) - now_ns) // 2
        text = (
            f"too much is under way: {who} has {has:,} {unit}, and {more:,} more exceed the {most:,} allowed "
            f"({key})"
        )
        return Overloaded(text, max(RETRY_AFTER_MIN_NS, drain_ns) / 1e9)

    def add(self, connection: ClientAccount, request: Request) -> None:
        connection.requests[request.id] = request
        connection.account.rows += request.rows
        connection.account.nbytes += request.nbytes
        self.rows += request.rows
        self.nbytes += request.nbytes

    def add_together(self, connection: ClientAccount, request: Request, count: int) -> None:
        """So many requests like this one, which the connection has already, are under way and will run."""
        rows, nbytes = request.rows * count, request.nbytes * count
        connection.account.rows += rows
        connection.account.nbytes += nbytes
        self.rows += rows
        self.nbytes += nbytes
        self.forecast.asked_ns[request.priority] += rows * request.model.row_ns

    def queued(self, request: Request) -> None:
        """It is going to run. A request that waits for another's result, or has one already, is no work."""
        self.forecast.asked_ns[request.priority] += request.rows * request.model.row_ns

    def remove(self, connection: ClientAccount, request: Request) -> None:
        del connection.requests[request.id]
        self.subtract(connection.account, request.rows, request.nbytes)

    def subtract(self, account: Account, rows: int, nbytes: int) -> None:
        """Requests with these rows and bytes are no longer under way."""
        account.rows -= rows
        account.nbytes -= nbytes
        self.rows -= rows
        self.nbytes -= nbytes
