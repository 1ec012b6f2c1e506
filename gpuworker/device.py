"""The device under the sessions: whose turn it is, and the errors that mean its loss.

When a GPU is reset, removed, or hangs, every session of the process is lost. Only a new process can use it
again.
"""

from __future__ import annotations

import threading

EXIT_CODE = 5  # of a child whose device is lost; the supervisor counts a strike against the device

# Phrases of onnxruntime's messages, in lower case. The numbers are DXGI's: device removed, hung,
# reset, driver internal error (learn.microsoft.com, "DXGI_ERROR"); then WebGPU's, Vulkan's, CUDA's.
LOST = (
    "887a0005",
    "887a0006",
    "887a0007",
    "887a0020",
    "device lost",
    "device is lost",
    "error_device_lost",
    "webgpu validation failed",
    "cudaerrordevicesunavailable",
    "cuda failure 700",  # an illegal address, and every later call fails
    "cuda failure 719",  # a launch failure, likewise
)


class DeviceLost(BaseException):
    """The device is gone for this process; the text is the runtime's message.

    It derives from BaseException, so that no handler of a model's failure catches it: it ends the process.
    """


def is_lost(error: BaseException) -> bool:
    """Whether a session's error means that the device is lost."""
    text = str(error).lower()
    return any(phrase in text for phrase in LOST)


class Turns:
    """A lock that is fair between two threads: the waiting thread is next, even if the other one asks again
    at once. Otherwise a model that is being loaded, run after run, would keep a served model waiting."""

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._held = threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()
