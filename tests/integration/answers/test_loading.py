"""What can be loaded, and how it lies on the disk: without inputs, with thousands, with long names, behind
links, in more than one file, above 2 GB; and models that run on no input that anybody can invent.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import onnx
import pytest
from batchyard import BatchyardError
from onnx import ModelProto, TensorProto, helper

from ...crowd import ask, differences
from ...plain import Plain
from .graphs import graph, weights

F = TensorProto.FLOAT
MANY = 3000
LONG = 255


# ---- inputs ---------------------------------------------------------------------------------------

WITHOUT_INPUTS = {
    "a constant": graph("() => (float[4] y) { y = Constant <value = float[4] {0, 1, 2, 3}> () }"),
    "a range": graph(
        "() => (int64[5] y) { y = Range (a, b, c) }", a=np.array(0), b=np.array(5), c=np.array(1)
    ),
    "a scalar": graph("() => (float y) { y = Constant <value_float = 2.5> () }"),
    "two outputs": graph(
        "() => (float[2] y, float[2] z) { y = Constant <value = float[2] {1, 2}> () z = Neg (y) }"
    ),
    "an axis that is called batch": graph(
        "() => (float[batch] y) { y = ConstantOfShape <value = float[1] {7}> (s) }", s=np.array([3])
    ),
}


@pytest.mark.parametrize("name", WITHOUT_INPUTS)
def test_a_model_without_inputs_is_served(stand: Any, name: str) -> None:
    with stand.model(WITHOUT_INPUTS[name]) as model:
        assert model.wrong_alone([{}] * 3) == []
        assert model.wrong_together([{}] * 24) == []
    assert stand.pilot_answers()


def test_a_yard_of_a_model_without_inputs_starts(run_folder: Path) -> None:
    file = run_folder / "constant.onnx"
    onnx.save(WITHOUT_INPUTS["a constant"], file)
    with batchyard.serve(file, threads=1, timeout=30) as yard:
        assert yard.client().infer("constant", {}).tolist() == [0, 1, 2, 3]
    file.unlink()


def many(inputs: int, outputs: int) -> ModelProto:
    """The sum of so many inputs, by groups; each output is a group's sum."""
    names = [f"x{number}" for number in range(inputs)]
    groups = np.array_split(names, outputs)
    nodes = [
        helper.make_node("Sum", [str(name) for name in group], [f"y{number}"])
        for number, group in enumerate(groups)
    ]
    made = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(name, F, ["n", 1]) for name in names],
        [helper.make_tensor_value_info(f"y{number}", F, ["n", 1]) for number in range(outputs)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(("inputs", "outputs"), [(1025, 1), (MANY, MANY)], ids=str)
def test_thousands_of_inputs_and_outputs(stand: Any, inputs: int, outputs: int) -> None:
    """Pipelines of tables have an input for every column."""
    rng = np.random.default_rng(0)
    with stand.model(many(inputs, outputs)) as model:
        requests = [
            {f"x{number}": rng.standard_normal((rows, 1)).astype(np.float32) for number in range(inputs)}
            for rows in (1, 2)
        ]
        assert model.wrong_alone(requests) == []
        assert model.wrong_together(requests * 4) == []


# ---- names ------------------------------------------------------------------------------------------


def test_a_models_name_may_have_255_characters(stand: Any) -> None:
    model = graph("(float[n,2] x) => (float[n,2] y) { y = Neg (x) }")
    for name in ("m" * LONG, "m" * 65, "facebook.bart-large-mnli_" + "v" * 100):
        with stand.model(model, name=name) as served:
            assert served.wrong_together([{"x": np.ones((1, 2), np.float32)}] * 16) == []
            assert served.info().name == name
    with pytest.raises(BatchyardError, match="255"), stand.model(model, name="m" * (LONG + 1)):
        pass
    assert stand.pilot_answers()


NAMES = {
    "255 characters": "x" * LONG,
    "4,000 characters": "serving_default/" + "deep/" * 796 + "x:0",
    "another script": "入力",
    "signs": "serving_default_input_2:0 (a, b)=c;[d]\"e'",
    "spaces": "  x  ",
    "a newline": "a\nb",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_tensors_name_may_be_anything(stand: Any, kind: str) -> None:
    name, out = NAMES[kind], f"{NAMES[kind]} out"
    made = helper.make_graph(
        [helper.make_node("Neg", [name], [out]), helper.make_node("Abs", [name], [f"{out}2"])],
        "main",
        [helper.make_tensor_value_info(name, F, ["n", 2])],
        [helper.make_tensor_value_info(each, F, ["n", 2]) for each in (out, f"{out}2")],
    )
    with stand.model(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    ) as model:
        requests = [{name: np.ones((rows, 2), np.float32)} for rows in (1, 2)]
        assert model.wrong_together(requests * 8) == []
        assert list(model.infer(requests[0])) == [out, f"{out}2"]


def test_axes_may_be_called_anything(stand: Any) -> None:
    """Exporters write formulas there; `?` stands for many axes that are not one."""
    formula = "floor(floor(height/2 - 1/2)/2) + " * 40 + "1"
    made = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])],
        "main",
        [helper.make_tensor_value_info("x", F, ["?", "?", formula])],
        [helper.make_tensor_value_info("y", F, ["?", formula, ""])],
    )
    with stand.model(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    ) as model:
        rng = np.random.default_rng(0)
        requests = [{"x": rng.standard_normal((rows, 3, 5)).astype(np.float32)} for rows in (1, 2, 4)]
        assert model.wrong_alone(requests) == []
        assert model.wrong_together(requests * 8) == []


