"""batchyard: a low-latency inference broker for one machine and commodity GPUs.

The package's face. It imports nothing until a name is asked for: a client pulls in no server, and
`import batchyard` pulls in neither numpy nor zmq.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import (
        AsyncClient,
        Client,
        InferFuture,
        ModelChanged,
        ModelInfo,
        Operator,
        Priority,
        Receipt,
        Reply,
        Yard,
        model,
        serve,
    )
    from .jobs import AsyncInferenceQueue, JobPriority, JobStatistics, JobStatus, UnknownJob
    from .transport.errors import (
        ArenaExhausted,
        BatchyardError,
        BrokerLost,
        Cancelled,
        DeadlineExceeded,
        EndpointInUse,
        InvalidRequest,
        MalformedMessage,
        ModelFailed,
        Overloaded,
        SegmentRefused,
        Unauthorized,
        UnknownConnection,
        UnknownModel,
        WorkerLost,
        WrongVersion,
    )

    __version__: str

__all__ = [
    "ArenaExhausted",
    "AsyncClient",
    "AsyncInferenceQueue",
    "BatchyardError",
    "BrokerLost",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "EndpointInUse",
    "InferFuture",
    "InvalidRequest",
    "JobPriority",
    "JobStatistics",
    "JobStatus",
    "MalformedMessage",
    "ModelChanged",
    "ModelFailed",
    "ModelInfo",
    "Operator",
    "Overloaded",
    "Priority",
    "Receipt",
    "Reply",
    "SegmentRefused",
    "Unauthorized",
    "UnknownConnection",
    "UnknownJob",
    "UnknownModel",
    "WorkerLost",
    "WrongVersion",
    "Yard",
    "__version__",
    "model",
    "serve",
]

if not TYPE_CHECKING:  # a type checker would take any misspelt name for an object

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "__version__":
            from importlib.metadata import version

            value = version("batchyard")
        else:
            from .transport import errors

            value = getattr(errors, name, None)
            if value is None:
                from . import client

                value = getattr(client, name, None)
            if value is None:
                from . import jobs

                value = getattr(jobs, name)
        globals()[name] = value  # asked for once: __getattr__ isn't called again
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
