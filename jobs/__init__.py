"""jobs/: requests whose result is asked for later, by an id. The gateway's REST jobs and
`AsyncInferenceQueue` share the table; both are users of `AsyncClient`."""

from .queue import AsyncInferenceQueue, JobPriority
from .table import JobStatus, UnknownJob
from .tally import JobStatistics

__all__ = ["AsyncInferenceQueue", "JobPriority", "JobStatistics", "JobStatus", "UnknownJob"]
