"""The gateway's bounds, its token, connections that are dropped, a broker that goes away; and its document
and its page: schemathesis and a browser."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("fastapi", reason="pip install 'batchyard[gateway]'")
import batchyard
from batchyard.gateway.grpc_messages import CLASSES, SERVICE
from batchyard.gateway.http_app import ROUTES
from batchyard.tests.integration.browser import browser
from batchyard.tests.integration.gateways import Gateway, gateway
from batchyard.tests.required import part

TOKEN = "0123456789abcdef"
DROPPED = 1000
AT_ONCE = 50
ROWS = 32
BODY = {"inputs": [{"name": "x", "shape": [1, 512], "datatype": "FP32", "data": [0.5] * 512}]}
# How far to the right anything of a page reaches.
WIDEST = "Math.max(...[...document.body.querySelectorAll('*')].map(one => one.getBoundingClientRect().right))"


@pytest.fixture(scope="module")
def yard(slow_model: Path, neg_model: Path) -> Iterator[batchyard.Yard]:
    with batchyard.serve({"slow": slow_model, "neg": neg_model}, threads=1) as started:
        yield started


@pytest.fixture(scope="module")
def served(yard: batchyard.Yard, tools: Any) -> Iterator[Gateway]:
    """With small bounds: 100 requests, bodies of 1 MiB."""
    with gateway(yard.url, tools.free_port(), "--requests", "100", "--body-mib", "1") as started:
        yield started


def whole_answer(connection: socket.socket) -> bytes:
    """An answer whose body is a JSON object."""
    answer = b""
    while not answer.endswith(b"}"):
        part = connection.recv(4096)
        assert part, f"the connection ended in {answer!r}"
        answer += part
    return answer


def nothing_is_left(served: Gateway, yard: batchyard.Yard, tools: Any) -> None:
    for name in ("requests_in_yard", "jobs_pending", "body_bytes", "arena_used_bytes"):
        tools.until(lambda name=name: served.gauge(name) == 0, what=f"{name} is {served.gauge(name)}")
    tools.until(lambda: served.gauge("requests_in_flight") == 1)
    tools.until(lambda: yard.snapshot()["rows_under_way"] == 0)


# ---- connections --------------------------------------------------------------------------------


def test_a_thousand_dropped_connections_leave_nothing(served: Gateway, yard: batchyard.Yard, tools: Any) -> None:
    """Dropped while a request runs, while it waits, and while its body is still to come."""
    assert served.ask("POST", "/v2/models/slow/infer", BODY)[0] == 200
    tasks = served.gauge("tasks")
    body = json.dumps(BODY).encode()
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\n"
    kinds = [
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        head + b"Content-Length: %d\r\n\r\n" % (len(body) + 9) + body,
        head.replace(b"/v2/models/slow/infer", b"/predict") + b"Content-Length: 90\r\n"
        b'Content-Type: application/json\r\n\r\n{"model": "slow", "data": [',
    ]

    async def drop(index: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(kinds[index % len(kinds)])
        await writer.drain()
        await asyncio.sleep(0.01 * (index % 3))
        writer.close()

    async def run() -> None:
        for first in range(0, DROPPED, AT_ONCE):
            await asyncio.gather(*(drop(first + i) for i in range(AT_ONCE)))

    asyncio.run(run())
    nothing_is_left(served, yard, tools)
    outcomes = {what: count for model, _, what, count in yard.snapshot()["requests"] if model == "slow"}
    assert outcomes["cancelled"] > outcomes["ok"], "the yard has run what nobody waited for"
    tools.until(lambda: served.gauge("tasks") <= tasks + 1, what="tasks are left")
    assert served.ask("POST", "/v2/models/slow/infer", BODY)[0] == 200


def test_a_dropped_connection_does_not_end_the_job_that_it_started(served: Gateway) -> None:
    body = json.dumps({"model": "slow", "data": [[0.5] * 512]}).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(
            b"POST /predict/async HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        answer = whole_answer(connection)
    job = json.loads(answer.partition(b"\r\n\r\n")[2])["job_id"]
    assert served.ask("GET", f"/predict/result/{job}?timeout=20")[0] == 200


def test_a_dropped_grpc_call_is_cancelled(served: Gateway, yard: batchyard.Yard, tools: Any) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    import numpy as np

    given = triton.InferInput("x", [ROWS, 512], "FP32")
    given.set_data_from_numpy(np.zeros((ROWS, 512), "f4"))
    with triton.InferenceServerClient(served.grpc) as client:
        calls = [client.async_infer("slow", [given], lambda **_: None) for _ in range(20)]
        for call in calls:
            call.cancel()
    nothing_is_left(served, yard, tools)


# ---- bounds -------------------------------------------------------------------------------------


def test_a_body_that_is_too_long_is_refused_by_its_head(served: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        answer = whole_answer(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "TOO_LARGE"


def test_a_body_without_a_length_is_counted_while_it_comes(served: Gateway) -> None:
    chunks = iter([b"x" * (1 << 19)] * 3)
    status, said, _ = served.ask("POST", "/predict", chunks, {"Content-Type": "application/json"})
    assert (status, said["code"]) == (413, "TOO_LARGE")


def test_too_many_at_once_are_told_to_come_back(served: Gateway, yard: batchyard.Yard, tools: Any) -> None:
    """Jobs' results are waited for by more than may: the last are refused, and health is still answered."""
    job = served.ask("POST", "/predict/async", {"model": "slow", "data": [[0.5] * 512] * ROWS})[1]["job_id"]
    ask = f"GET /predict/result/{job}?timeout=30 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    waiting = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(120)]
    try:
        for connection in waiting:
            connection.sendall(ask)
        tools.until(lambda: served.ask("GET", "/status")[0] == 429)  # the gateway has read them all
        status, said, headers = served.ask("GET", "/status")
        assert (status, said["code"], headers["retry-after"]) == (429, "TOO_MANY_REQUESTS", "1")
        assert served.ask("GET", "/v2/health/ready")[0] == 200
    finally:
        for connection in waiting:
            connection.close()
    tools.until(lambda: served.ask("GET", "/status")[0] == 200)
    served.ask("DELETE", f"/predict/cancel/{job}")
    nothing_is_left(served, yard, tools)