# ---- files ------------------------------------------------------------------------------------------


def product() -> ModelProto:
    """With weights that are worth a file of their own."""
    return graph("(float[batch,64] x) => (float[batch,400] y) { y = MatMul (x, w) }", w=weights(64, 400))


def external(model: ModelProto, file: Path, data: str) -> None:
    """Save it with its weights beside it, in the file `data`."""
    onnx.save_model(
        model, file, save_as_external_data=True, all_tensors_to_one_file=True, location=data, size_threshold=0
    )


def hugging_face(root: Path) -> Path:
    """The cache: snapshots/<revision>/... are links into blobs/, the weights' too."""
    blobs, snapshot = (
        root / "models--x--y" / "blobs",
        root / "models--x--y" / "snapshots" / "0123abcd" / "onnx",
    )
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    external(product(), blobs / "model.onnx", "model.onnx_data")
    for name, blob in (("model.onnx", "aaaa"), ("model.onnx_data", "bbbb")):
        (blobs / name).rename(blobs / blob)
        (snapshot / name).symlink_to(Path("../../../blobs") / blob)
    return snapshot / "model.onnx"


def kubernetes(root: Path) -> Path:
    """A volume: model.onnx -> ..data/model.onnx, ..data -> ..2026_11_30, and another day another folder."""
    volume, day = root / "volume", root / "volume" / "..2026_11_30_21_00"
    day.mkdir(parents=True)
    external(product(), day / "model.onnx", "weights.bin")
    (volume / "..data").symlink_to(day.name)
    for name in ("model.onnx", "weights.bin"):
        (volume / name).symlink_to(Path("..data") / name)
    return volume / "model.onnx"


def folder_link(root: Path) -> Path:
    """current -> releases/7: the folder is a link, the files are none."""
    (root / "releases" / "7").mkdir(parents=True)
    external(product(), root / "releases" / "7" / "model.onnx", "model.onnx.data")
    (root / "current").symlink_to("releases/7")
    return root / "current" / "model.onnx"


def subfolder(root: Path) -> Path:
    """The weights in a folder below the model's."""
    (root / "weights").mkdir()
    external(product(), root / "model.onnx", "weights/data.bin")
    return root / "model.onnx"


def one_file_each(root: Path) -> Path:
    """Every tensor in a file of its own, as the first exporters wrote them."""
    model = graph(
        "(float[batch,64] x) => (float[batch,40] y) { h = MatMul (x, w) y = Add (h, b) }",
        w=weights(64, 40),
        b=weights(40),
    )
    onnx.save_model(
        model,
        root / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    return root / "model.onnx"


LAYOUTS = (hugging_face, kubernetes, folder_link, subfolder, one_file_each)


def feeds(rows: int = 2) -> dict[str, Any]:
    return {"x": np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)}


def right(file: Path) -> Any:
    """The same model's session, from its links' targets: onnxruntime refuses weights behind some links."""
    model = onnx.load(os.path.realpath(file), load_external_data=False)
    for tensor in model.graph.initializer:
        where = next(entry.value for entry in tensor.external_data if entry.key == "location")
        target = Path(os.path.realpath(file.parent / where))
        offset = next((int(entry.value) for entry in tensor.external_data if entry.key == "offset"), 0)
        length = next(int(entry.value) for entry in tensor.external_data if entry.key == "length")
        tensor.raw_data = target.read_bytes()[offset : offset + length]
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
    return Plain(model.SerializeToString())


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_model_loads_however_it_lies(run_folder: Path, layout: Any) -> None:
    root = run_folder / layout.__name__
    root.mkdir()
    file = layout(root)
    plain = right(file)
    try:
        with (
            open(run_folder / "layout.log", "wb") as log,
            batchyard.serve(file, threads=1, log=log, models_root=root) as yard,
        ):
            requests = [feeds(rows) for rows in (1, 2, 3)] * 4
            assert differences(plain, requests, ask(yard, "model", requests)) == []
            yard.operator.swap("model")  # read anew, where it lies
            assert differences(plain, requests, ask(yard, "model", requests)) == []
            yard.operator.load("again", file)
            assert differences(plain, requests, ask(yard, "again", requests)) == []
    finally:
        shutil.rmtree(root)
        (run_folder / "layout.log").unlink(missing_ok=True)


