"""A Python model that yields its answers: each comes when it is there, over every client and over the gateway."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard.tests.integration.gateways import Gateway, gateway
from batchyard.transport.errors import DeadlineExceeded, InvalidRequest, ModelFailed, WorkerLost

PATIENCE_S = 60
FUNCTIONS = """
import os
import time
from pathlib import Path

import batchyard
import numpy as np

FOLDER = Path(__file__).parent
SPEC = dict(inputs={"x": "int64[n]"}, outputs={"y": "int64[m]", "pid": "int64[1]"})


def answer(x, i):
    return {"y": x * i, "pid": np.array([os.getpid()])}


@batchyard.model(**SPEC)
def count(feeds):
    '''x[0] answers; with x[1], the last of them waits for a file.'''
    for i in range(int(feeds["x"][0])):
        if len(feeds["x"]) > 1 and i == feeds["x"][0] - 1:
            while not (FOLDER / f"go-{feeds['x'][1]}").exists():
                time.sleep(0.005)
        yield answer(feeds["x"], i)


@batchyard.model(**SPEC)
def ever(feeds):
    '''Without end; says when it is left.'''
    try:
        i = 0
        while True:
            yield answer(feeds["x"], i)
            i += 1
            time.sleep(0.001)
    finally:
        if feeds["x"].any():  # not the warm-up
            (FOLDER / f"left-{feeds['x'][0]}").touch()


@batchyard.model(**SPEC)
def failing(feeds):
    yield answer(feeds["x"], 1)
    if feeds["x"].any():
        raise ValueError("the second answer is wrong")


@batchyard.model(inputs="int64[n]", outputs="int64[n]")
def once(x):
    return x + 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("streams")
    (made / "m.py").write_text(FUNCTIONS)
    return made


@pytest.fixture(scope="module")
def yard(folder: Path) -> Iterator[batchyard.Yard]:
    files = {name: f"{folder / 'm.py'}:{name}" for name in ("ever", "failing", "once")}
    # Declared, and not warmed up: a generator that yields nothing for zeros is a model, too.
    options = {"count": {"warmup": False}}
    with batchyard.serve(files | {"count": f"{folder / 'm.py'}:count"}, threads=1, options=options) as started:
        yield started


def three(*more: int) -> np.ndarray[Any, Any]:
    return np.array([3, *more])


@pytest.mark.parametrize("segment", ["memfd", "frames"])
def test_every_answer_comes_in_order_and_before_the_next_one_is_made(yard: batchyard.Yard, folder: Path, segment: str) -> None:
    number = {"memfd": 1, "frames": 2}[segment]
    with yard.client(segment=segment) as client:
        answers = client.stream("count", three(number))
        assert next(answers)["y"].tolist() == [0, 0]
        assert next(answers)["y"].tolist() == [3, number]
        (folder / f"go-{number}").touch()
        assert [answer["y"].tolist() for answer in answers] == [[6, 2 * number]]
        assert list(client.stream("count", np.array([0]))) == []


def test_the_asyncio_client_has_many_streams_at_once(yard: batchyard.Yard) -> None:
    async def run() -> None:
        async with batchyard.AsyncClient(yard.url) as client:

            async def one(n: int) -> list[int]:
                return [int(answer["y"][0]) async for answer in client.stream("count", np.array([n]))]

            assert await asyncio.gather(*map(one, range(1, 9))) == [[n * i for i in range(n)] for n in range(1, 9)]

    asyncio.run(run())


def test_a_model_that_answers_once_is_a_stream_of_one(yard: batchyard.Yard) -> None:
    with yard.client() as client:
        assert [answer.tolist() for answer in client.stream("once", three())] == [[4]]


def test_infer_says_how_a_stream_is_asked(yard: batchyard.Yard) -> None:
    with yard.client() as client:
        with pytest.raises(InvalidRequest, match=r"client\.stream"):
            client.infer("count", three())
        with pytest.raises(InvalidRequest, match=r"client\.stream"):
            client.submit("count", three())
        assert client.wait_ready("count").streams
        assert not client.wait_ready("once").streams


def test_an_error_comes_after_the_answers_before_it(yard: batchyard.Yard) -> None:
    with yard.client() as client:
        answers = client.stream("failing", three())
        assert next(answers)["y"].tolist() == [3]
        with pytest.raises(ModelFailed, match="the second answer is wrong"):
            next(answers)


def test_who_leaves_early_ends_the_generator(yard: batchyard.Yard, folder: Path, tools: Any) -> None:
    with yard.client() as client:
        answers = client.stream("ever", np.array([7]))
        pid = int(next(answers)["pid"][0])
        answers.close()
        tools.until((folder / "left-7").exists, what="the generator is left")
        tools.until(lambda: yard.snapshot()["rows_under_way"] == 0)

    async def run() -> None:
        async with batchyard.AsyncClient(yard.url) as client:
            answers = client.stream("ever", np.array([8]))
            async for answer in answers:
                assert int(answer["pid"][0]) == pid, "the worker was not ended for it"
                break
            await answers.aclose()

    asyncio.run(run())
    tools.until((folder / "left-8").exists, what="the generator is left")


def test_a_deadline_ends_a_stream_and_not_its_worker(yard: batchyard.Yard, tools: Any) -> None:
    with yard.client() as client:
        (pids := []).append(int(next(client.stream("count", three()))["pid"][0]))
        with pytest.raises(DeadlineExceeded):
            pids += [int(answer["pid"][0]) for answer in client.stream("ever", np.array([9]), timeout=0.3)]
        tools.until(lambda: yard.snapshot()["rows_under_way"] == 0)
        pids += [int(answer["pid"][0]) for answer in client.stream("count", three())]
    assert len(set(pids)) == 1


