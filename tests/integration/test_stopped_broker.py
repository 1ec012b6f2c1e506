"""A broker, or a gateway, that stands still (SIGSTOP) holds nobody up: not a call beyond its timeout, not an event loop,
not the I/O thread. For each driver of the client, over each wire, with shared memory and with frames."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard import AsyncClient, Client
from batchyard.client.yard import LOOK_S
from batchyard.transport.errors import BatchyardError, DeadlineExceeded, Overloaded

from .gateways import Gateway, gateway

TIMEOUT_S = 0.3
STOPPED_S = 20.0  # so long would a call wait that is held up
CALLS = 4
WIDTH = 1 << 18  # float32: a mebibyte, so that some dozens fill every buffer there is
X = np.ones((1, WIDTH), np.float32)
SMALL = np.ones((1, 4), np.float32)
EVER = """
import time
import batchyard

@batchyard.model(inputs={"x": "float32[n, 4]"}, outputs={"y": "float32[m, 4]"})
def ever(batch):
    while True:
        yield {"y": batch["x"]}
        time.sleep(0.001)
"""


class Behind:
    """A gateway in the broker's place: it is what its clients wait for."""

    def __init__(self, served: Gateway, way: str) -> None:
        self.url = f"{way}://{getattr(served, way)}"
        self.processes = [served.process]

    def client(self, **options: Any) -> Client:
        return Client(self.url, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        return AsyncClient(self.url, **options)

    def wait_ready(self, client: Client, model: str, give_up_s: float) -> None:
        client.wait_ready(model, give_up_s - time.monotonic())


@pytest.fixture(scope="module", params=["ipc", "ipc frames", "tcp", "http", "grpc"])
def yard(
    request: pytest.FixtureRequest, onnx_models: Any, tools: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    (folder := tmp_path_factory.mktemp("ever")).joinpath("m.py").write_text(EVER)
    url = f"tcp://127.0.0.1:{tools.free_port()}" if request.param == "tcp" else None
    models = {
        "neg": onnx_models.unary("small", "Neg", ["n", 4]),
        "big": onnx_models.unary("big", "Neg", ["n", WIDTH]),
        "ever": f"{folder}/m.py:ever",
    }
    with batchyard.serve(
        models,
        workers=1,
        threads=1,
        url=url,
        max_batch=2,
        options={"ever": {"warmup": False}},
        open_to_this_machine=True,
    ) as made:
        with made.client() as client:
            for name in models:
                client.wait_ready(name, 30)
        if request.param in ("http", "grpc"):
            pytest.importorskip("httpx" if request.param == "http" else "grpc")
            with gateway(made.url, tools.free_port()) as served:
                yield Behind(served, request.param), None
        else:
            yield made, "frames" if "frames" in request.param else None


class Stop:
    """A broker that stands still until somebody has waited for it for STOPPED_S."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended = False

    @property
    def lasts(self) -> bool:
        return not self.ended

    def end(self) -> None:
        self.ended = True
        os.kill(self.pid, signal.SIGCONT)


@contextmanager
def stopped(yard: Any) -> Iterator[Stop]:
    """The broker stands still meanwhile; a thread lets it go on, so that a call that waits for it does not
    hang: then the stop is over before the call is."""
    stop = Stop(yard.processes[0].pid)
    os.kill(stop.pid, signal.SIGSTOP)
    timer = threading.Timer(STOPPED_S, stop.end)
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()
        timer.join()
        os.kill(stop.pid, signal.SIGCONT)


def check(client: Client) -> None:
    assert (client.infer("neg", np.ones((1, 4), np.float32), timeout=30) == -1).all()


def ends_meanwhile(call: Callable[[], Any], stop: Stop) -> bool:
    """Whether a call ended while the broker stood still; in one of the errors that there are for it."""
    with pytest.raises((DeadlineExceeded, Overloaded)):
        call()
    return stop.lasts


def test_infer_ends_in_time(yard: Any) -> None:
    made, segment = yard
    with made.client(segment=segment, arena_bytes=256 << 20) as client:
        check(client)
        client.infer("big", X)
        with stopped(made) as stop:
            for _ in range(CALLS):
                assert ends_meanwhile(lambda: client.infer("big", X, timeout=0.1), stop)
        check(client)


def test_a_first_call_ends_in_time_though_it_must_connect(yard: Any) -> None:
    made, segment = yard
    with made.client(segment=segment, connect_timeout=0.2) as client, stopped(made) as stop:
        with pytest.raises(BatchyardError):
            client.infer("neg", np.ones((1, 4), np.float32), timeout=TIMEOUT_S)
        assert stop.lasts


def test_a_yard_waits_for_its_models_longer_than_a_client_does_to_connect(yard: Any) -> None:
    made, segment = yard
    with made.client(segment=segment) as client, stopped(made) as stop:
        goes_on = threading.Timer(3 * LOOK_S, stop.end)
        goes_on.start()
        made.wait_ready(client, "neg", time.monotonic() + STOPPED_S)
        goes_on.join()
        check(client)


def test_submit_never_waits_and_every_future_ends_in_time(yard: Any) -> None:
    made, segment = yard
    ended: queue.SimpleQueue[bool] = queue.SimpleQueue()  # callbacks have a thread of their own
    with made.client(segment=segment, arena_bytes=256 << 20) as client:
        check(client)
        client.infer("big", X)
        client.submit("neg", np.ones((1, 4), np.float32)).result(30)
        with stopped(made) as stop:
            futures = []
            for _ in range(40):
                future = client.submit("big", X, timeout=TIMEOUT_S)
                future.add_done_callback(lambda _: ended.put(stop.lasts))
                futures.append(future)
            assert stop.lasts, "a submit waited"
            for future in futures:
                assert isinstance(future.exception(2 * STOPPED_S), DeadlineExceeded | Overloaded)
        assert [ended.get(timeout=STOPPED_S) for _ in futures] == [True] * 40
        check(client)


@pytest.mark.parametrize("answers", [0, 3])
def test_a_stream_ends_in_time(yard: Any, answers: int) -> None:
    """Before its first answer, and amid them."""
    made, segment = yard
    with made.client(segment=segment) as client:
        check(client)
        client.submit("neg", SMALL).result(30)
        for _ in range(2):
            stream = client.stream("ever", SMALL, timeout=TIMEOUT_S)
            for _ in range(answers):
                assert (next(stream) == 1).all()
            with stopped(made) as stop:
                assert ends_meanwhile(partial(list, stream), stop)
        check(client)


@pytest.mark.parametrize("answers", [0, 3])
def test_a_stream_on_an_event_loop_ends_in_time(yard: Any, answers: int) -> None:
    made, segment = yard

    async def main() -> None:
        async with made.async_client(segment=segment) as client:
            await client.infer("neg", SMALL)
            stream = client.stream("ever", SMALL, timeout=TIMEOUT_S)
            for _ in range(answers):
                assert (await anext(stream) == 1).all()
            with stopped(made) as stop:
                with pytest.raises((DeadlineExceeded, Overloaded)):
                    async for _ in stream:
                        pass
                assert stop.lasts
            assert (await client.infer("neg", SMALL) == -1).all()

    asyncio.run(main())


def test_map_ends_in_time(yard: Any) -> None:
    made, segment = yard
    with made.client(segment=segment, arena_bytes=256 << 20) as client:
        check(client)
        inputs = [X] * 30
        next(client.map("big", inputs, timeout=30))
        with stopped(made) as stop:
            # Its first question is whether the model is the same: that one ends in time as well.
            assert ends_meanwhile(lambda: list(client.map("big", inputs, timeout=TIMEOUT_S)), stop)
        check(client)


def test_the_event_loop_goes_on_and_every_coroutine_ends_in_time(yard: Any) -> None:
    made, segment = yard
    ended: list[bool] = []

    async def one(client: AsyncClient, stop: Stop) -> None:
        with pytest.raises((DeadlineExceeded, Overloaded)):
            await client.infer("big", X, timeout=TIMEOUT_S)
        ended.append(stop.lasts)

    async def main() -> float:
        longest_s = 0.0

        async def tick() -> None:
            nonlocal longest_s
            while True:
                began_s = time.monotonic()
                await asyncio.sleep(0.005)
                longest_s = max(longest_s, time.monotonic() - began_s)

        async with made.async_client(segment=segment, arena_bytes=256 << 20) as client:
            await client.infer("big", X)
            with stopped(made) as stop:
                ticking = asyncio.ensure_future(tick())
                # One after the other: forty copies in one step of the loop would be a pause by themselves.
                calls = []
                for _ in range(40):
                    calls.append(asyncio.ensure_future(one(client, stop)))
                    await asyncio.sleep(0)
                await asyncio.gather(*calls)
                ticking.cancel()
            assert (await client.infer("big", X) == -1).all()
        return longest_s

    longest_s = asyncio.run(main())
    assert ended == [True] * 40
    assert longest_s < STOPPED_S / 4, "the event loop stood still"