def test_new_connections_do_not_wait_for_every_answer_to_the_busy_ones(served: Gateway) -> None:
    """perf_analyzer's asynchronous sweeps opened connections for what waited; they were accepted one a turn,
    and a turn answers all who have asked. By itself each connection asks again as soon as it is answered."""
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5] * 4}]})
    ask = b"POST /v2/models/neg/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    ask += body.encode()
    answers = {"busy": 0, "new": 0}

    with selectors.DefaultSelector() as waited, ExitStack() as opened:

        def connect(kind: str, count: int) -> None:
            for _ in range(count):
                connection = opened.enter_context(socket.create_connection(("127.0.0.1", served.port)))
                connection.sendall(ask)
                waited.register(connection, selectors.EVENT_READ, kind)

        def answer_until(done: Callable[[], bool]) -> None:
            while not done():
                ready = waited.select(30)
                assert ready, f"nobody is answered any more, after {answers}"
                for key, _ in ready:
                    connection = cast(socket.socket, key.fileobj)
                    assert whole_answer(connection).startswith(b"HTTP/1.1 200 ")
                    answers[key.data] += 1
                    if key.data == "busy":
                        connection.sendall(ask)
                    else:
                        waited.unregister(connection)

        connect("busy", 32)
        answer_until(lambda: answers["busy"] >= 320)
        connect("new", 64)
        before = answers["busy"]
        answer_until(lambda: answers["new"] == 64)
    assert answers["busy"] - before < 3 * 64


