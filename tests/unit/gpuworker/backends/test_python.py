"""Python functions as models: what they are given, and what becomes of what they return."""

from __future__ import annotations

import gc
import hashlib
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.gpuworker.answers import IN_PLACE_MIN_BYTES
from batchyard.gpuworker.backends.python import FunctionModel
from batchyard.gpuworker.comparison import compare
from batchyard.gpuworker.faults import CannotServe
from batchyard.gpuworker.imports import UserError
from batchyard.tests.unit.gpuworker.backends.test_onnx import ARENA, Yard, answers
from batchyard.transport import messages as m
from batchyard.transport.digests import digest
from batchyard.transport.dtypes import BY_NAME
from batchyard.transport.python_models import Function, FunctionSignature, declared
from batchyard.transport.tensors import Slot

WIDE = 40_000  # floats: 160 kB a row, enough to be handed over where it lies

HEAD = """
import numpy as np
import sys
import batchyard
seen = []
kept = []
"""

Array = np.ndarray[Any, Any]


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.close()


class Folder:
    """Writes a file with a function `f`, and makes a model of it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "model.py"

    def model(
        self,
        body: str,
        inputs: str = '"float32[batch, 4]"',
        outputs: str = '"float32[batch, 4]"',
        signature: FunctionSignature | None = None,
        max_batch: int = 8,
        batchable: bool | None = None,
        warmup: bool = False,
        buckets: list[int] | None = None,
    ) -> FunctionModel:
        marked = f"@batchyard.model(inputs={inputs}, outputs={outputs})\n" if signature is None else ""
        self.path.write_text(f"{HEAD}{marked}{body}\n")
        function = Function("f", "", signature)
        load = m.Load(
            "net", 1, str(self.path), max_batch, batchable, warmup, buckets or [], 0, None, function
        )
        return FunctionModel(load, function)

    def refused(self, body: str, **options: Any) -> str:
        with pytest.raises(CannotServe) as caught:
            self.model(body, **options)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def module_of(model: FunctionModel) -> Any:
    return sys.modules[model._own]


def ask(yard: Yard, model: FunctionModel, *inputs: Array, width: int = 4) -> list[Array]:
    return answers(yard, model, inputs, width, 64)[0]


def ones(rows: int = 1, width: int = 4) -> Array:
    return np.ones((rows, width), np.float32)


def test_numpys_scalars_are_arrays_without_axes(folder: Folder) -> None:
    """`x + 1` of an array without axes is a scalar. The warm-up runs it."""
    model = folder.model("def f(x):\n    seen.append(x + 1)\n    return x + 1", '"float32[]"', '"float32[]"', warmup=True)
    assert [type(value) for value in module_of(model).seen[:1]] == [np.float32]


# ---- what it is given ---------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0, 64])
@pytest.mark.parametrize("width", [4, WIDE], ids=["small", "big"])
@pytest.mark.parametrize("rows", [(1,), (1, 1, 1), (2, 1, 3)], ids=str)
def test_a_function_is_called_once_with_the_rows_of_all_requests(
    yard: Yard, folder: Folder, gap: int, width: int, rows: tuple[int, ...]
) -> None:
    axes = f'"float32[batch, {width}]"'
    model = folder.model("def f(x):\n    seen.append(x.shape)\n    return -x * x.shape[0]", axes, axes)
    rng = np.random.default_rng(width)
    for _ in range(3):  # the second and third time bindings are cached
        inputs = [rng.standard_normal((count, width)).astype(np.float32) for count in rows]
        for x, y in zip(inputs, answers(yard, model, inputs, width, gap)[0], strict=True):
            np.testing.assert_array_equal(y, -x * sum(rows))
    assert module_of(model).seen == [(sum(rows), width)] * 3


def test_big_items_that_lie_apart_are_one_call_all_the_same(yard: Yard, folder: Folder) -> None:
    axes = '"float32[batch, 300000]"'  # 1.2 MB a row
    model = folder.model("def f(x):\n    seen.append(len(x))\n    return x.copy()", axes, axes)
    ask(yard, model, ones(1, 300_000), ones(1, 300_000), width=300_000)
    assert module_of(model).seen == [2]


def test_a_big_input_is_read_where_it_lies_and_counts_as_not_copied(yard: Yard, folder: Folder) -> None:
    axes = f'"float32[batch, {WIDE}]"'
    model = folder.model("def f(x):\n    seen.append(x.ctypes.data)\n    return -x", axes, axes)
    x = ones(1, WIDE)
    offset = yard.next
    _, result = answers(yard, model, [x], WIDE, 0)
    view = yard.memory.view(yard.memory.range(ARENA, 0, 0).address + offset, x.nbytes)
    assert view is not None
    assert module_of(model).seen == [np.frombuffer(view, np.float32).ctypes.data]
    assert result.copied_bytes == x.nbytes  # what it returned: that is the function's own memory
    assert x.nbytes >= IN_PLACE_MIN_BYTES


@pytest.mark.parametrize("width", [4, WIDE], ids=["small", "big"])
def test_a_function_cannot_write_to_what_it_is_given(yard: Yard, folder: Folder, width: int) -> None:
    axes = f'"float32[batch, {width}]"'
    model = folder.model("def f(x):\n    x[0] = 0\n    return x", axes, axes)
    with pytest.raises(UserError, match="ValueError: assignment destination is read-only"):
        ask(yard, model, ones(1, width), width=width)
    model = folder.model("def f(x):\n    x.setflags(write=True)\n    return x", axes, axes)
    with pytest.raises(UserError, match="cannot set WRITEABLE flag"):
        ask(yard, model, ones(1, width), width=width)


KEEPERS = [
    "kept.append(x)",
    "kept.append(x[0])",
    "kept.append(x.reshape(-1)[1:].T)",
    "kept.append(memoryview(x))",
]


@pytest.mark.parametrize("keeps", KEEPERS)
@pytest.mark.parametrize("width", [4, WIDE], ids=["small", "big"])
def test_a_function_that_keeps_a_view_of_its_input_is_told_to_copy(
    yard: Yard, folder: Folder, keeps: str, width: int
) -> None:
    axes = f'"float32[batch, {width}]"'
    model = folder.model(f"def f(x):\n    {keeps}\n    return -x", axes, axes)
    with pytest.raises(UserError, match=r"model\.py:f has kept its input 'input'.* keep x\.copy\(\)"):
        ask(yard, model, ones(1, width), width=width)


def test_a_view_that_was_kept_stays_readable_when_its_arena_is_gone(yard: Yard, folder: Folder) -> None:
    axes = f'"float32[batch, {WIDE}]"'
    model = folder.model("def f(x):\n    kept.append(x)\n    return -x", axes, axes)
    with pytest.raises(UserError, match="kept its input"):
        ask(yard, model, ones(1, WIDE), width=WIDE)
    model.forget_bindings()
    yard.memory.detach(ARENA)
    (kept,) = module_of(model).kept
    assert kept.sum() == WIDE  # unmapped, this would end the process
    module_of(model).kept.clear()
    del kept


def test_copies_cycles_and_results_that_are_views_keep_nothing(yard: Yard, folder: Folder) -> None:
    model = folder.model(
        "def f(x):\n    kept.append(x.copy())\n    loop = [x]\n    loop.append(loop)\n    return x[:]\n"
    )
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(ask(yard, model, x)[0], x)


def test_several_inputs_come_in_a_dict_of_the_functions_own(yard: Yard, folder: Folder) -> None:
    model = folder.model(
        "def f(batch):\n    a = batch.pop('a')\n    return {'d': a - batch['b'], 'e': a.sum(1, dtype=np.float64)}",
        '{"a": "float32[n, 4]", "b": "float32[n, 4]"}',
        '{"e": "float64[n]", "d": "float32[n, 4]"}',
    )
    a, b = ones(2), ones(2) * 3
    for _ in range(2):
        tensors = [yard.put(x, 1, 64) for x in (a, b)]
        slots = [Slot(yard.room(16), 16), Slot(yard.room(32), 32)]
        yard.run(model, m.Item(ARENA, tensors, slots))
        np.testing.assert_array_equal(yard.read(slots[0], np.float64, (2,)), a.sum(1))
        np.testing.assert_array_equal(yard.read(slots[1], np.float32, (2, 4)), a - b)


@pytest.mark.parametrize(
    "name", ["float16", "bfloat16", "bool", "complex64", "int64", "uint8", "float8e4m3fn"]
)
def test_every_kind_of_element_goes_in_and_out(yard: Yard, folder: Folder, name: str) -> None:
    axes = f'"{name}[batch, 4]"'
    model = folder.model("def f(x):\n    return x[:, ::-1]", axes, axes, warmup=True)
    entry = BY_NAME[name]
    x = np.array([[0, 1, 1, 0], [1, 1, 0, 0]]).astype(entry.numpy)
    slot = Slot(yard.room(x.nbytes), x.nbytes)
    yard.run(model, m.Item(ARENA, [yard.put(x, entry.code)], [slot]))
    np.testing.assert_array_equal(yard.read(slot, entry.numpy, x.shape), x[:, ::-1])


def test_padding_is_the_last_row_again_and_is_not_handed_out(yard: Yard, folder: Folder) -> None:
    model = folder.model("def f(x):\n    seen.append((len(x), x[3:].sum()))\n    return -x", buckets=[4, 8])
    ask(yard, model, ones(4) * 9)
    y = ask(yard, model, ones(3))
    assert module_of(model).seen == [(4, 36.0), (4, 4.0)]
    np.testing.assert_array_equal(y[0], -ones(3))


def test_inputs_that_others_want_too_are_compared_with_their_digest(yard: Yard, folder: Folder) -> None:
    model = folder.model("def f(x):\n    return -x")
    x = ones()
    good = m.Item(ARENA, [yard.put(x, 1)], [], digest([x.tobytes()]))
    bad = m.Item(ARENA, [yard.put(x, 1)], [], b"\0" * 16)
    assert yard.run(model, good, bad).changed == [1]


# ---- what it returns ----------------------------------------------------------------------------


def test_outputs_whose_size_nobody_knew_go_back_as_frames(yard: Yard, folder: Folder) -> None:
    model = folder.model("def f(x):\n    return x[:, : int(x.max())]", outputs='"float32[batch, some]"')
    for most in (1, 3):
        result = yard.run(model, m.Item(ARENA, [yard.put(ones(2) * most, 1)], []))
        (item,) = result.inline_outputs
        assert item.outputs[0].shape == [2, most]
        assert result.frames == [(ones(2, most) * most).tobytes()]


RETURNS = [
    ("x.tolist()", "output 'output' is a list, not a numpy array"),
    ("None", "returned None: it must return output"),
    ("x.astype(np.float64)", r"output output: float32\[batch, 4\] was returned as float64; convert it explicitly"),
    ("x.astype('>f4')", "was returned as >f4"),
    ("x[:1]", "was returned with 1 rows for 2"),
    ("x[:, :3]", r"was returned with shape \[2, 3\]"),
    ("x[None]", r"was returned with shape \[1, 2, 4\]"),
    ("{'y': x}", "returned 'y'; its outputs are output"),
    ("{}", "returned nothing; its outputs are output"),
    ("{'output': x, 'more': x}", "returned 'output', 'more'; its outputs are output"),
]


@pytest.mark.parametrize(("returns", "said"), RETURNS)
def test_what_is_not_as_declared_is_refused_by_name(
    yard: Yard, folder: Folder, returns: str, said: str
) -> None:
    model = folder.model(f"def f(x):\n    return {returns}")
    with pytest.raises(UserError, match=f"^model.py:f.*{said}"):
        ask(yard, model, ones(2))


def test_one_array_is_not_enough_for_two_outputs(yard: Yard, folder: Folder) -> None:
    model = folder.model("def f(x):\n    return x", outputs='{"a": "float32[n, 4]", "b": "float32[n, 4]"}')
    with pytest.raises(
        UserError, match="returned a ndarray, and has several outputs: it must return a dict of a, b"
    ):
        yard.run(model, m.Item(ARENA, [yard.put(ones(), 1)], []))


def test_an_output_in_other_memory_order_arrives_in_ours(yard: Yard, folder: Folder) -> None:
    model = folder.model("def f(x):\n    return np.asfortranarray(x * 2)")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(ask(yard, model, x)[0], x * 2)


# ---- what it raises -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raises", "said"),
    [
        ("raise KeyError('x')", "model.py:f raised KeyError: 'x'"),
        ("raise ValueError('one\\ntwo')", "model.py:f raised ValueError: one"),
        ("raise AssertionError", "model.py:f raised AssertionError"),
        ("sys.exit(3)", "model.py:f raised SystemExit: 3"),
        ("raise KeyboardInterrupt", "model.py:f raised KeyboardInterrupt"),
        ("import asyncio; raise asyncio.CancelledError", "model.py:f raised CancelledError"),
        ("return f(x)", "model.py:f raised RecursionError: maximum recursion depth exceeded"),
        (r"raise OSError('no \udce4.npy')", "model.py:f raised OSError: no ?.npy"),
    ],
)
def test_what_it_raises_is_told_by_type_and_message(
    yard: Yard, folder: Folder, raises: str, said: str
) -> None:
    model = folder.model(f"def f(x):\n    {raises}")
    with pytest.raises(UserError) as caught:
        ask(yard, model, ones())
    assert str(caught.value) == said


def test_the_log_has_the_users_own_lines_once(
    yard: Yard, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    model = folder.model("def f(x):\n    return g(x)\n\ndef g(x):\n    return x / 0 if len(x) else missing")
    model = folder.model("def f(x):\n    return g(x)\n\ndef g(x):\n    raise OSError('no card')")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):  # halves of a batch
            with pytest.raises(UserError):
                ask(yard, model, ones())
    (record,) = caplog.records
    assert record.getMessage().startswith("model.py:f failed\nTraceback (most recent call last):\n")
    assert f'File "{folder.path}", line 9, in f' in record.getMessage()
    assert f'File "{folder.path}", line 12, in g' in record.getMessage()
    assert "gpuworker" not in record.getMessage()


# ---- what is loaded -----------------------------------------------------------------------------


def test_a_class_is_made_once_and_its_object_is_called(yard: Yard, folder: Folder) -> None:
    model = folder.model(
        "class f:\n"
        "    def __init__(self):\n        self.calls = 0\n        seen.append('made')\n"
        "    def __call__(self, x):\n        self.calls += 1\n        return x + self.calls"
    )
    assert [ask(yard, model, ones())[0][0, 0] for _ in range(3)] == [2, 3, 4]
    assert module_of(model).seen == ["made"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def g(x): return x", "model.py:f: the module has no 'f'"),
        ("def f(x): return x\nf = 3", "model.py:f does not say what it takes"),
        ("class f:\n    pass", "model.py:f is a f, and cannot be called"),
        (
            "class f:\n    def __init__(self): raise OSError('no weights')",
            "model.py:f cannot be made: OSError: no weights",
        ),
        ("class f:\n    def __init__(self, path): pass", "model.py:f cannot be made: TypeError"),
        ("async def f(x): return x", "is a coroutine"),
        ("async def f(x): yield x", "is a coroutine"),
        ("class f:\n    async def __call__(self, x): return x", "is a coroutine"),
        (
            "def f(x): return x\nimport nowhere",
            "model.py:f cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("def f(x): return x\nraise SystemExit", "model.py:f cannot be imported: SystemExit"),
        ("def f(x): return x\nraise KeyboardInterrupt", "model.py:f cannot be imported: KeyboardInterrupt"),
        ("class f:\n    def __init__(self): raise GeneratorExit", "model.py:f cannot be made: GeneratorExit"),
        ("def f(x): return x\n(", "model.py:f cannot be imported: SyntaxError: '(' was never closed"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_its_reason(folder: Folder, body: str, said: str) -> None:
    assert said in folder.refused(body)


def test_a_function_must_say_what_it_takes_and_only_once(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def f(x): return x")
    function = Function("f")
    with pytest.raises(CannotServe, match=r"does not say what it takes: put @batchyard\.model"):
        FunctionModel(
            m.Load("net", 1, str(tmp_path / "model.py"), 8, None, True, [], 0, None, function), function
        )
    other = declared("float32[batch, 5]", "float32[batch, 4]")
    folder.model("def f(x): return x")
    function = Function("f", "", other)
    with pytest.raises(CannotServe, match="declares other inputs or outputs than its yard was told"):
        FunctionModel(m.Load("net", 1, str(folder.path), 8, None, True, [], 0, None, function), function)


def test_undeclared_outputs_are_found_out_by_calling_it(folder: Folder) -> None:
    body = "def f(batch):\n    x = batch['x']\n    return {'y': x[:, :2], 't': x[:, :, 0].astype(np.int64), 'all': x.sum()[None]}"
    model = folder.model(body, signature=declared({"x": "float32[n, 5, t]"}), warmup=True)
    assert [str(spec) for spec in model.outputs] == [
        "y: float32[n, 2, axis2]", "t: int64[n, 5]", "all: float32[1]",
    ]  # fmt: skip
    assert not model.batchable
    assert "every axis of output 'all' is fixed" in model.alone_reason
    assert "warmup = false forbids" in folder.refused(body, signature=declared({"x": "float32[n, 5, t]"}))


@pytest.mark.parametrize(
    "returns", ["{}", "{5: x}", "{'a\\n': x}", "{str(len(x)): x}", "x.astype(object)", "x if len(x) == 2 else -x.astype(int)"]
)
def test_outputs_that_cannot_be_found_out_are_refused(folder: Folder, returns: str) -> None:
    said = folder.refused(f"def f(x): return {returns}", signature=declared("float32[n]"), warmup=True)
    assert said.startswith("its first run failed: model.py:f")


def test_the_warm_up_runs_every_bucket_and_tells_what_fails(folder: Folder) -> None:
    model = folder.model("def f(x):\n    seen.append(len(x))\n    return x", warmup=True, buckets=[2, 8])
    assert set(model.warmup_ns) == set(module_of(model).seen) == {2, 8}
    said = folder.refused("def f(x): raise ValueError('zeros!')", warmup=True)
    assert said == "its first run failed: model.py:f raised ValueError: zeros!"
    assert "has kept its input" in folder.refused("def f(x):\n    kept.append(x)\n    return x", warmup=True)


def test_a_function_may_bound_its_batches(folder: Folder) -> None:
    signature = declared("float32[n]", "float32[n]", max_batch=4)
    assert folder.model("def f(x): return x", signature=signature).max_batch == 4
    assert folder.model("def f(x): return x", signature=signature, max_batch=2).max_batch == 2
    assert "takes 4 rows at most" in folder.refused("def f(x): return x", signature=signature, buckets=[8])


def test_a_function_without_a_batch_axis_runs_alone(yard: Yard, folder: Folder) -> None:
    axes = '"float32[3, 4]"'
    model = folder.model("def f(x): return -x", axes, axes)
    assert (model.batchable, model.max_batch) == (False, 1)
    slot = Slot(yard.room(48), 48)
    yard.run(model, m.Item(ARENA, [yard.put(ones(3), 1)], [slot]), rows=0)
    np.testing.assert_array_equal(yard.read(slot, np.float32, (3, 4)), -ones(3))


def test_batchable_false_frees_a_function_from_answering_row_for_row(yard: Yard, folder: Folder) -> None:
    model = folder.model("def f(x): return x[:1]", outputs='"float32[some, 4]"', batchable=False, warmup=True)
    assert not model.batchable
    result = yard.run(model, m.Item(ARENA, [yard.put(ones(3), 1)], []), rows=0)
    assert result.inline_outputs[0].outputs[0].shape == [1, 4]


def test_the_worker_says_that_it_is_python_and_which(folder: Folder) -> None:
    model = folder.model("def f(x): return x")
    assert (model.recipe.name, model.placement) == ("python", "model.py:f")


# ---- a new revision beside the old one ----------------------------------------------------------


def test_its_origin_is_the_digest_of_its_source_so_that_nodes_that_differ_are_seen(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = ("def f(x): return x", "def f(x): return -x")
    digests = []
    for body in bodies:
        origin = folder.model(body).origin
        assert origin == m.Provenance(hashlib.sha256(folder.path.read_bytes()).hexdigest())
        digests.append(origin.sha256)
    assert digests[0] != digests[1]
    folder.path.rename(tmp_path / "of_a_module.py")
    monkeypatch.syspath_prepend(tmp_path)
    function = Function("f", "of_a_module")
    named = FunctionModel(m.Load("net", 1, "", 8, None, False, [], 0, None, function), function)
    assert named.origin is not None
    assert named.origin.sha256 == digests[1]
    monkeypatch.delitem(sys.modules, "of_a_module")


def test_a_file_that_changed_is_read_anew_and_the_old_one_answers_on(yard: Yard, folder: Folder) -> None:
    old = folder.model("def f(x): return x + 1", warmup=True)
    new = folder.model("def f(x): return x + 2", warmup=True)  # as long, and in the same second
    assert (ask(yard, old, ones())[0][0, 0], ask(yard, new, ones())[0][0, 0]) == (2, 3)
    assert compare(old, new, None) == pytest.approx(1)
    with pytest.raises(CannotServe, match=r"differ by up to 1, and 0\.5 is allowed"):
        compare(old, new, 0.5)


def test_a_revision_that_is_dropped_takes_its_module_and_its_weights_with_it(
    yard: Yard, folder: Folder
) -> None:
    """At once: the loader freezes what the collector knows of, so a cycle would stay for good."""
    model = folder.model(
        "weights = np.ones(4, np.float32)\nclass f:\n"
        "    def __init__(self):\n        self.more = np.ones(4, np.float32)\n"
        "    def __call__(self, x):\n        return x + weights + self.more",
        signature=declared("float32[batch, 4]", "float32[batch, 4]"),
        warmup=True,
    )
    ask(yard, model, ones())
    name = model._own
    held = [weakref.ref(array) for array in (module_of(model).weights, model._call.more)]  # type: ignore[attr-defined]
    gc.disable()
    try:
        del model
        assert name not in sys.modules
        assert [array() for array in held] == [None, None]
    finally:
        gc.enable()


def test_a_canary_waits_for_the_batch_that_runs(yard: Yard, folder: Folder) -> None:
    """A function need not bear to be called twice at once."""
    model = folder.model(
        "import threading\n"
        "busy, go = threading.Event(), threading.Event()\n"
        "@batchyard.model(inputs='float32[batch, 4]', outputs='float32[batch, 4]')\n"
        "def f(x):\n    seen.append('in')\n    busy.set()\n    go.wait(20)\n    seen.append('out')\n    return -x",
        signature=declared("float32[batch, 4]", "float32[batch, 4]"),
    )
    module = module_of(model)
    canary = threading.Thread(target=lambda: model.answers(model.canary(1), 1))
    canary.start()
    assert module.busy.wait(20)
    other = threading.Thread(target=ask, args=(yard, model, ones()))
    other.start()
    other.join(0.05)
    assert module.seen == ["in"]
    module.go.set()
    canary.join()
    other.join()
    assert module.seen == ["in", "out", "in", "out"]


# ---- generators ---------------------------------------------------------------------------------


def test_a_generator_streams_and_is_warmed_up_by_its_first_answer(folder: Folder) -> None:
    model = folder.model("def f(x):\n    yield x\n    raise ValueError", warmup=True)
    assert (model.streams, model.batchable) == (True, False)
    assert "one by one" in model.alone_reason
    assert folder.model("class f:\n    def __call__(self, x): yield x").streams
    assert not folder.model("def f(x): return x").streams


def test_a_generator_that_yields_nothing_for_zeros_is_refused_where_it_is_tried(folder: Folder) -> None:
    body = "def f(x):\n    if x.any(): yield x"
    assert "yielded nothing for zeros" in folder.refused(body, warmup=True)
    assert folder.model(body).streams
