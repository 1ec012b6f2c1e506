"""client/: a guest in the user's process: `Client`, `AsyncClient`, and the embedded yard.

Imports pyzmq, numpy, and msgspec alone; the server's side is only ever started as processes.
"""

from ..transport.messages import ModelChanged, ModelInfo, Priority
from ..transport.python_models import model
from .aio import AsyncClient
from .client import Client
from .embedded import serve
from .future import InferFuture
from .operator import Operator
from .reply import Receipt, Reply
from .yard import Yard

__all__ = [
    "AsyncClient",
    "Client",
    "InferFuture",
    "ModelChanged",
    "ModelInfo",
    "Operator",
    "Priority",
    "Receipt",
    "Reply",
    "Yard",
    "model",
    "serve",
]
