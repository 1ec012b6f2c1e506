"""The benchmark models: built from a seed with `onnx`, never downloaded, the same bytes on every machine.

Owns the graphs and their sample inputs. Knows nothing of clients, yards or clocks.

| name  | input                      | graph                                   | why it is here            |
|-------|----------------------------|-----------------------------------------|---------------------------|
| tiny  | float32[batch,3,32,32]     | Relu, mean over the pixels -> [batch,3] | no compute: pure overhead |
| cnn   | float32[batch,3,32,32]     | 3x3 conv blocks (32/64/128), Gemm -> 10 | compute worth a batch     |
| frame | float32[batch,3,1080,1920] | 8x8 average pool -> [batch,3,135,240]   | 24.9 MB: a copy's cost    |
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]

OPSET = 18
IR_VERSION = 10
WEIGHTS_SEED = 20_240_607
CNN_CHANNELS = (32, 64, 128)
CNN_CLASSES = 10
ROW_SHAPES: dict[str, tuple[int, ...]] = {
    "tiny": (3, 32, 32),
    "cnn": (3, 32, 32),
    "frame": (3, 1080, 1920),
}


def tiny() -> onnx.ModelProto:
    """`image` float32[batch, 3, 32, 32] -> `mean` float32[batch, 3]: the mean of the positive part."""
    nodes = [
        helper.make_node("Relu", ["image"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "axes"], ["mean"], keepdims=0),
    ]
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    return _model("tiny", nodes, ("mean", (3,)), [axes])


def cnn() -> onnx.ModelProto:
    """`image` float32[batch, 3, 32, 32] -> `scores` float32[batch, 10]."""
    random = np.random.default_rng(WEIGHTS_SEED)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, shape: tuple[int, ...], fan_in: int) -> str:
        values = random.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)
        weights.append(numpy_helper.from_array(values, name))
        return name

    above, channels_in = "image", ROW_SHAPES["cnn"][0]
    for index, channels in enumerate(CNN_CHANNELS):
        kernel = weight(f"kernel{index}", (channels, channels_in, 3, 3), channels_in * 9)
        bias = weight(f"bias{index}", (channels,), channels)
        nodes += [
            helper.make_node(
                "Conv", [above, kernel, bias], [f"conv{index}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", [f"conv{index}"], [f"relu{index}"]),
            helper.make_node(
                "MaxPool", [f"relu{index}"], [f"pool{index}"], kernel_shape=[2, 2], strides=[2, 2]
            ),
        ]
        above, channels_in = f"pool{index}", channels
    matrix = weight("matrix", (channels_in, CNN_CLASSES), channels_in)
    offset = weight("offset", (CNN_CLASSES,), CNN_CLASSES)
    nodes += [
        helper.make_node("GlobalAveragePool", [above], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"], axis=1),
        helper.make_node("Gemm", ["features", matrix, offset], ["scores"]),
    ]
    return _model("cnn", nodes, ("scores", (CNN_CLASSES,)), weights)


def frame() -> onnx.ModelProto:
    """`image` float32[batch, 3, 1080, 1920] -> `thumbnail` float32[batch, 3, 135, 240]: means of 8x8."""
    pool = helper.make_node("AveragePool", ["image"], ["thumbnail"], kernel_shape=[8, 8], strides=[8, 8])
    return _model("frame", [pool], ("thumbnail", (3, 135, 240)), [])


_BUILDERS = {"tiny": tiny, "cnn": cnn, "frame": frame}
NAMES = tuple(_BUILDERS)


def write(name: str, folder: Path) -> Path:
    """Write the model `name` as `folder/name.onnx`, and return that path."""
    path = folder / f"{name}.onnx"
    onnx.save_model(_BUILDERS[name](), path)
    return path


@contextmanager
def written(name: str) -> Iterator[Path]:
    """The model `name` in a temporary folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-") as folder:
        yield write(name, Path(folder))


def sample(name: str, rows: int = 1, seed: int = 0) -> Array:
    """A seeded input float32[rows, ...] of the model `name`, normally distributed around 0."""
    return np.random.default_rng(seed).standard_normal((rows, *ROW_SHAPES[name]), np.float32)


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    output: tuple[str, tuple[int, ...]],
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    output_name, output_row = output
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *ROW_SHAPES[name]])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["batch", *output_row])],
        weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="batchyard.bench",
    )
    onnx.checker.check_model(model)
    return model
