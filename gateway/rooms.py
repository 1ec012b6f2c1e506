"""Shared state of the gateway's endpoints: yard, bounds, jobs, clients' regions, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import invalid
from .http_body import Budget
from .jobs import Jobs
from .metrics import Metrics
from .regions import SHARED_MEMORY_OFF, Regions
from .texts import TextModel
from .yard import Yard


@dataclass(frozen=True, slots=True)
class Limits:
    """The gateway's limits. Each has its own response when it is reached."""

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
    model_control: bool = False  # whether clients may load and unload models
    texts: Mapping[str, TextModel] = field(default_factory=dict)  # by the name of the model at the yard

    def shared(self) -> Regions:
        """The clients' regions. Raises Refusal where there are none."""
        if self.regions is None:
            raise invalid(SHARED_MEMORY_OFF)
        return self.regions