def test_a_worker_that_dies_in_a_stream_is_not_asked_again(yard: batchyard.Yard) -> None:
    with yard.client() as client:
        answers = client.stream("ever", np.array([0]))
        os.kill(int(next(answers)["pid"][0]), signal.SIGKILL)
        with pytest.raises(WorkerLost, match="has some of its answers"):
            for _ in answers:
                pass
        assert len(list(client.stream("count", three()))) == 3


# ---- the gateway --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(yard: batchyard.Yard, tools: Any) -> Iterator[Gateway]:
    pytest.importorskip("fastapi", reason="pip install 'batchyard[gateway]'")
    with gateway(yard.url, tools.free_port()) as started:
        yield started


def test_tritons_client_gets_every_answer_of_a_stream(served: Gateway, folder: Path) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[http,grpc]'")
    seen: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def ask(model: str, *x: int, **options: Any) -> None:
        given = triton.InferInput("x", [len(x)], "INT64")
        given.set_data_from_numpy(np.array(x))
        client.async_stream_infer(model, [given], request_id=model, **options)

    def answer() -> tuple[list[int], bool]:
        result, error = seen.get(timeout=PATIENCE_S)
        assert error is None
        response = result.get_response()
        assert response.id in ("count", "failing")
        y = result.as_numpy("y")
        return [] if y is None else y.tolist(), response.parameters["triton_final_response"].bool_param

    with triton.InferenceServerClient(served.grpc) as client:
        config = client.get_model_config("count", as_json=True)["config"]
        assert config["model_transaction_policy"]["decoupled"] is True
        client.start_stream(lambda result, error: seen.put((result, error)))
        ask("count", 2, 3, enable_empty_final_response=True)
        assert answer() == ([0, 0], False)
        (folder / "go-3").touch()
        assert answer() == ([2, 3], False)
        assert answer() == ([], True)
        ask("failing", 5)
        assert answer() == ([5], False)
        _, error = seen.get(timeout=PATIENCE_S)
        assert "the second answer is wrong" in str(error)
        client.stop_stream()
        given = triton.InferInput("x", [1], "INT64")
        given.set_data_from_numpy(np.array([1]))
        with pytest.raises(triton.InferenceServerException, match="ModelStreamInfer"):
            client.infer("count", [given])


def events(served: Gateway, model: str, *x: int) -> Iterator[tuple[str, Any]]:
    """(kind, JSON) of each server-sent event. Left early, the connection is closed."""
    body = json.dumps({"inputs": [{"name": "x", "shape": [len(x)], "datatype": "INT64", "data": x}]})
    connection = http.client.HTTPConnection(served.http, timeout=PATIENCE_S)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Accept": "Text/Event-Stream, */*;q=0.1"})
        answer = connection.getresponse()
        assert answer.getheader("content-type", "").startswith("text/event-stream"), answer.read()
        kind = "data"
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)
    finally:
        connection.close()


def test_server_sent_events_have_every_answer_of_a_stream(served: Gateway, folder: Path, tools: Any) -> None:
    several = events(served, "count", 2, 4)
    kind, first = next(several)
    assert (kind, first["outputs"][0]["data"]) == ("data", [0, 0])
    (folder / "go-4").touch()
    assert [said["outputs"][0]["data"] for _, said in several] == [[2, 4]]
    assert list(events(served, "count", 0)) == []
    (_, first), (kind, error) = events(served, "failing", 6)
    assert (kind, first["outputs"][0]["data"]) == ("error", [6])
    assert error["code"] == "MODEL_FAILED"
    for path, body in (
        ("/v2/models/count/infer", {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]}),
        ("/predict", {"model": "count", "data": [1]}),
    ):
        status, said, _ = served.ask("POST", path, body)
        assert (status, "text/event-stream" in said["error"]) == (400, True)


def test_who_hangs_up_ends_the_generator(served: Gateway, yard: batchyard.Yard, folder: Path, tools: Any) -> None:
    several = events(served, "ever", 11)
    next(several)
    several.close()
    tools.until((folder / "left-11").exists, what="the generator is left")
    tools.until(lambda: yard.snapshot()["rows_under_way"] == 0)


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_a_client_by_address_has_every_answer_of_a_stream(served: Gateway, folder: Path, tools: Any, way: str) -> None:
    pytest.importorskip("httpx" if way == "http" else "grpc", reason="pip install 'batchyard[fleet]'")
    number = {"http": 21, "grpc": 22}[way]
    url = f"{way}://{getattr(served, way)}"
    with batchyard.Client(url) as client:
        answers = client.stream("count", three(number))
        assert next(answers)["y"].tolist() == [0, 0]
        assert next(answers)["y"].tolist() == [3, number]
        (folder / f"go-{number}").touch()
        assert [answer["y"].tolist() for answer in answers] == [[6, 2 * number]]
        assert list(client.stream("count", np.array([0]))) == []
        assert [answer.tolist() for answer in client.stream("once", three())] == [[4]]
        answers = client.stream("failing", three())
        assert next(answers)["y"].tolist() == [3]
        with pytest.raises(ModelFailed, match="the second answer is wrong"):
            next(answers)
        with pytest.raises(InvalidRequest, match=r"client\.stream"):
            client.infer("count", three())
        answers = client.stream("ever", np.array([number]))
        next(answers)
        answers.close()
        tools.until((folder / f"left-{number}").exists, PATIENCE_S, "the generator being left")

    async def main() -> list[int]:
        async with batchyard.AsyncClient(url) as client:
            return [int(answer["y"][0]) async for answer in client.stream("count", three())]

    assert asyncio.run(main()) == [0, 3, 6]
