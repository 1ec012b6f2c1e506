"""Large rows, large answers, and many shapes at once: what there is room for is answered."""

from __future__ import annotations

import threading
from collections import Counter, deque
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from batchyard import Priority

from .graphs import graph

MIB = 1 << 20


def peak_of(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak(pid: int) -> None:
    """Forget the peak so far."""
    with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as reset:
        reset.write("5")


def test_a_large_row_takes_no_more_room_than_itself(stand: Any) -> None:
    """With room for 1,024 rows in a run, one row of 300 MB is no reason to ask for 307 GB."""
    nbytes = 300 * 10**6
    model = graph(
        "(uint8[batch,bytes] video) => (uint8[batch] y) { y = ReduceMax <keepdims=0> (video, one) }",
        one=np.array([1]),
    )
    with (
        stand.model(model, max_batch=1024) as served,
        stand.yard.client(arena_bytes=nbytes + 64 * MIB) as client,
    ):
        (pid,) = stand.workers()
        before = peak_of(pid)
        row = client.empty((1, nbytes), np.uint8)
        row[:] = 1
        row[0, nbytes // 2] = 77
        for _ in range(2):
            assert client.infer(served.name, row, timeout=120).tolist() == [77]
        assert peak_of(pid) - before < 2 * nbytes
        del row


@pytest.mark.parametrize(("axes", "batches"), [((3, 1080, 1920), True), ((1 << 14, 1 << 14), False)], ids=["frame", "1 GiB"])
def test_a_model_of_large_rows_of_a_stated_size_is_served(stand: Any, axes: tuple[int, ...], batches: bool) -> None:
    """Nothing is refused because it is too large to be tried beforehand."""
    named = ",".join(map(str, axes))
    model = graph(
        f"(float[batch,{named}] x) => (float[batch] y) {{ y = ReduceMean <keepdims=0> (x, rest) }}",
        rest=np.arange(1, 1 + len(axes)),
    )
    with stand.model(model) as served:
        with stand.yard.client() as client:
            (info,) = [each for each in client.models() if each.name == served.name]
        assert info.batchable is batches
        if not batches:
            assert "too large to be tried" in info.alone_reason
            return
        with stand.yard.client(arena_bytes=256 * MIB) as client:
            x = np.random.default_rng(1).random((2, *axes), np.float32)
            assert np.allclose(client.infer(served.name, x, timeout=60), x.mean((1, 2, 3)))


def test_an_answer_of_free_size_may_be_as_large_as_the_arena_and_passes_the_broker_by(stand: Any) -> None:
    """Segmentation, upscaling: 21 planes of the input's own size, up to 174 MB; also asked for by many at once."""
    model = graph(
        "(float[batch,1,h,w] x) => (float[batch,21,h,w] y) { y = Expand (x, s) }",
        checked=False,
        s=np.array([1, 21, 1, 1]),
    )
    broker = stand.yard.processes[0].pid
    reset_peak(broker)
    before = peak_of(broker)
    with stand.model(model) as served, stand.yard.client(arena_bytes=256 * MIB) as client:
        for shape in ((1, 1, 1080, 1920), (2, 1, 300, 500), (1, 1, 3, 5)):
            x = np.random.default_rng(0).random(shape).astype(np.float32)
            for _ in range(2):
                answer = client.infer(served.name, x, timeout=120)
                assert answer.shape == (shape[0], 21, *shape[2:])
                assert all(np.array_equal(answer[:, plane : plane + 1], x) for plane in range(21))
                answer[:] = 0  # it is the caller's
                del answer
        images = [{"x": np.full((1, 1, 300, 400), number, np.float32)} for number in range(16)]
        assert served.wrong_together(images) == []
        assert peak_of(broker) - before < 64 * MIB
        with stand.yard.client(segment="frames") as far:
            assert (far.infer(served.name, images[3]["x"]) == 3).all()


MEAN = graph(
    "(float[batch,tokens,8] x) => (float[batch,8] y) { y = ReduceMean <keepdims=0> (x, one) }",
    one=np.array([1]),
)
LENGTHS = 300


def texts(count: int = LENGTHS) -> list[dict[str, Any]]:
    return [{"x": np.full((1, length, 8), length, np.float32)} for length in range(1, count + 1)]


def test_any_number_of_lengths_may_wait_at_once(stand: Any) -> None:
    with stand.model(MEAN) as served:
        assert served.wrong_together(texts() * 2, clients=2) == []
        assert served.wrong_together(texts(), clients=1) == []
        with stand.yard.client() as client:
            for window in (128, 256):
                answers = list(client.map(served.name, [each["x"] for each in texts()], window=window))
                assert [int(answer[0, 0]) for answer in answers] == list(range(1, LENGTHS + 1))


def test_urgent_requests_are_not_refused_for_others_lengths(stand: Any) -> None:
    """Another client's LOW texts of 200 lengths wait all the time; every URGENT request is answered."""
    layers = " ".join(f"h{n + 1} = MatMul ({'x' if not n else f'h{n}'}, w)" for n in range(100))
    slow = graph(
        f"(float[batch,tokens,64] x) => (float[batch,64] y) {{ {layers} y = ReduceMean <keepdims=0> (h100, one) }}",
        w=np.eye(64, dtype=np.float32),
        one=np.array([1]),
    )
    lengths = [20 + number % 200 for number in range(400)]  # as many as wait at any time
    outcomes: Counter[str] = Counter()
    with stand.model(slow, max_batch=4) as served, stand.yard.client() as low, stand.yard.client() as urgent:
        stop = threading.Event()
        refused: list[BaseException] = []

        def crowd() -> None:
            waiting: deque[Any] = deque()
            try:
                for length in cycle(lengths):
                    x = np.ones((1, length, 64), np.float32)
                    waiting.append(low.submit(served.name, x, priority=Priority.LOW, timeout=120))
                    if len(waiting) == len(lengths):
                        waiting.popleft().result(120)
                    if stop.is_set():
                        break
                for future in waiting:
                    future.result(120)
            except BaseException as error:
                refused.append(error)

        thread = threading.Thread(target=crowd)
        thread.start()
        for number in range(60):
            x = np.ones((1, 3 + number % 5, 64), np.float32)
            try:
                urgent.infer(served.name, x, priority=Priority.URGENT, timeout=30)
                outcomes["answered"] += 1
            except Exception as error:
                outcomes[f"{type(error).__name__}: {error}"] += 1
        stop.set()
        thread.join()
        assert outcomes == {"answered": 60}
        assert refused == []


def test_more_shapes_than_anybody_would_keep_are_forgotten_again(stand: Any) -> None:
    """Each of 400 widths once: what the yard keeps of them does not grow for ever."""
    model = graph("(float[n,w] x) => (float[n,w] y) { y = Neg (x) }")
    with stand.model(model) as served, stand.yard.client() as client:
        for width in range(1, 401):
            answer = client.infer(served.name, np.full((2, width), width, np.float32))
            assert answer.shape == (2, width)
            assert answer[1, -1] == -width


def test_slow_work_of_one_shape_is_not_hung(stand: Any) -> None:
    """A length that takes a second after fifty that took a millisecond: the worker that runs it stays."""
    body = " ".join(f"h{n + 1} = Sin ({'x' if not n else f'h{n}'})" for n in range(60))
    model = graph(
        f"(float[batch,samples] x) => (float[batch] y) {{ {body} y = ReduceMean <keepdims=0> (h60, one) }}",
        one=np.array([1]),
    )
    with stand.model(model, max_batch=1) as served, stand.yard.client(arena_bytes=256 * MIB) as client:
        for _ in range(50):
            client.infer(served.name, np.ones((1, 10), np.float32))
        long = np.linspace(0, 1, 12_000_000, dtype=np.float32)[None]
        answer = client.infer(served.name, long, timeout=120)
        assert np.isfinite(answer).all()


DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "a shape": ("(int64[k] s) => (float[a] y) { y = ConstantOfShape (s) }", {}),
    "a range's end": ("(int64 end) => (int64[m] y) { y = Range (start, end, one) }", {"start": 0, "one": 1}),
    "how often": ("(float[n,3] x, int64[2] by) => (float[a,b] y) { y = Tile (x, by) }", {}),
    "a shape to expand to": ("(float[n,1] x, int64[k] s) => (float[a,b] y) { y = Expand (x, s) }", {}),
    "a depth": ("(int64[n] i, int64 depth) => (float[n,d] y) { y = OneHot (i, depth, v) }", {"v": np.zeros(2, np.float32)}),
    "sizes of an image": ('(float[n,1,4,4] x, int64[4] s) => (float[n,1,h,w] y) { y = Resize <mode="nearest"> (x, , , s) }', {}),
    "room at the edges": ("(float[n,3] x, int64[4] pads) => (float[a,b] y) { y = Pad (x, pads) }", {}),
    "all pairs": ("(float[n] x) => (float[n,m] y) { a = Unsqueeze (x, z) b = Unsqueeze (x, o) y = Mul (a, b) }", {"z": np.array([0]), "o": np.array([1])}),
}  # fmt: skip


@pytest.mark.parametrize("kind", DRAWN)
def test_numbers_that_are_drawn_at_load_ask_for_no_room_that_nobody_has(stand: Any, kind: str) -> None:
    """Sizes come in as inputs: 32 rows of them are a shape of 32 axes, and their product has no bound."""
    text, constants = DRAWN[kind]
    (pid,) = stand.workers()
    reset_peak(pid)
    before = peak_of(pid)
    with stand.model(
        graph(text, checked=False, **{name: np.asarray(value) for name, value in constants.items()})
    ):
        assert peak_of(pid) - before < 512 * MIB
