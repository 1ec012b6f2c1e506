"""client/: a guest in the user's process: `Client`, `AsyncClient`, and the embedded yard.

Imports pyzmq, numpy, and msgspec alone; the server's side is only ever started as processes.
"""

from ..transport.functions import model
from ..transport.messages import ModelChanged, ModelInfo, Priority
from .admin import Operator
from .aio import AsyncClient
from .client import Client
from .futures import InferFuture
from .jobs import AsyncInferenceQueue
from .register import UnknownJob
from .reply import Receipt, Reply
from .tally import JobPriority, JobStatistics, JobStatus
from .yard import Yard, serve

__all__ = [
    "AsyncClient",
    "AsyncInferenceQueue",
    "Client",
    "InferFuture",
    "JobPriority",
    "JobStatistics",
    "JobStatus",
    "ModelChanged",
    "ModelInfo",
    "Operator",
    "Priority",
    "Receipt",
    "Reply",
    "UnknownJob",
    "Yard",
    "model",
    "serve",
]
