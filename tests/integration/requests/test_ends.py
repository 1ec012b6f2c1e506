"""How requests and clients end: by a deadline, a cancel, a bound, a close, or the garbage collector."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import (
    AsyncClient,
    BatchyardError,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    Priority,
    UnknownModel,
    serve,
)
from batchyard.client import Yard

from ..gateways import Gateway, behind_a_gateway, everywhere
from .rows import MAX_BATCH

# ---- time ---------------------------------------------------------------------------------------


def saturate(client: Client, count: int = 400) -> list[Any]:
    """Keep both workers busy until these are cancelled: each takes a run of its own."""
    client.wait_ready("slow")
    x = np.zeros((MAX_BATCH, 512), np.float32)
    busy = [client.submit("slow", x, timeout=600) for _ in range(count)]
    busy[0].result(20)  # the I/O thread has sent them: what comes now comes after them
    ended = [future for future in busy if future.done()]
    assert len(ended) < count // 2, [future.exception() for future in ended]
    return busy


@everywhere
@pytest.mark.parametrize("how", ["infer", "submit", "asyncio"])
def test_a_request_that_cannot_be_done_in_time_is_refused_at_once_or_ends_at_its_deadline(
    address: str, client: Client, how: str
) -> None:
    busy = saturate(client)
    x = np.zeros((1, 512), np.float32)

    async def ask() -> None:
        async with AsyncClient(address) as other:
            await other.models()
            began.append(time.monotonic())
            await other.infer("slow", x, deadline=0.05, priority=Priority.LOW)

    ways = {
        "infer": lambda: client.infer("slow", x, deadline=0.05, priority=Priority.LOW),
        "submit": lambda: client.submit("slow", x, deadline=0.05, priority=Priority.LOW).result(20),
        "asyncio": lambda: asyncio.run(ask()),
    }
    began = [time.monotonic()]
    with pytest.raises((DeadlineExceeded, Overloaded)) as caught:
        ways[how]()
    took_s = time.monotonic() - began[-1]
    assert not all(future.done() for future in busy), "it waited for what was before it"
    if isinstance(caught.value, Overloaded):
        assert caught.value.retry_after_s > 0
    else:
        assert took_s >= 0.045
    for future in busy:
        future.cancel()


@everywhere
def test_timeout_is_the_callers_patience_even_with_a_later_deadline(client: Client) -> None:
    busy = saturate(client)
    x = np.zeros((1, 512), np.float32)
    with pytest.raises(DeadlineExceeded):
        client.infer("slow", x, timeout=0.05, deadline=100_000, priority=Priority.LOW)
    with pytest.raises(DeadlineExceeded):
        client.submit("slow", x, timeout=0.05, deadline=100_000, priority=Priority.LOW).result(20)
    assert not all(future.done() for future in busy), "they waited for what was before them"
    for future in busy:
        future.cancel()


@everywhere
def test_a_deadline_that_is_years_away_is_a_deadline_like_any_other(yard: Yard, client: Client) -> None:
    x = np.ones((1, 512), np.float32)
    for forever in (1e7, 9e8):
        assert client.infer("slow", x, timeout=forever) is not None
        assert client.submit("slow", x, deadline=forever, timeout=forever).result(20) is not None
    assert yard.snapshot()["workers"] == 2
    assert [process.restarts for process in yard.processes] == [0, 0, 0]


def test_cancelling_a_future_ends_it_and_its_work_is_never_run(
    yard: Yard, client: Client, tools: Any
) -> None:
    def ended(outcome: str) -> int:
        return sum(
            n for model, _, how, n in yard.snapshot()["requests"] if model == "slow" and how == outcome
        )

    before = ended("cancelled")
    busy = saturate(client, 40)
    late = [client.submit("slow", np.zeros((1, 512), np.float32)) for _ in range(5)]
    # What is cancelled before it has left never comes to the broker, and is counted nowhere.
    tools.until(lambda: all(future._request is None or future._request.is_sent for future in late))
    assert all(future.cancel() for future in late)
    assert all(future.cancelled() for future in late)
    with pytest.raises(concurrent.futures.CancelledError):
        late[0].result(30)
    for future in busy:
        future.result(20)
    tools.until(lambda: ended("cancelled") >= before + 5, what="cancellations at the broker")
    assert late[0].cancel()  # again: it is still cancelled
    assert not busy[0].cancel()  # it is done
    tools.until(lambda: not client._io.busy, what="slots of what was cancelled")  # type: ignore[union-attr]


@contextlib.contextmanager
def standing_still(client: Client, tools: Any) -> Iterator[None]:
    """No worker of `slow` runs anything."""
    pids = tools.worker_pids(client, "slow")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@behind_a_gateway
def test_cancelling_a_future_cancels_its_request_behind_a_gateway(
    client: Client, served: Gateway, tools: Any
) -> None:
    x = np.zeros((1, 512), np.float32)
    with standing_still(client, tools):
        futures = [client.submit("slow", x, timeout=600) for _ in range(30)]
        tools.until(lambda: served.gauge("requests_in_yard") == 30, 60, "requests in the yard")
        assert all(future.cancel() for future in futures)
    tools.until(lambda: served.gauge("requests_in_yard") == 0, 60, "the end of what was cancelled")
    assert (client.infer("slow", x) == x).all()


@everywhere
def test_a_loops_callback_gets_the_reply_or_the_error_and_its_own_faults_disturb_nobody(address: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        complaints: list[Any] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))
        outcomes: dict[str, asyncio.Future[Any]] = {}

        def into(name: str) -> Any:
            future = outcomes[name] = loop.create_future()
            return future.set_result

        def fails(outcome: Any) -> None:
            raise ZeroDivisionError

        client = AsyncClient(address)
        x = client.empty_now((2, 4))
        x[:] = 3
        client.start("neg", x, fails)
        client.start("neg", x, into("reply"))
        client.start("nobody", x, into("unknown"))
        client.start("neg", x.astype(np.float64), into("wrong"))
        with pytest.raises(InvalidRequest):
            client.start("neg", x, fails, timeout=-1)
        found = dict(zip(outcomes, await asyncio.wait_for(asyncio.gather(*outcomes.values()), 30), strict=True))
        assert (found["reply"].value == -3).all()
        assert found["reply"].receipt.rows >= 2
        errors = {name: type(outcome) for name, outcome in found.items() if name != "reply"}
        assert errors == {"unknown": UnknownModel, "wrong": InvalidRequest}
        client.start("slow", np.zeros((1, 512), np.float32), into("closed"))
        await asyncio.sleep(0)
        await client.close()
        assert isinstance(await asyncio.wait_for(outcomes["closed"], 10), BatchyardError)
        assert [type(error) for error in complaints] == [ZeroDivisionError]

    asyncio.run(main())


def test_cancelling_an_asyncio_task_cancels_its_request(yard: Yard, tools: Any) -> None:
    async def main() -> None:
        async with yard.async_client() as client:
            x = np.zeros((MAX_BATCH, 512), np.float32)
            await client.wait_ready("slow")
            tasks = [client.submit("slow", x) for _ in range(12)]
            await asyncio.sleep(0.02)
            for task in tasks[6:]:
                assert task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(y, np.ndarray) for y in done[:6])
            assert all(isinstance(y, asyncio.CancelledError) for y in done[6:])
            channel = client._link.engine  # type: ignore[union-attr]
            for _ in range(2000):
                if not channel.pending:
                    break
                await asyncio.sleep(0.005)
            assert not channel.pending, "slots of what was cancelled"

    asyncio.run(main())


@behind_a_gateway
def test_cancelling_an_asyncio_task_cancels_its_request_behind_a_gateway(
    address: str, client: Client, served: Gateway, tools: Any
) -> None:
    async def main() -> None:
        async with AsyncClient(address) as asking:
            with standing_still(client, tools):
                tasks = [asking.submit("slow", np.zeros((1, 512), np.float32), timeout=600) for _ in range(30)]
                await asyncio.to_thread(tools.until, lambda: served.gauge("requests_in_yard") == 30, 60)
                for task in tasks:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(y, asyncio.CancelledError) for y in done), done
            await asyncio.to_thread(tools.until, lambda: served.gauge("requests_in_yard") == 0, 60)

    asyncio.run(main())


@everywhere
def test_wait_and_as_completed_take_our_futures_cancelled_ones_too(client: Client) -> None:
    futures = [client.submit("slow", np.zeros((MAX_BATCH, 512), np.float32)) for _ in range(8)]
    waiting = [False]

    def wait() -> Any:
        waiting[0] = True
        return concurrent.futures.wait(futures, timeout=20)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waited = pool.submit(wait)
        cancelled = [future for future in futures[4:] if future.cancel()]
        assert cancelled
        done, not_done = waited.result(20)
    assert done == set(futures)
    assert not_done == set()
    assert set(concurrent.futures.as_completed(futures, timeout=5)) == set(futures)
    assert all(future.exception() is None for future in futures if not future.cancelled())


@everywhere
def test_done_callbacks_may_submit_again(client: Client) -> None:
    finished = threading.Event()
    count = [0]

    def again(future: Any) -> None:
        count[0] += 1
        if count[0] == 20 or future.exception():
            finished.set()
        else:
            client.submit("neg", future.result()).add_done_callback(again)

    client.submit("neg", np.ones((1, 4), np.float32)).add_done_callback(again)
    assert finished.wait(20)
    assert count[0] == 20


@everywhere
def test_a_done_callback_that_does_not_return_holds_up_no_other_call(address: str) -> None:
    x, begun, go = np.ones((1, 4), np.float32), threading.Event(), threading.Event()

    def stuck(_: Any) -> None:
        begun.set()
        go.wait(60)

    with Client(address) as client:
        future = client.submit("neg", x)
        future.add_done_callback(lambda _: None)
        client.submit("slow", np.zeros((1, 512), np.float32)).add_done_callback(stuck)
        try:
            assert begun.wait(20)
            assert (client.infer("neg", x) == -1).all()
            with pytest.raises(UnknownModel):
                client.infer("nothing", x)
            if not address.startswith("ipc"):  # there, one thread settles futures and calls back
                assert (client.submit("neg", x).result(20) == -1).all()
        finally:
            go.set()


# ---- closing ------------------------------------------------------------------------------------


@everywhere
def test_closing_a_client_ends_what_other_threads_and_futures_wait_for_with_a_typed_error(address: str) -> None:
    client = Client(address)
    client.wait_ready("slow")
    x = np.zeros((MAX_BATCH, 512), np.float32)
    futures = [client.submit("slow", x) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.infer, "slow", x) for _ in range(3)]
        futures[0].result(20)  # so that the calls are on their way
        client.close()
        for call in calls:
            error = call.exception(20)
            assert error is None or isinstance(error, BatchyardError), repr(error)
    for future in futures:
        error = future.exception(20)
        assert error is None or isinstance(error, BatchyardError), repr(error)
    with pytest.raises(BatchyardError, match="closed"):
        client.infer("slow", x)
    client.close()


@everywhere
def test_closing_an_asyncio_client_with_requests_on_the_way_is_quiet(address: str) -> None:
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        client = AsyncClient(address)
        await client.wait_ready("slow")
        tasks = [client.submit("slow", np.zeros((1, 512), np.float32)) for _ in range(3)]
        await asyncio.sleep(0)
        await client.close()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(isinstance(error, BatchyardError) for error in done), done
        await asyncio.sleep(0.02)

    asyncio.run(main())
    assert complaints == []


@everywhere
def test_clients_that_come_and_go_do_not_disturb_one_that_stays(address: str, client: Client) -> None:
    """Their descriptors are reused at the broker: an end that is reported late must hit no one else."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def hammer() -> None:
        x = np.ones((1, 4), np.float32)
        while not stop.is_set():
            try:
                assert (client.infer("neg", x) == -1).all()
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(60):
            with Client(address) as other:
                x = np.full((1, 4), number, np.float32)
                assert (other.infer("neg", x) == -x).all()
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert errors == []


