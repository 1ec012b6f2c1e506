"""python ultralytics_program.py FOLDER URL FILE: Ultralytics' own package on the model at URL, and on FILE in its
own process; ends with 0 where all that it sees is the same.

FOLDER has `ultralytics` and `cv2`, from wheels without their dependencies. torchvision's wheel on PyPI is made for
CUDA and does not load beside a torch for the CPU: then its one function that is used, `ops.nms`, is Ultralytics'
own in Python.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import types
from typing import Any


def provide_torchvision() -> None:
    """The real one, or its name, version and `ops.nms`."""
    try:
        importlib.import_module("torchvision")
    except Exception:  # of torch's, when its operators are not there
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        version = importlib.metadata.version
        importlib.metadata.version = lambda name: "0.28.0" if name == "torchvision" else version(name)
        stub: Any = types.ModuleType("torchvision")
        stub.ops = types.SimpleNamespace(nms=lambda *given: _nms(*given))
        sys.modules["torchvision"] = stub


def _nms(boxes: Any, scores: Any, overlap: float) -> Any:
    from ultralytics.utils.nms import TorchNMS  # type: ignore[import-not-found]

    return TorchNMS.nms(boxes, scores, overlap)


def main(folder: str, url: str, file: str) -> int:
    sys.path.insert(0, folder)
    os.environ |= {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    provide_torchvision()
    from ultralytics import YOLO
    from ultralytics.utils import ASSETS

    pictures = [str(path) for path in sorted(ASSETS.glob("*.jpg"))]

    def seen(source: str) -> tuple[Any, list[Any]]:
        # rect=False: the file does not say that its size is free, and its own run pads to a square, too.
        model = YOLO(source, task="detect")
        results = [model(picture, imgsz=320, conf=0.05, rect=False)[0] for picture in pictures]
        return results[0].names, [result.boxes.data.numpy() for result in results]

    names, boxes = seen(url)
    own_names, own_boxes = seen(file)
    print(len(pictures), "pictures,", [len(found) for found in boxes], "boxes")
    if not pictures or not any(len(found) for found in own_boxes):
        return 3  # this could not fail
    same = all(one.shape == other.shape and (one == other).all() for one, other in zip(boxes, own_boxes, strict=True))
    return 0 if same and names == own_names else 4


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