def test_a_link_that_moves_on_is_followed_by_a_swap(run_folder: Path) -> None:
    """Kubernetes swaps `..data` under the same names: a swap serves the new day's weights."""
    root = run_folder / "moving"
    root.mkdir()
    file = kubernetes(root)
    try:
        with (
            open(run_folder / "moving.log", "wb") as log,
            batchyard.serve(file, threads=1, log=log, models_root=root) as yard,
        ):
            before = yard.client().infer("model", feeds())
            day = root / "volume" / "..2026_12_01_00_00"
            day.mkdir()
            model = graph(
                "(float[batch,64] x) => (float[batch,400] y) { y = MatMul (x, w) }", w=-weights(64, 400)
            )
            external(model, day / "model.onnx", "weights.bin")
            fresh = root / "volume" / "..data_tmp"
            fresh.symlink_to(day.name)
            fresh.replace(root / "volume" / "..data")
            yard.operator.swap("model")
            np.testing.assert_allclose(yard.client().infer("model", feeds()), -before, rtol=1e-5)
    finally:
        shutil.rmtree(root)
        (run_folder / "moving.log").unlink(missing_ok=True)


def test_weights_outside_the_models_root_are_not_read(stand: Any, run_folder: Path) -> None:
    """The resolved path counts: a link out of the folder that the operator may load from is refused."""
    secret = run_folder / "secret.bin"
    file = stand.folder / "leak.onnx"
    external(product(), file, "leak.bin")
    (stand.folder / "leak.bin").rename(secret)
    (stand.folder / "leak.bin").symlink_to(secret)
    try:
        with pytest.raises(BatchyardError), stand.model(file):
            pass
        assert stand.pilot_answers()
    finally:
        for path in (file, stand.folder / "leak.bin", secret):
            path.unlink()


def test_weights_above_2_gb_are_served(stand: Any) -> None:
    """A file of holes: it takes no room on the disk, and pages that nobody reads none in memory."""
    rows, width = 600_000, 1024  # 2.4 GB of float32
    model = graph("(int64[n] ids) => (float[n,1024] y) { y = Gather (table, ids) }", checked=False)
    table = TensorProto(name="table", data_type=F, dims=[rows, width], data_location=TensorProto.EXTERNAL)
    data = stand.folder / "large.bin"
    for key, value in (("location", data.name), ("offset", "0"), ("length", str(4 * rows * width))):
        table.external_data.add(key=key, value=value)
    model.graph.initializer.append(table)
    file = stand.folder / "large.onnx"
    file.write_bytes(model.SerializeToString())
    try:
        with open(data, "wb") as out:
            out.truncate(4 * rows * width)
            out.seek(4 * width * (rows - 1))
            out.write(np.arange(width, dtype=np.float32).tobytes())
        with stand.model(file) as served:
            answer = served.infer({"ids": np.array([rows - 1, 0, 5])})
            assert answer[0].tolist() == list(range(width))
            assert not answer[1:].any()
    finally:
        file.unlink()
        data.unlink(missing_ok=True)


# ---- models that run on nothing that can be invented -------------------------------------------------

