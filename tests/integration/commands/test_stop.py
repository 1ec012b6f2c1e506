"""Being stopped is a service, too: what was admitted is answered, what comes is refused with a sentence."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import AsyncClient, BrokerLost, Client, Operator, Overloaded, serve

pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[http,grpc]'")
import grpc
import tritonclient.grpc as triton_grpc
from batchyard.gateway.grpc_health import NOT_SERVING, SERVING, _Request, _Response

from ..gateways import Gateway, gateway, until_it_says_yes

FUNCTION = """
import pathlib, time, batchyard
@batchyard.model(inputs={"s": "float32[batch]"}, outputs={"y": "float32[batch]"}, max_batch=1)
def slow(batch):
    while batch["s"].any() and not pathlib.Path(__file__).with_name("go").exists():
        time.sleep(0.01)
    return {"y": batch["s"] * 1}
"""
PATIENCE_S = 60.0


class Up:
    """`batchyard up` with a gateway, serving a function that waits for a file called go."""

    def __init__(self, folder: Path, url: str, port: int, settings: str, notice_s: int) -> None:
        self.url = url
        self.folder = folder
        (folder / "m.py").write_text(FUNCTION)
        (folder / "batchyard.toml").write_text(f"{settings}\n[models.slow]\npython = 'm.py:slow'\nmax_batch = 1\n[gateway]\nport = {port}\nnotice_seconds = {notice_s}\n")
        command = [sys.executable, "-m", "batchyard.cli.main", "up", "--config", str(folder / "batchyard.toml")]
        command += ["--url", url, "--threads", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert any("listening at" in line for line in self.process.stdout)
        self.gateway = Gateway(port, self.process, None)
        until_it_says_yes(self.gateway, "ready")

    def signal(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def eventually_refuses(self) -> None:
        """The signal has reached the broker."""
        give_up_s = time.monotonic() + PATIENCE_S
        while self.is_ready():
            assert time.monotonic() < give_up_s
            time.sleep(0.01)

    def is_ready(self) -> bool:
        return self.gateway.ask("GET", "/v2/health/ready")[0] == 200


def until_it_runs(url: str) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not Operator(url).snapshot()["batches_lent"]:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def grpc_health(served: Gateway) -> Iterator[int]:
    """The statuses that grpc.health.v1 tells a watcher."""
    with grpc.insecure_channel(served.grpc) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch", _Request.SerializeToString, _Response.FromString
        )
        for answer in watch(_Request(), timeout=PATIENCE_S):
            yield answer.status


@pytest.fixture
def up(run_folder: Path, tmp_path: Path, tools: Any) -> Iterator[Callable[..., Up]]:
    made: list[Up] = []

    def start(settings: str = "", notice_s: int = 0) -> Up:
        made.append(Up(tmp_path, f"ipc://{run_folder}/stop", tools.free_port(), settings, notice_s))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait(PATIENCE_S)
        assert each.process.stdout is not None
        each.process.stdout.close()


def test_what_runs_is_finished_and_what_comes_is_refused_at_once(
    up: Callable[..., Up], tmp_path: Path
) -> None:
    yard = up("[broker]\nstop_seconds = 60")
    with Client(yard.url) as client:
        client.wait_ready("slow", PATIENCE_S)
        futures = [client.submit("slow", np.full(1, number, np.float32)) for number in (1.5, 0.25)]
        until_it_runs(yard.url)
        yard.signal()
        yard.eventually_refuses()
        with pytest.raises(Overloaded, match="is being stopped") as caught:
            client.infer("slow", np.zeros(1, np.float32))
        assert caught.value.retry_after_s == 1.0
        status, answer, headers = yard.gateway.ask("POST", "/predict", {"data": [0]})
        assert (status, answer["code"], headers["retry-after"]) == (503, "OVERLOADED", "1")
        (tmp_path / "go").touch()
        assert [float(future.result(PATIENCE_S)[0]) for future in futures] == [1.5, 0.25]
        assert yard.process.wait(PATIENCE_S) == 0


def test_readiness_ends_before_requests_are_refused_over_http_and_grpc(up: Callable[..., Up]) -> None:
    yard = up(notice_s=600)
    with Client(yard.url) as client:
        x = np.full(1, 0, np.float32)
        client.infer("slow", x, timeout=PATIENCE_S)
        watching = grpc_health(yard.gateway)
        assert next(watching) == SERVING
        yard.signal()
        assert next(watching) == NOT_SERVING
        for path in ("/v2/health/ready", "/v2/models/slow/ready"):
            status, answer, _ = yard.gateway.ask("GET", path)
            assert (status, answer["code"]) == (503, "NOT_READY")
            assert "is being stopped" in answer["error"]
        with triton_grpc.InferenceServerClient(yard.gateway.grpc) as asking:
            assert not asking.is_server_ready()
            assert not asking.is_model_ready("slow")
        assert float(client.infer("slow", x)[0]) == 0  # an old client, a new one, and one of HTTP are served
        with Client(yard.url) as late:
            assert float(late.infer("slow", x)[0]) == 0
        assert yard.gateway.ask("POST", "/predict", {"data": [0]})[0] == 200
        yard.signal()  # nobody waits for 600 s
        assert yard.process.wait(PATIENCE_S) == 0
        watching.close()


def test_nobody_who_looks_at_readiness_first_is_refused(up: Callable[..., Up]) -> None:
    yard = up("[broker]\nstop_seconds = 60", notice_s=3)
    with Client(yard.url) as client:
        client.wait_ready("slow", PATIENCE_S)
        running = client.submit("slow", np.full(1, 1.5, np.float32))
        until_it_runs(yard.url)
        yard.signal()
        was_ready, looks = True, 0
        while True:
            ready = yard.is_ready()
            status = yard.gateway.ask("GET", "/v2/models/slow/config")[0]
            if status == 503:
                break
            assert status == 200
            looks += not ready
            was_ready = ready
            time.sleep(0.01)
        assert not was_ready, "it was refused before anybody could know"
        assert looks > 0
        (yard.folder / "go").touch()
        assert float(running.result(PATIENCE_S)[0]) == 1.5
        assert yard.process.wait(PATIENCE_S) == 0


def test_a_gateway_that_is_stopped_alone_gives_notice_too(tmp_path: Path, tools: Any) -> None:
    (tmp_path / "m.py").write_text(FUNCTION)
    with (
        serve({"slow": f"{tmp_path}/m.py:slow"}, threads=1) as yard,
        gateway(yard.url, tools.free_port(), "--notice", "600") as served,
    ):
        served.process.terminate()
        give_up_s = time.monotonic() + PATIENCE_S
        while served.ask("GET", "/v2/health/ready")[0] == 200:
            assert time.monotonic() < give_up_s
            time.sleep(0.01)
        assert served.ask("GET", "/v2/models/slow/ready")[0] == 503
        assert served.ask("POST", "/predict", {"data": [0]})[0] == 200
        with yard.client() as client:
            assert float(client.infer("slow", np.zeros(1, np.float32))[0]) == 0
            assert client.models()[0].reason == ""  # the yard goes on
        # Ending it sends a second signal: it does not wait for the rest of the 600 s.


def test_past_its_time_or_by_a_second_signal_it_ends_with_work_undone(up: Callable[..., Up]) -> None:
    for settings, twice in (("[broker]\nstop_seconds = 0.5", False), ("[broker]\nstop_seconds = 600", True)):
        yard = up(settings)
        with Client(yard.url, connect_timeout=0.2) as client:
            client.wait_ready("slow", PATIENCE_S)
            future = client.submit("slow", np.full(1, 300, np.float32), timeout=3)
            until_it_runs(yard.url)
            yard.signal()
            if twice:
                yard.eventually_refuses()
                yard.signal()
            assert yard.process.wait(PATIENCE_S) == 0  # its work would never end, and 600 s of patience are not waited for
            with pytest.raises(BrokerLost):
                future.result(PATIENCE_S)


def test_a_yard_that_is_closed_answers_what_runs(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(FUNCTION)
    results: list[float] = []
    with serve({"slow": f"{tmp_path}/m.py:slow"}, threads=1) as yard:
        client = yard.client()
        future = client.submit("slow", np.full(1, 0.5, np.float32))
        future.add_done_callback(lambda done: results.append(float(done.result()[0])))
        until_it_runs(yard.url)
        opener = threading.Timer(0.3, (tmp_path / "go").touch)
        opener.start()
    opener.join()
    assert future.result(PATIENCE_S) == 0.5
    client.close()
    assert results == [0.5]


def test_a_restart_under_load_fails_no_request_of_clients_that_come_back(up: Callable[..., Up], tmp_path: Path) -> None:
    """Threads and tasks ask all the while; one that is refused waits as long as it is told, and asks again. What
    the restart finds under way is answered, or asked again by the client itself."""
    (tmp_path / "go").touch()
    failures: list[str] = []
    right, refused = [0], [0]
    is_over = threading.Event()

    def settle(number: float, answer: np.ndarray[Any, Any]) -> None:
        if answer.tolist() == [number]:
            right[0] += 1
        else:
            failures.append(f"{answer} for {number}")

    def again(error: Exception) -> float:
        """How long to wait."""
        if not isinstance(error, Overloaded):
            failures.append(f"{type(error).__name__}: {error}")
            return 0.0
        refused[0] += 1
        return error.retry_after_s or 0.0

    def thread(client: Client, number: float) -> None:
        while not is_over.is_set():
            try:
                settle(number, client.infer("slow", np.full(1, number, np.float32), timeout=PATIENCE_S))
                settle(number, client.submit("slow", np.full(1, number, np.float32), timeout=PATIENCE_S).result())
            except Exception as error:
                is_over.wait(again(error))

    async def tasks(url: str) -> None:
        async def task(client: AsyncClient, number: float) -> None:
            while not is_over.is_set():
                try:
                    settle(number, await client.infer("slow", np.full(1, number, np.float32), timeout=PATIENCE_S))
                except Exception as error:
                    await asyncio.sleep(again(error))

        async with AsyncClient(url, connect_timeout=PATIENCE_S) as client:
            await asyncio.gather(*(task(client, number) for number in (11.0, 12.0, 13.0)))

    yard = up()
    with Client(yard.url, connect_timeout=PATIENCE_S) as client:
        load = [threading.Thread(target=thread, args=(client, number)) for number in (1.0, 2.0, 3.0)]
        load.append(threading.Thread(target=lambda: asyncio.run(tasks(yard.url))))
        for each in load:
            each.start()
        try:
            for _ in range(2):
                yard.signal()
                assert yard.process.wait(PATIENCE_S) == 0
                before = right[0]
                yard = up()
                give_up_s = time.monotonic() + PATIENCE_S
                while right[0] < before + 20 and time.monotonic() < give_up_s:
                    time.sleep(0.01)
        finally:
            is_over.set()
            for each in load:
                each.join(2 * PATIENCE_S)
    assert failures == []
    assert right[0] > 40