def test_a_burst_of_grpc_calls_is_served_or_refused_with_a_sentence(
    served: Gateway, yard: batchyard.Yard, tools: Any
) -> None:
    """What finds no place is told so. gRPC's own limits answer in its own words, or cancel calls without any."""
    grpc = pytest.importorskip("grpc")
    raw = CLASSES["ModelInferRequest"](model_name="neg", raw_input_contents=[bytes(16)])
    raw.inputs.add(name="x", datatype="FP32", shape=[1, 4])

    async def burst(channels: int, calls: int) -> tuple[collections.Counter[Any], list[Any]]:
        ended: collections.Counter[Any] = collections.Counter()
        async with AsyncExitStack() as stack:
            options = [("grpc.use_local_subchannel_pool", 1)]
            opened = [
                await stack.enter_async_context(grpc.aio.insecure_channel(served.grpc, options))
                for _ in range(channels)
            ]

            async def one(channel: Any) -> None:
                try:
                    await channel.unary_unary(f"/{SERVICE}/ModelInfer")(raw.SerializeToString(), timeout=60)
                except grpc.aio.AioRpcError as error:
                    told = dict(error.trailing_metadata()).get("retry-after")
                    ended[error.code().name, error.details(), told] += 1
                else:
                    ended["OK"] += 1

            health = opened[0].unary_unary("/grpc.health.v1.Health/Check")
            asked = [asyncio.ensure_future(one(channel)) for channel in opened for _ in range(calls)]
            answers = [await health(b"", timeout=60) for _ in range(3)]
            await asyncio.gather(*asked)
            return ended, answers

    refused = ("RESOURCE_EXHAUSTED", "100 requests are under way here; try again", "1")
    for channels, calls in ((1, 3_500), (6, 50)):
        ended, answers = asyncio.run(burst(channels, calls))
        assert set(ended) <= {"OK", refused}
        assert sum(ended.values()) == channels * calls
        assert ended["OK"] >= 100
        assert answers == [b"\x08\x01"] * 3  # it is serving, whoever else asks
    nothing_is_left(served, yard, tools)


def test_pages_of_other_sites_may_not_ask(served: Gateway) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert served.ask("GET", "/status", headers=headers)[0] == 403


