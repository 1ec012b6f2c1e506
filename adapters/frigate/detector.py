"""The detector: Frigate's requests from a ZeroMQ socket, through a yard, and back.

Uses a ROUTER socket and one `AsyncClient`, on one event loop. A frame is two callbacks of the loop's: it has
come, and its outputs have. With zmq.asyncio and a task it was six, of which each costs 20 to 40 us after the
10 ms of a run. Every camera's process has a REQ socket of its own, so frames of many cameras are under way
together, and the broker batches them. A frame that is late is not run: its sender has stopped waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
import zmq

from ...client import AsyncClient, Reply
from ...client.readers import add_readers
from ...transport.dtypes import BY_CODE
from ...transport.errors import BatchyardError, DeadlineExceeded, InvalidRequest, Overloaded
from ...transport.messages import ModelInfo
from ...transport.sockets import MORE_NOBLOCK, NOBLOCK, Socket, readable
from . import messages as m
from .detections import KINDS, Convert
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
        self._socket: Socket | None = None
        self._frames = 0  # under way
        self._tasks: set[asyncio.Task[None]] = set()  # for what is no frame
        self._troubles: Counter[str] = Counter()
        self._logged_s = -LOG_EVERY_S

    async def serve(self, socket: Socket) -> None:
        """Answer every request of a bound ROUTER socket."""
        self._socket = socket
        loop = asyncio.get_running_loop()
        stop = add_readers(loop, {int(socket.getsockopt(zmq.FD)): self._receive})
        try:
            self._receive()
            await loop.create_future()
        finally:
            stop()
            self._socket = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _receive(self) -> None:
        """Read what has come. libzmq's descriptor tells of it once, so until nothing is left."""
        for _ in range(RECEIVED_MAX):
            if self._socket is None or not readable(self._socket):
                return
            # A REQ socket's envelope is its identity and an empty part. What is no REQ socket could not read
            # an answer.
            identity, *parts = self._socket.recv_multipart(NOBLOCK, copy=False)
            if len(parts) >= 2 and not parts[0].buffer.nbytes:
                self._take(identity.bytes, [part.buffer for part in parts[1:]])
        asyncio.get_running_loop().call_soon(self._receive)

    def _answer(self, identity: bytes, answer: list[bytes]) -> None:
        """A ROUTER's `send` never waits: an answer that nobody takes is dropped."""
        socket = self._socket
        if socket is None:
            return
        for part in (identity, b"", *answer[:-1]):
            socket.send(part, MORE_NOBLOCK)
        socket.send(answer[-1], NOBLOCK)
        if readable(socket):  # sending may have swallowed the descriptor's edge
            asyncio.get_running_loop().call_soon(self._receive)

    def _take(self, identity: bytes, parts: list[memoryview]) -> None:
        """Begin with a request. Never raises for what it says."""
        try:
            request = m.parse(parts)
            if isinstance(request, m.Frame):
                if self._frames + len(self._tasks) >= UNDER_WAY_MAX:
                    raise Overloaded(f"more than {UNDER_WAY_MAX} frames are under way")
                if self._info is not None:
                    self._detect(identity, request, self._info)
                    return
        except BatchyardError as error:
            self._answer(identity, m.detections(NOTHING, self._trouble(error)))
            return
        task = asyncio.ensure_future(self._prepare(identity, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self, identity: bytes, request: m.Request) -> None:
        """What has to wait for something else than the frame's own run."""
        if isinstance(request, m.ModelQuery):
            self._answer(identity, await self._find(request.name))
        elif isinstance(request, m.ModelUpload):
            self._answer(identity, await self._save(request))
        else:
            try:
                self._info = await self._client.wait_ready(self._name)
                self._detect(identity, request, self._info)
            except BatchyardError as error:
                self._answer(identity, m.detections(NOTHING, self._trouble(error)))

    # ---- frames -------------------------------------------------------------------------------

    def _detect(self, identity: bytes, frame: m.Frame, info: ModelInfo) -> None:
        """Run a frame, and answer when that is done. Raises for one that can't be run."""
        convert = self._conversion(frame)
        height, width = _size(frame.pixels)
        inputs = self._inputs(info, frame.pixels, height, width)

        def done(outcome: Reply | Exception) -> None:
            self._frames -= 1
            try:
                if not isinstance(outcome, Reply):
                    raise outcome
                answer = m.detections(convert(outcome.arrays, width, height))
            except BatchyardError as error:
                answer = m.detections(NOTHING, self._trouble(error))
            except (ValueError, IndexError) as error:  # shapes that no rule of the kind foresees
                kind = self._model_type or frame.model_type
                unfit = InvalidRequest(f"the model's outputs are not those of a {kind} model: {error}")
                answer = m.detections(NOTHING, self._trouble(unfit))
            self._answer(identity, answer)

        deadline_s = self._deadline_s
        self._client.start(self._name, inputs, done, deadline=deadline_s, timeout=deadline_s)
        self._frames += 1

    def _conversion(self, frame: m.Frame) -> Convert:
        """What makes rows of the outputs. Raises InvalidRequest."""
        kind = self._model_type or frame.model_type
        if frame.model_type and frame.model_type != kind:
            raise InvalidRequest(
                f"Frigate takes the model for {frame.model_type!r}, and this detector was started for "
                f"{kind!r}: set model_type in Frigate's configuration, or --model-type here"
            )
        convert = KINDS.get(kind)
        if convert is None:
            raise InvalidRequest(f"model type {kind!r} is not known; there is: {', '.join(KINDS)}")
        return convert

    def _inputs(self, info: ModelInfo, pixels: m.Array, height: int, width: int) -> dict[str, m.Array]:
        """The frame as the model takes it, written once, into shared memory."""
        inputs: dict[str, m.Array] = {}
        for spec in info.inputs:
            if spec.name == SIZES_INPUT:
                inputs[spec.name] = np.array([[height, width]], np.int64)
            elif inputs:
                raise InvalidRequest(f"the model has an input {spec.name!r} that no frame fills")
            else:
                placed = self._client.empty_now(pixels.shape, BY_CODE[spec.dtype].numpy)
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

    async def _save(self, request: m.ModelUpload) -> list[bytes]:
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
