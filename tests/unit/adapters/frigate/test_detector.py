from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq
import zmq.asyncio
from batchyard.adapters.frigate.detector import UNDER_WAY_MAX, Detector
from batchyard.adapters.frigate.endpoint import bind
from batchyard.adapters.frigate.uploads import Uploads
from batchyard.client import Reply
from batchyard.transport import messages as m
from batchyard.transport.errors import DeadlineExceeded, UnknownModel
from batchyard.transport.tensors import TensorSpec

PIXELS = np.zeros((1, 3, 8, 8), np.uint8)
HEAD = json.dumps({"shape": PIXELS.shape, "dtype": "uint8", "model_type": "yolo-generic"}).encode()


class Yard:
    """What the detector uses of an AsyncClient: nothing ends before `end` says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[Any], None]] = []
        self._begun = asyncio.Event()  # set with each frame
        self.seen: list[Any] = []
        self.is_known = True

    async def wait_ready(self, name: str) -> m.ModelInfo:
        if not self.is_known:
            raise UnknownModel("no such model")
        spec = TensorSpec("images", 1, [1, 3, 8, 8])
        return m.ModelInfo(name, m.ModelState.READY, "", 1, [spec], [], False, "", 1, [])

    def empty_now(self, shape: Any, dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def start(self, model: str, inputs: Any, done: Callable[[Any], None], *, deadline: float, timeout: float) -> None:
        self.seen.append(inputs["images"])
        self.waiting.append(done)
        self._begun.set()

    async def until(self, frames: int) -> None:
        """Until so many frames wait."""
        while len(self.waiting) != frames:
            self._begun.clear()
            await self._begun.wait()


def detecting(folder: Path, scene: Callable[[Yard, Any], Awaitable[None]]) -> None:
    """Run a scene with a yard that is none, and a DEALER that may have many frames under way."""

    async def main() -> None:
        yard = Yard()
        detector = Detector(yard, "yolo", "", 1.0, "yolo.onnx", Uploads(folder, []), None)  # type: ignore[arg-type]
        with zmq.Context() as context, bind(context, "inproc://detector") as socket:
            serving = asyncio.ensure_future(detector.serve(socket))
            with zmq.asyncio.Context.shadow(context).socket(zmq.DEALER) as camera:
                camera.linger = 0
                camera.connect("inproc://detector")
                await asyncio.wait_for(scene(yard, camera), 30)
            serving.cancel()
            await asyncio.wait([serving])

    asyncio.run(main())


def ask(camera: Any, head: bytes = HEAD, content: Any = PIXELS) -> None:
    camera.send_multipart([b"", head, bytes(content)])


async def answer(camera: Any) -> tuple[dict[str, Any], Any]:
    _, head, rows = await camera.recv_multipart()
    return json.loads(head), np.frombuffer(rows, np.float32).reshape(20, 6)


def reply(score: float) -> Reply:
    table = np.zeros((1, 5, 9), np.float32)
    table[0, :, 1] = [4, 4, 2, 2, score]
    return Reply(["output0"], [table], 0, m.BatchReceipt(1, 0, 0, 0, 0, 1, "cpu", 1))


def test_answers_go_out_as_runs_end_in_whatever_order(tmp_path: Path) -> None:
    async def scene(yard: Yard, camera: Any) -> None:
        for shade in (1, 2):
            ask(camera, content=PIXELS + np.uint8(shade))
        await yard.until(2)
        assert [(frame.dtype, frame.max()) for frame in yard.seen] == [(np.float32, 1), (np.float32, 2)]
        yard.waiting[1](reply(0.75))
        head, rows = await answer(camera)
        assert "error" not in head
        assert rows[0].tolist() == [0, 0.75, 0.375, 0.375, 0.625, 0.625]
        assert not rows[1:].any()
        yard.waiting[0](DeadlineExceeded("too late"))
        head, rows = await answer(camera)
        assert head["error"] == "too late"
        assert not rows.any()

    detecting(tmp_path, scene)


def test_outputs_that_no_rule_of_the_kind_foresees_are_answered_with_a_sentence(tmp_path: Path) -> None:
    async def scene(yard: Yard, camera: Any) -> None:
        ask(camera)
        await yard.until(1)
        few = reply(0.5)
        few.arrays[0] = few.arrays[0][:, :4]
        yard.waiting[0](few)
        head, rows = await answer(camera)
        assert "the model's outputs are not those of a yologeneric model" in head["error"]
        assert not rows.any()

    detecting(tmp_path, scene)


def test_more_frames_than_may_be_under_way_are_refused_until_some_have_ended(tmp_path: Path) -> None:
    async def scene(yard: Yard, camera: Any) -> None:
        ask(camera)
        await yard.until(1)
        for _ in range(UNDER_WAY_MAX):
            ask(camera)
        head, _ = await answer(camera)
        assert "frames are under way" in head["error"]
        assert len(yard.waiting) == UNDER_WAY_MAX
        yard.waiting.pop()(reply(0.5))
        await answer(camera)
        ask(camera)
        await yard.until(UNDER_WAY_MAX)

    detecting(tmp_path, scene)


def test_a_frame_of_a_model_that_is_not_there_is_refused_and_the_next_one_tried(tmp_path: Path) -> None:
    async def scene(yard: Yard, camera: Any) -> None:
        yard.is_known = False
        ask(camera)
        assert (await answer(camera))[0]["error"] == "no such model"
        yard.is_known = True
        ask(camera)
        await yard.until(1)

    detecting(tmp_path, scene)


def test_a_mistake_and_what_is_no_req_socket_disturb_no_frame(tmp_path: Path) -> None:
    async def scene(yard: Yard, camera: Any) -> None:
        camera.send_multipart([b"no envelope", HEAD, bytes(PIXELS)])
        camera.send(b"")
        ask(camera, head=b"{")
        ask(camera, content=PIXELS[:, :, 1:].copy())
        ask(camera)
        errors = [(await answer(camera))[0]["error"] for _ in range(2)]
        assert "not the JSON" in errors[0]
        assert "has 192 bytes, and 168 came" in errors[1]
        await yard.until(1)

    detecting(tmp_path, scene)
