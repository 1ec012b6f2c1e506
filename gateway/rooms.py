"""What the gateway's endpoints share: the yard, the bounds, the jobs, the clients' regions, the figures."""

from __future__ import annotations

from dataclasses import dataclass

from .body import Budget
from .errors import invalid
from .jobs import Jobs
from .metrics import Metrics
from .regions import SHARED_MEMORY_OFF, Regions
from .yard import Yard


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the gateway; each has an answer of its own when it is reached."""

    body_bytes_max: int = 64 << 20  # 413
    json_bytes_max: int = 8 << 20  # 413: a number takes 30 times its text while it is parsed
    bodies_bytes_max: int = 256 << 20  # of all HTTP requests under way at one time: 503
    requests_max: int = 1024  # under way at one time, HTTP and gRPC each: 429
    jobs_max: int = 4096  # waiting, and done with a result that is kept: 429
    job_bytes_max: int = 256 << 20  # of kept results; past it the oldest go
    job_ttl_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Rooms:
    """`regions` None: clients' shared memory is off."""

    yard: Yard
    limits: Limits
    budget: Budget
    jobs: Jobs
    metrics: Metrics
    regions: Regions | None
    version: str

    def shared(self) -> Regions:
        """The clients' regions. Raises Refusal where there are none."""
        if self.regions is None:
            raise invalid(SHARED_MEMORY_OFF)
        return self.regions
