"""The detector: Frigate's requests from a ZeroMQ socket, through a yard, and back.

Uses a ROUTER socket and one `AsyncClient`, on one event loop. The loop watches the socket's own descriptor:
with zmq.asyncio in between, a frame took 0.1 ms longer. Every camera's process has a REQ socket of its own, so
frames of many cameras are under way together, and the broker batches them. A frame that is late is not
run: its sender has stopped waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
import zmq

from ...client import AsyncClient
from ...client.readers import add_readers
from ...transport.dtypes import BY_CODE
from ...transport.errors import BatchyardError, DeadlineExceeded, InvalidRequest, Overloaded
from ...transport.messages import ModelInfo
from . import messages as m
from .detections import KINDS
from .uploads import Uploads

RECEIVED_MAX = 16  # requests that are read before the loop does anything else
UNDER_WAY_MAX = 256  # frames; a REQ socket has one under way, so this is cameras
LOG_EVERY_S = 10.0  # the same trouble is not written down for every frame
SIZES_INPUT = "orig_target_sizes"  # D-FINE wants the image's height and width as a second input
CHANNELS = (1, 3)

log = logging.getLogger("frigate")
NOTHING = np.zeros((m.ROWS, m.COLUMNS), np.float32)


class Detector:
    """Serves the model `name` at `endpoint` until `serve` is cancelled.

    model_type: Frigate's name of the model's kind; "": as each frame says.
    deadline_s: how long a frame's sender waits.
    file_name: the name by which Frigate may ask for the model that is served.
    load: makes the yard serve an accepted file under a model's name.
    """

    def __init__(
        self,
        client: AsyncClient,
        name: str,
        model_type: str,
        deadline_s: float,
        file_name: str,
        uploads: Uploads,
        load: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._client = client
        self._name = name
        self._model_type = m.normalized_type(model_type)
        self._deadline_s = deadline_s
        self._file_name = file_name
        self._uploads = uploads
        self._load = load
        self._info: ModelInfo | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._troubles: Counter[str] = Counter()
        self._logged_s = -LOG_EVERY_S

    async def serve(self, socket: zmq.Socket[bytes]) -> None:
        """Answer every request of a bound ROUTER socket."""
        loop = asyncio.get_running_loop()

        def receive() -> None:
            """Read what has come. libzmq's descriptor tells of it once, so until nothing is left."""
            for _ in range(RECEIVED_MAX):
                try:
                    parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    return
                task = loop.create_task(serve_one(parts))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            loop.call_soon(receive)

        async def serve_one(parts: list[zmq.Frame]) -> None:
            """One request and its answer. A REQ socket's envelope is its identity and an empty part."""
            if len(parts) < 3 or parts[1].buffer.nbytes:
                return  # no REQ socket: it could not read an answer
            answer = await self.answer([part.buffer for part in parts[2:]])
            socket.send_multipart([parts[0], b"", *answer], zmq.NOBLOCK)  # a ROUTER's never blocks
            receive()  # sending may have swallowed the descriptor's edge

        stop = add_readers(loop, {int(socket.getsockopt(zmq.FD)): receive})
        try:
            receive()
            await loop.create_future()
        finally:
            stop()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def answer(self, parts: list[memoryview]) -> list[bytes]:
        """The parts of the answer to a request's parts. Never raises for what a request says."""
        try:
            request = m.parse(parts)
        except BatchyardError as error:
            return m.detections(NOTHING, self._trouble(error))
        if isinstance(request, m.ModelQuery):
            return await self._find(request.name)
        if isinstance(request, m.ModelUpload):
            return await self._take(request)
        try:
            if len(self._under_way) > UNDER_WAY_MAX:
                raise Overloaded(f"more than {UNDER_WAY_MAX} frames are under way")
            return m.detections(await self._detect(request))
        except BatchyardError as error:
            return m.detections(NOTHING, self._trouble(error))

    # ---- frames -------------------------------------------------------------------------------

    async def _detect(self, frame: m.Frame) -> m.Array:
        kind = self._model_type or frame.model_type
        if frame.model_type and frame.model_type != kind:
            raise InvalidRequest(
                f"Frigate takes the model for {frame.model_type!r}, and this detector was started for "
                f"{kind!r}: set model_type in Frigate's configuration, or --model-type here"
            )
        convert = KINDS.get(kind)
        if convert is None:
            raise InvalidRequest(f"model type {kind!r} is not known; there is: {', '.join(KINDS)}")
        height, width = _size(frame.pixels)
        inputs = await self._inputs(frame.pixels, height, width)
        deadline_s = self._deadline_s
        reply = await self._client.request(self._name, inputs, deadline=deadline_s, timeout=deadline_s)
        return convert(list(reply.outputs.values()), width, height)

    async def _inputs(self, pixels: m.Array, height: int, width: int) -> dict[str, m.Array]:
        """The frame as the model takes it, written once, into shared memory."""
        info = self._info
        if info is None:
            info = self._info = await self._client.wait_ready(self._name)
        inputs: dict[str, m.Array] = {}
        for spec in info.inputs:
            if spec.name == SIZES_INPUT:
                inputs[spec.name] = np.array([[height, width]], np.int64)
            elif inputs:
                raise InvalidRequest(f"the model has an input {spec.name!r} that no frame fills")
            else:
                placed = await self._client.empty(pixels.shape, BY_CODE[spec.dtype].numpy)
                np.copyto(placed, pixels, casting="unsafe")
                inputs[spec.name] = placed
        return inputs

    def _trouble(self, error: BatchyardError) -> str:
        """Count it, and say it at most every LOG_EVERY_S. Returns its sentence."""
        text = "frames came too late" if isinstance(error, DeadlineExceeded) else str(error)
        self._troubles[text] += 1
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            for what, times in self._troubles.items():
                log.warning("%s (%d of late)", what, times)
            self._troubles.clear()
        return str(error)

    # ---- models -------------------------------------------------------------------------------

    async def _find(self, name: str) -> list[bytes]:
        if name == self._file_name:
            return m.availability(True, True)
        if not self._uploads.holds(name):
            return m.availability(False, False)
        return m.availability(True, await self._serve_upload(name))

    async def _take(self, request: m.ModelUpload) -> list[bytes]:
        try:
            await asyncio.to_thread(self._uploads.save, request.name, request.content)
        except (BatchyardError, OSError) as error:
            log.warning("%s: %s", request.name[:80], error)
            return m.upload(False, False, str(error))
        log.info("%s: saved", request.name)
        loaded = await self._serve_upload(request.name)
        return m.upload(True, loaded, "" if loaded else "it can't be loaded; the detector's log says why")

    async def _serve_upload(self, file_name: str) -> bool:
        """Serve an accepted file from now on."""
        name = file_name.removesuffix(".onnx")
        try:
            await self._load(name, file_name)
        except BatchyardError as error:
            log.warning("%s: %s", file_name, error)
            return False
        log.info("%s is served", file_name)
        self._name, self._file_name, self._info = name, file_name, None
        return True


def _size(pixels: m.Array) -> tuple[int, int]:
    """(height, width) of a frame, channels first or last. Raises InvalidRequest."""
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        if pixels.shape[1] in CHANNELS:
            return pixels.shape[2], pixels.shape[3]
        if pixels.shape[3] in CHANNELS:
            return pixels.shape[1], pixels.shape[2]
    shape = list(pixels.shape)
    raise InvalidRequest(f"a frame has shape [1, 3, height, width] or [1, height, width, 3], not {shape}")
