"""A camera's loop: a frame is prepared, recognized, and shown, by three models of one yard.

    python examples/programs/webcam.py

A result lies in this program's shared memory, so handing it on to the next model copies nothing: the loop
prints how many bytes its client has copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchyard
import numpy as np

EXAMPLES = Path(__file__).parents[1]
HEIGHT, WIDTH = 480, 640
FRAMES = 60

Array = np.ndarray[Any, Any]


@batchyard.model(inputs="uint8[batch, 480, 640, 3]", outputs="float32[batch, 480, 480]")
def grey(frames: Array) -> Array:
    """The middle of each frame, as brightness from 0 to 1: 0.9 MB."""
    picture: Array = frames[:, :, 80:560].mean(3, dtype=np.float32) / 255
    return picture


@batchyard.model(inputs="float32[batch, 480, 480]", outputs="float32[batch, 1, 8, 8]")
def shrink(pictures: Array) -> Array:
    """As small as the scans that the recognizer was trained with."""
    small: Array = pictures.reshape(-1, 1, 8, 60, 8, 60).mean((3, 5))
    return small


MODELS: dict[str, Any] = {"grey": grey, "shrink": shrink, "digits": EXAMPLES / "digits.onnx"}


def camera(frame: Array, count: int) -> Iterator[int]:
    """Draw handwritten digits into `frame`, one after the other, and say which. With a real camera:

    device = cv2.VideoCapture(0)
    while device.read(frame)[0]: ...
    """
    with np.load(EXAMPLES / "digits_test.npz") as scans:
        images, labels = scans["images"][:count, 0], scans["labels"][:count]
    for image, label in zip(images, labels, strict=True):
        frame[0, :, 80:560] = (image.repeat(60, 0).repeat(60, 1) * 255)[..., None]
        yield int(label)


def watch(client: batchyard.Client, count: int) -> tuple[int, int]:
    """(digits that were recognized, bytes that the client has copied on the way)."""
    frame = client.empty((1, HEIGHT, WIDTH, 3), np.uint8)  # the camera writes into shared memory
    before, right = client.bytes_copied, 0
    for label in camera(frame, count):
        picture = client.infer("grey", frame, deadline=0.5)
        small = client.infer("shrink", picture, deadline=0.5)  # the array that came back goes in again
        logits: Any = client.infer("digits", small, deadline=0.5)
        right += int(logits.argmax() == label)
    return right, client.bytes_copied - before


def main() -> None:
    with batchyard.serve(MODELS) as yard, yard.client() as client:
        right, copied = watch(client, FRAMES)
    print(f"{right} of {FRAMES} digits are right; {copied} bytes were copied on the way to the models")


if __name__ == "__main__":
    main()
