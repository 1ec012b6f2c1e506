"""The device under the sessions: turns on it, and the errors after which it is no use to this process.

A GPU that was reset, removed, or hung takes every session of the process with it; only another process
can begin anew.
"""

from __future__ import annotations

import threading

EXIT_CODE = 5  # of a child whose device is lost: a strike against the device, told apart by the supervisor

# What onnxruntime's messages say then, in small letters. The numbers are DXGI's: device removed, hung,
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
    """The device is gone, and this process can't get it back; the text is what was said of it.

    No Exception, so that nothing that expects a model's failure takes it for one: it ends the process.
    """


def is_lost(error: BaseException) -> bool:
    """Whether an error of a session means that the device is gone."""
    text = str(error).lower()
    return any(said in text for said in LOST)


class Turns:
    """A lock that is fair between two threads: who waits is next, even if the other asks again at once.

    A model that is loaded, run by run, would otherwise keep a model that serves waiting.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._held = threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()