DEMANDING: dict[str, tuple[ModelProto, list[dict[str, Any]]]] = {
    "a reshape to a size that must fit": (
        graph("(float[n,6] x, int64[2] to) => (float[a,b] y) { y = Reshape (x, to) }"),
        [{"x": np.ones((2, 6), np.float32), "to": np.array(to)} for to in ([3, 4], [12, 1], [1, -1])],
    ),
    "a resize to sizes above none": (
        graph("(float[n,1,4,4] x, int64[4] sizes) => (float[n,1,h,w] y) { y = Resize <mode=\"nearest\"> (x, , , sizes) }"),
        [{"x": np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), "sizes": np.array(s)} for s in ([1, 1, 8, 8], [1, 1, 2, 2])],
    ),
    "a division of whole numbers": (
        graph("(int64[n] a, int64[n] b) => (int64[n] y) { y = Div (a, b) }"),
        [{"a": np.array([7, 9]), "b": np.array([2, 3])}, {"a": np.array([7]), "b": np.array([-2])}],
    ),
    "a rate that is one of two": (
        graph(
            """(float[batch,samples] x, int64 sr) => (float[batch,parts] y) {
            k = Constant <value_int = 16000> () c = Equal (sr, k)
            y = If (c) <then_branch = then () => (float[batch,a] p) { p = Reshape (x, wide) },
                        else_branch = other () => (float[batch,b] q) { q = Reshape (x, thin) }> }""",
            checked=False,
            wide=np.array([-1, 512]),
            thin=np.array([-1, 256]),
        ),
        [{"x": np.ones((2, size), np.float32), "sr": np.array(sr)} for size, sr in ((512, 16000), (256, 8000))],
    ),
    "an index inside the table": (
        graph("(int64[n] i) => (float[n,3] y) { j = Sub (i, thousand) y = Gather (table, j) }", table=weights(5, 3), thousand=np.array(1000)),
        [{"i": np.array([1000, 1004])}, {"i": np.array([1002])}],
    ),
    "a size that divides by thirty-two": (
        graph(
            """(float[n,1,h,w] x) => (float[n,1,h,w] y) {
            p = MaxPool <kernel_shape=[32,32], strides=[32,32]> (x) u = Resize <mode="nearest"> (p, , scales) y = Add (x, u) }""",
            scales=np.array([1, 1, 32, 32], np.float32),
        ),
        [{"x": np.random.default_rng(h).random((1, 1, h, 64)).astype(np.float32)} for h in (32, 64)],
    ),
    "a split by sizes": (
        graph("(float[n,6] x, int64[2] sizes) => (float[n,a] y, float[n,b] z) { y, z = Split <axis=1> (x, sizes) }"),
        [{"x": np.ones((2, 6), np.float32), "sizes": np.array(s)} for s in ([2, 4], [6, 0], [1, 5])],
    ),
    "a depth above none": (
        graph("(int64[n] i, int64 depth) => (float[n,d] y) { y = OneHot <axis=-1> (i, depth, values) }", values=np.array([0, 1], np.float32)),
        [{"i": np.array([1, 0]), "depth": np.array(3)}, {"i": np.array([4]), "depth": np.array(5)}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEMANDING)
def test_a_model_that_runs_on_no_invented_input_is_served(stand: Any, name: str) -> None:
    model, requests = DEMANDING[name]
    with stand.model(model) as served:
        assert served.wrong_alone(requests * 2) == []
        assert served.wrong_together(requests * 12) == []


def test_a_failed_warm_up_is_told_and_costs_nobody_anything(stand: Any) -> None:
    """A model that fails on one request answers the next; who asked wrongly is told what onnxruntime says."""
    model, requests = DEMANDING["an index inside the table"]
    with stand.model(model) as served:
        for _ in range(2):
            with pytest.raises(BatchyardError, match=r"(?i)indices|bounds|gather"):
                served.infer({"i": np.array([0])})
            assert served.wrong_alone(requests) == []


def test_a_swap_takes_the_new_files_own_evidence(stand: Any) -> None:
    """To one whose rows look at each other, and back, while many ask for few rows and for many."""
    text = "(float[n,4] x) => (float[n,4] y) {{ y = Softmax <axis={}> (x) }}"
    other = stand.folder / "mixing.onnx"
    onnx.save(graph(text.format(0)), other)
    rng = np.random.default_rng(0)
    with stand.model(graph(text.format(1))) as served:
        requests = [{"x": rng.standard_normal((rows, 4)).astype(np.float32)} for rows in [1, 3, 40, 70] * 40]
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.extend(ask(stand.yard, served.name, requests, 4)))
        asking.start()
        for file, batches in ((other, False), (served.file, True), (other, False)):
            stand.yard.operator.swap(served.name, file)
            assert served.info().batchable is batches
        asking.join()
        either = [served.plain, Plain(str(other))]
        for each, answer in zip(requests, answers, strict=True):
            wrong = [differences(plain, [each], [answer]) for plain in either]
            assert [] in wrong, wrong


def test_a_model_that_runs_on_no_invented_input_learns_from_its_first_requests(stand: Any) -> None:
    table = weights(50, 8)
    model = graph(
        "(int64[n,5] ids) => (float[n,5,8] y) { i = Sub (ids, first) y = Gather (table, i) }",
        first=np.array(1000),
        table=table,
    )
    rng = np.random.default_rng(0)
    with stand.model(model) as served:
        assert "no inputs could be invented" in served.info().alone_reason
        give_up_s = time.monotonic() + 60
        while not served.info().batchable and time.monotonic() < give_up_s:
            requests = [{"ids": rng.integers(1000, 1050, (rows, 5))} for rows in (1, 2, 3, 4) * 4]
            assert served.wrong_together(requests) == []
        assert "on its first requests" in served.info().evidence
        assert served.wrong_together([{"ids": rng.integers(1000, 1050, (rows, 5))} for rows in (1, 70, 3)]) == []