def test_what_cannot_start_says_why_and_ends_with_1(yard: batchyard.Yard, served: Gateway) -> None:
    command = [sys.executable, "-m", "batchyard.gateway", "--url", yard.url]
    for arguments, said in (
        (["--port", str(served.port)], "cannot listen"),
        (["--port", "0", "--grpc-port", str(served.port + 1)], "cannot listen"),
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_the_token_is_asked_for_over_http_and_grpc(yard: batchyard.Yard, tools: Any) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    with gateway(yard.url, tools.free_port(), token=TOKEN) as closed:
        assert closed.ask("GET", "/status")[0] == 200
        assert closed.ask("GET", "/status", headers={"Host": "gateway.example"})[0] == 200
        for wrong in ({"Authorization": "Bearer x"}, {"Authorization": ""}):
            status, said, headers = closed.ask("GET", "/status", headers=wrong)
            assert (status, said["code"], headers["www-authenticate"]) == (401, "UNAUTHENTICATED", "Bearer")
        with triton.InferenceServerClient(closed.grpc) as client:
            with pytest.raises(triton.InferenceServerException, match="token"):
                client.get_server_metadata()
            good = {"authorization": f"Bearer {TOKEN}"}
            assert client.get_server_metadata(good).name == "batchyard"
        refused_before_its_message(closed)


def refused_before_its_message(closed: Gateway) -> None:
    """Over gRPC: what it sends may be long, and is not even waited for."""
    import grpc

    never = threading.Event()
    with grpc.insecure_channel(closed.grpc) as channel:
        ask = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            ask(iter(lambda: never.wait(20), True), timeout=10)
        never.set()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_grpc_bytes_that_are_no_message_get_a_sentence_and_no_traceback(served: Gateway) -> None:
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(served.grpc) as channel:
        for method in ("ModelInfer", "ServerLive"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"\xff\xff", timeout=10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details() == f"these bytes are not a {method}Request"


def test_a_broker_that_is_away_is_said_and_comes_back(tools: Any, neg_model: Path) -> None:
    url = f"tcp://127.0.0.1:{tools.free_port()}"
    asked = {"data": [[1, 2, 3, 4]]}
    with (
        batchyard.serve({"neg": neg_model}, url=url, open_to_this_machine=True) as yard,
        gateway(url, tools.free_port()) as served,
    ):
        assert served.ask("POST", "/predict", asked)[1]["outputs"]["y"]["data"] == [[-1, -2, -3, -4]]
        tools.kill(yard.processes[0].pid)
        answers = [served.ask("POST", "/predict", asked)[0] for _ in range(3)]
        assert set(answers) <= {200, 503, 504}
        tools.until(lambda: served.ask("POST", "/predict", asked)[0] == 200, 30)


# ---- the document, the page ---------------------------------------------------------------------


def test_the_openapi_document_is_true(served: Gateway, tmp_path: Path) -> None:
    """schemathesis, with what it makes of every endpoint: no server error, nothing undocumented."""
    command = part("schemathesis", shutil.which("schemathesis", path=Path(sys.executable).parent))
    done = subprocess.run(
        [
            command, "run", f"http://{served.http}/openapi.json", "--max-examples", "3", "--seed", "1",
            "--phases", "coverage,fuzzing", "--request-timeout", "20", "--generation-database", "none",
            # What a model takes is not in the document, so what fits the document may be refused.
            "--checks", "all", "--exclude-checks", "positive_data_acceptance",
        ],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_pages_in_a_browser(served: Gateway, yard: batchyard.Yard, tmp_path: Path) -> None:
    """Under their own policy and with nothing on the console: live figures, all of them within a phone's
    window; figures that are marked while the broker stands still; the reference."""
    for _ in range(3):
        served.ask("POST", "/predict", {"model": "neg", "data": [[1, 2, 3, 4]]})
    with browser(tmp_path) as page:
        page.open(f"http://{served.http}/")
        page.until("document.querySelectorAll('#models tr').length == 2")
        page.until("document.getElementById('rate').textContent != '–'")  # it has looked twice
        assert "1 client" in page.ask("document.getElementById('state').textContent")
        cells = page.ask("[...document.querySelectorAll('td')].map(td => td.className + ' ' + td.textContent)")
        assert {" neg", " slow", "left ready ready", "left cpu", "urgent urgent", "low low"} <= set(cells)
        page.ask("samples.at(-1).status.models.forEach(model => model.workers = []), show()")
        assert "no worker" in page.ask("document.querySelector('#models td.failed').textContent")
        assert page.ask("document.getElementById('workers').textContent") == "no worker serves a model"
        page.look_like(360, 640)
        assert page.ask(WIDEST) <= 360
        assert page.console == []
        with standing_still(yard.processes[0].pid):
            page.until("document.body.className == 'stale'")
            assert "has not answered" in page.ask("document.getElementById('stale').textContent")
        page.until("document.body.className == ''")
        page.console.clear()
        page.open(f"http://{served.http}/docs")
        assert page.ask("document.querySelectorAll('details').length") == len(ROUTES)
        page.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.ask(WIDEST) <= 360
        assert page.console == []


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_batchyard_up_starts_a_gateway_that_ends_with_it_however_it_ends(tools: Any, neg_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "batchyard.toml"
    shutil.copy(neg_model, tmp_path / "neg.onnx")
    config.write_text('[models.neg]\nfile = "neg.onnx"\n')
    port, url = tools.free_port(), f"tcp://127.0.0.1:{tools.free_port()}"
    command = [sys.executable, "-m", "batchyard.cli.main", "up", "--config", str(config), "--url", url]
    command.append("--open-to-this-machine")
    with (tmp_path / "log").open("wb") as log:
        up = subprocess.Popen([*command, "--gateway", str(port)], stdout=log, stderr=log)
    served = Gateway(port, up, None)

    def answers() -> bool:
        try:
            return served.ask("POST", "/predict", {"data": [[1, 2, 3, 4]]})[0] == 200
        except OSError:
            return False

    try:
        tools.until(answers, 30)
    except AssertionError as error:
        error.add_note((tmp_path / "log").read_text())
        raise
    finally:
        tools.kill(up.pid)  # what it has started must see this for itself; the fixtures look
        up.wait()