# ---- bounds -------------------------------------------------------------------------------------


def test_past_the_bound_of_what_is_under_way_a_request_is_refused_with_when_to_come_back(
    slow_model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "batchyard.toml"
    config.write_text(
        f'models_root = "{slow_model.parent}"\n[models.slow]\nfile = "slow.onnx"\nmax_batch = 1\nwarmup = false\n'
        "[limits]\nqueue_rows_max = 6\n"
    )
    made = Yard(["--config", str(config)], 1, 1)
    try:
        with made.client() as client:
            client.wait_ready("slow")
            x = np.ones((1, 512), np.float32)
            futures = [client.submit("slow", x) for _ in range(20)]
            concurrent.futures.wait(futures, 20)
            failed = [future.exception() for future in futures if future.exception()]
            assert 0 < len(failed) <= 14
            for error in failed:
                assert isinstance(error, Overloaded)
                assert 0 < error.retry_after_s < 10
                assert "queue_rows_max" in str(error)
            assert (client.infer("slow", x) == x).all()
    finally:
        made.close()


def test_a_model_that_cannot_be_loaded_fails_the_start_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"garbage")
    with pytest.raises(ModelFailed, match="broken"):
        serve(broken)


DROPPED = """
import asyncio, gc, sys, threading
import numpy as np, batchyard
x = np.ones((1, 4), np.float32)

async def main():
    client = batchyard.AsyncClient(sys.argv[1])
    client.itself = client
    await client.infer("neg", x)

if sys.argv[2] == "asyncio":
    asyncio.run(main())
else:
    client = batchyard.Client(sys.argv[1])
    client.itself = client
    client.infer("neg", x)
    if sys.argv[2] == "submit":
        client.submit("neg", x).result(20)
    del client
gc.collect()
print("collected")
"""


@everywhere
@pytest.mark.parametrize("how", ["infer", "submit", "asyncio"])
def test_a_client_that_was_dropped_without_closing_does_not_stop_the_garbage_collector(
    address: str, how: str
) -> None:
    """A ZeroMQ context that is collected before its sockets waits for them for ever."""
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, address, how], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "collected\n"
    assert done.stderr == ""
