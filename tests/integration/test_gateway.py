"""A real gateway before a real yard: Triton's own clients over HTTP, gRPC, asyncio and shared memory, with
every datatype; jobs; and what is refused."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[http,grpc]'")
import batchyard
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
import tritonclient.utils.shared_memory as shm
from batchyard.tests.integration.gateways import Gateway, gateway
from tritonclient.utils import InferenceServerException

CODES = {
    "BOOL": (9, "?"), "UINT8": (2, "u1"), "UINT16": (4, "u2"), "UINT32": (12, "u4"), "UINT64": (13, "u8"),
    "INT8": (3, "i1"), "INT16": (5, "i2"), "INT32": (6, "i4"), "INT64": (7, "i8"), "FP16": (10, "f2"),
    "FP32": (1, "f4"), "FP64": (11, "f8"), "BF16": (16, "bfloat16"),
}  # fmt: skip
BIG_ROWS = 6000  # of 4 float64: more than the body that is gathered first


@pytest.fixture(scope="module")
def yard(onnx_models: Any, slow_model: Path) -> Iterator[batchyard.Yard]:
    """A model with two outputs for each datatype, one with two inputs, a slow one."""
    files = {"slow": slow_model}
    for name, (code, _) in CODES.items():
        nodes = [("Identity", ["x"], ["y"], {}), ("Identity", ["x"], ["z"], {})]
        values = [("y", code, ["n", 4]), ("z", code, ["n", 4])]
        files[name] = onnx_models.save(f"id-{name}", nodes, [("x", code, ["n", 4])], values)
    inputs = [("a", 1, ["n", 2]), ("b", 1, ["n", 2])]
    files["add"] = onnx_models.save("add", [("Add", ["a", "b"], ["y"], {})], inputs, [("y", 1, ["n", 2])])
    with batchyard.serve(files, threads=1) as started:
        yield started


@pytest.fixture(scope="module")
def served(yard: batchyard.Yard, tools: Any) -> Iterator[Gateway]:
    with gateway(yard.url, tools.free_port(), "--shared-memory") as started:
        yield started


@pytest.fixture(scope="module", params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, served: Gateway) -> Iterator[tuple[Any, Any]]:
    """(the module, a client of it)"""
    module, url = (triton_http, served.http) if request.param == "http" else (triton_grpc, served.grpc)
    with module.InferenceServerClient(url) as client:
        yield module, client


def sample(datatype: str, rows: int = 3) -> np.ndarray[Any, Any]:
    numbers = np.random.default_rng(7).integers(0, 2 if datatype == "BOOL" else 100, (rows, 4))
    return numbers.astype(numpy_of(datatype))


def numpy_of(datatype: str) -> np.dtype[Any]:
    if datatype == "BF16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(CODES[datatype][1])


def tensor(module: Any, x: np.ndarray[Any, Any], datatype: str, name: str = "x", **how: Any) -> Any:
    made = module.InferInput(name, list(x.shape), datatype)
    made.set_data_from_numpy(x, **how)
    return made


# ---- Triton's clients ---------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", CODES)
def test_every_datatype_comes_back_as_it_went(triton: tuple[Any, Any], datatype: str) -> None:
    module, client = triton
    x = sample(datatype)
    every = client.infer(datatype, [tensor(module, x, datatype)])
    assert np.array_equal(every.as_numpy("y"), x)
    assert np.array_equal(every.as_numpy("z"), x)
    one = client.infer(datatype, [tensor(module, x, datatype)], outputs=[module.InferRequestedOutput("z")])
    assert np.array_equal(one.as_numpy("z"), x)
    assert one.as_numpy("y") is None


@pytest.mark.parametrize("datatype", [name for name in CODES if name not in ("FP16", "BF16")])
def test_every_datatype_that_has_a_json_form_comes_back_as_json(served: Gateway, datatype: str) -> None:
    x = sample(datatype)
    with triton_http.InferenceServerClient(served.http) as client:
        answer = client.infer(
            datatype,
            [tensor(triton_http, x, datatype, binary_data=False)],
            outputs=[triton_http.InferRequestedOutput("y", binary_data=False)],
        )
        assert np.array_equal(answer.as_numpy("y"), x)


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "INT8", "UINT64", "FP16", "BF16"])
def test_shared_memory_is_read_and_written(triton: tuple[Any, Any], datatype: str, yard: batchyard.Yard) -> None:
    module, client = triton
    x = sample(datatype, 5)
    key = f"/by-test-{module.__name__[-4:]}"
    region = shm.create_shared_memory_region("r", key, 2 * x.nbytes)
    try:
        shm.set_shared_memory_region(region, [x])
        client.register_system_shared_memory("r", key, 2 * x.nbytes)
        given = module.InferInput("x", list(x.shape), datatype)
        given.set_shared_memory("r", x.nbytes)
        wanted = module.InferRequestedOutput("y")
        wanted.set_shared_memory("r", x.nbytes, x.nbytes)
        answer = client.infer(datatype, [given], outputs=[wanted, module.InferRequestedOutput("z")])
        assert np.array_equal(shm.get_contents_as_numpy(region, x.dtype, x.shape, x.nbytes), x)
        assert np.array_equal(answer.as_numpy("z"), x)
        given.set_shared_memory("r", x.nbytes, x.nbytes + 1)
        with pytest.raises(InferenceServerException, match="at offset"):
            client.infer(datatype, [given])
        client.unregister_system_shared_memory("r")
        with pytest.raises(InferenceServerException, match="no region"):
            client.infer(datatype, [given])
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
    finally:
        shm.destroy_shared_memory_region(region)


def test_big_tensors_go_through_both_ways(triton: tuple[Any, Any]) -> None:
    module, client = triton
    x = np.random.default_rng(1).standard_normal((BIG_ROWS, 4))
    answer = client.infer("FP64", [tensor(module, x, "FP64")])
    assert np.array_equal(answer.as_numpy("y"), x)
    assert np.array_equal(answer.as_numpy("z"), x)


def test_several_inputs_an_id_a_priority_and_a_timeout(triton: tuple[Any, Any]) -> None:
    module, client = triton
    a, b = np.ones((2, 2), "f4"), np.full((2, 2), 2, "f4")
    answer = client.infer(
        "add", [tensor(module, b, "FP32", "b"), tensor(module, a, "FP32", "a")],
        request_id="seven", priority=1, timeout=5_000_000,
    )  # fmt: skip
    assert np.array_equal(answer.as_numpy("y"), a + b)
    said = answer.get_response()
    assert (said["id"] if isinstance(said, dict) else said.id) == "seven"


def test_models_are_described(triton: tuple[Any, Any]) -> None:
    module, client = triton
    as_json = {"as_json": True} if module is triton_grpc else {}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add")
    assert client.get_server_metadata(**as_json)["name"] == "batchyard"
    metadata = client.get_model_metadata("BF16", **as_json)
    assert metadata["inputs"][0]["datatype"] == "BF16"
    assert [int(axis) for axis in metadata["inputs"][0]["shape"]] == [-1, 4]
    config = client.get_model_config("add", **as_json)
    config = config.get("config", config)
    assert [entry["name"] for entry in config["input"]] == ["a", "b"]
    assert config["max_batch_size"] == 32
    (index,) = [m for m in listed(client.get_model_repository_index(**as_json)) if m["name"] == "add"]
    assert index["state"] == "READY"
    assert client.is_model_ready("add", index["version"])
    with pytest.raises(InferenceServerException, match="no model is called"):
        client.get_model_metadata("nonsense")
    with pytest.raises(InferenceServerException, match="version"):
        client.get_model_metadata("add", "77")


def listed(index: Any) -> list[Any]:
    return index["models"] if isinstance(index, dict) else index


def test_statistics_count_what_was_asked(triton: tuple[Any, Any]) -> None:
    module, client = triton
    as_json = {"as_json": True} if module is triton_grpc else {}

    def stats() -> tuple[int, int]:
        time.sleep(0.25)  # the counters are a little old at most
        (model,) = client.get_inference_statistics("INT32", **as_json)["model_stats"]
        return int(model["inference_stats"]["success"]["count"]), int(model.get("inference_count", 0))

    requests, rows = stats()
    for _ in range(3):
        client.infer("INT32", [tensor(module, sample("INT32", 2), "INT32")])
    assert stats() == (requests + 3, rows + 6)


def test_mistakes_are_refused_with_a_sentence(triton: tuple[Any, Any]) -> None:
    module, client = triton
    x = sample("FP32")
    words = np.array([[b"a", b"b", b"c", b"d"]], dtype=np.object_)
    wrong = [
        ("takes FP32, not BYTES", "FP32", [tensor(module, words, "BYTES")], {}),
        ("takes INT32", "INT32", [tensor(module, x, "FP32")], {}),
        ("no input 'q'", "FP32", [tensor(module, x, "FP32", "q")], {}),
        ("was given the shape", "FP32", [tensor(module, x[:, :3].copy(), "FP32")], {}),
        ("a, b", "add", [tensor(module, x[:, :2].copy(), "FP32", "a")], {}),
        ("no output", "FP32", [tensor(module, x, "FP32")], {"outputs": [module.InferRequestedOutput("q")]}),
        ("classes are made of numbers", "BOOL", [tensor(module, sample("BOOL"), "BOOL")], {"outputs": [module.InferRequestedOutput("y", class_count=2)]}),
        ("sequence", "FP32", [tensor(module, x, "FP32")], {"sequence_id": 5}),
        ("priority is", "FP32", [tensor(module, x, "FP32")], {"priority": 9}),
    ]  # fmt: skip
    for said, model, inputs, options in wrong:
        with pytest.raises(InferenceServerException, match=said):
            client.infer(model, inputs, **options)


def test_a_timeout_ends_a_request_in_the_yard_too(triton: tuple[Any, Any], yard: batchyard.Yard, tools: Any) -> None:
    module, client = triton
    x = np.zeros((32, 512), "f4")
    with pytest.raises(InferenceServerException, match=r"deadline|within|time"):
        client.infer("slow", [tensor(module, x, "FP32")], timeout=1000)
    tools.until(lambda: yard.snapshot()["rows_under_way"] == 0)


def test_both_asyncio_clients_and_the_stream(served: Gateway) -> None:
    x = sample("INT64")

    async def run() -> None:
        for module, url in ((triton_http_aio, served.http), (triton_grpc_aio, served.grpc)):
            async with module.InferenceServerClient(url) as client:
                answers = await asyncio.gather(
                    *(client.infer("INT64", [tensor(module, x + i, "INT64")]) for i in range(20))
                )
                for i, answer in enumerate(answers):
                    assert np.array_equal(answer.as_numpy("y"), x + i)

        async def requests() -> Any:
            for i in range(3):
                given = tensor(triton_grpc_aio, x + i, "INT64", "x" if i != 1 else "q")
                yield {"model_name": "INT64", "inputs": [given], "request_id": str(i)}

        async with triton_grpc_aio.InferenceServerClient(served.grpc) as client:
            seen = [answer async for answer in client.stream_infer(requests())]
        assert [error is None for _, error in seen] == [True, False, True]
        assert np.array_equal(seen[2][0].as_numpy("y"), x + 2)

    asyncio.run(run())


def test_typed_contents_without_raw_bytes_are_read(served: Gateway) -> None:
    """What Triton's own Python client never sends, and others do."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    asked = service_pb2.ModelInferRequest(model_name="INT8")
    entry = asked.inputs.add(name="x", datatype="INT8", shape=[1, 4])
    entry.contents.int_contents.extend([1, -2, 3, 127])
    with grpc.insecure_channel(served.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(asked, timeout=10)
        assert answer.raw_output_contents[0] == bytes([1, 254, 3, 127])
        entry.contents.int_contents[3] = 128
        with pytest.raises(grpc.RpcError, match="cannot hold") as caught:
            stub.ModelInfer(asked, timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        # The product of a million such axes takes minutes: it must not be made before they are counted.
        many = service_pb2.ModelInferRequest(model_name="INT8", raw_input_contents=[b""])
        many.inputs.add(name="x", datatype="BYTES", shape=[2**62] * 100)
        with pytest.raises(grpc.RpcError, match="impossible shape"):
            stub.ModelInfer(many, timeout=10)


def test_an_input_that_is_given_twice_is_refused_and_neither_is_chosen(served: Gateway) -> None:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with grpc.insecure_channel(served.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for raw, field, sentence in (
            ([bytes(16)], "fp32_contents", "has one of: contents, an entry in raw_input_contents"),
            ([], "fp64_contents", "FP32 travels in fp32_contents, not in fp64_contents"),
        ):
            asked = service_pb2.ModelInferRequest(model_name="FP32", raw_input_contents=raw)
            entry = asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
            entry.contents.fp32_contents.extend([1, 2, 3, 4])
            getattr(entry.contents, field).append(5)
            with pytest.raises(grpc.RpcError, match=sentence) as caught:
                stub.ModelInfer(asked, timeout=10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_compressed_requests_are_read(served: Gateway, packing: str) -> None:
    x = sample("FP32")
    with triton_http.InferenceServerClient(served.http) as client:
        answer = client.infer("FP32", [tensor(triton_http, x, "FP32")], request_compression_algorithm=packing)
        assert np.array_equal(answer.as_numpy("y"), x)


def test_a_body_of_several_gzip_members_is_read_whole(served: Gateway) -> None:
    """As `cat a.gz b.gz` and pigz make it. What lies behind the members is refused, not passed over."""
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
    members = gzip.compress(body[:40]) + gzip.compress(body[40:])
    for name in ("gzip", "x-gzip"):
        status, said, _ = served.ask("POST", "/v2/models/FP32/infer", members, {"Content-Encoding": name})
        assert (status, said["outputs"][0]["data"]) == (200, [1, 2, 3, 4])
    status, said, _ = served.ask("POST", "/v2/models/FP32/infer", members + b"more", {"Content-Encoding": "gzip"})
    assert (status, "the body is not gzip" in said["error"]) == (400, True)


def test_what_is_optional_may_be_null(served: Gateway) -> None:
    """So MLServer's codecs write what their caller left out."""
    asked = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], "parameters": None}
    body = {"id": None, "parameters": None, "inputs": [asked], "outputs": None}
    status, said, _ = served.ask("POST", "/v2/models/FP32/infer", body)
    assert (status, said["outputs"][0]["data"], "id" in said) == (200, [1, 2, 3, 4], False)
    status, said, _ = served.ask("POST", "/v2/models/FP32/infer", body | {"outputs": [{"name": "y", "parameters": None}]})
    assert (status, said["outputs"][0]["name"]) == (200, "y")
    assert served.ask("POST", "/v2/repository/index", {"ready": None})[0] == 200


# ---- the owner's own endpoints ------------------------------------------------------------------


def test_a_job_is_started_watched_and_fetched(served: Gateway) -> None:
    asked = {"model": "add", "data": {"a": [[1, 2]], "b": [[3, 4]]}, "priority": "high", "deadline_ms": 5000}
    status, job, headers = served.ask("POST", "/predict/async", asked)
    assert status == 202
    assert headers["location"] == f"/predict/status/{job['job_id']}"
    status, result, _ = served.ask("GET", f"/predict/result/{job['job_id']}?timeout=10")
    assert (status, result["outputs"]["y"]["data"]) == (200, [[4.0, 6.0]])
    assert served.ask("GET", headers["location"])[1]["status"] == "done"
    npy = served.ask("GET", f"/predict/result/{job['job_id']}", headers={"Accept": "application/x-npy"})[1]
    assert np.load(io.BytesIO(npy), allow_pickle=False).tolist() == [[4.0, 6.0]]
    assert served.ask("DELETE", f"/predict/cancel/{job['job_id']}")[1]["cancelled"] is False


def test_a_job_is_cancelled_in_the_yard_too(served: Gateway, yard: batchyard.Yard, tools: Any) -> None:
    rows = np.zeros((32, 512), "f4").tobytes()
    path = "/predict/async?model=slow&dtype=float32&shape=32,512"
    kind = {"Content-Type": "application/octet-stream"}
    jobs = [served.ask("POST", path, rows, kind)[1]["job_id"] for _ in range(4)]
    assert served.ask("GET", f"/predict/result/{jobs[3]}?timeout=0")[0] == 202
    for job in reversed(jobs):
        served.ask("DELETE", f"/predict/cancel/{job}")
    status, body, _ = served.ask("GET", f"/predict/result/{jobs[3]}")
    assert (status, body["code"]) == (410, "CANCELLED")
    tools.until(lambda: yard.snapshot()["rows_under_way"] == 0)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
def test_predict_takes_npy_of_any_order_and_gives_what_is_accepted(served: Gateway, dtype: str, order: Any) -> None:
    x = np.arange(8, dtype=dtype).reshape(2, 4)
    file = io.BytesIO()
    np.save(file, np.asarray(x, order=order), allow_pickle=False)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/octet-stream"}
    status, raw, told = served.ask("POST", "/predict?model=FP64&output=z", file.getvalue(), headers)
    assert (status, told["x-tensor-dtype"], told["x-tensor-shape"]) == (200, "float64", "2,4")
    assert raw == x.astype("<f8").tobytes()


def test_predict_takes_raw_bytes_by_headers(served: Gateway) -> None:
    headers = {
        "Content-Type": "application/octet-stream", "X-Tensor-Dtype": "int16", "X-Tensor-Shape": "1,4",
    }  # fmt: skip
    status, said, _ = served.ask("POST", "/predict?model=INT16&priority=urgent", bytes(range(8)), headers)
    assert (status, said["outputs"]["y"]["data"]) == (200, [[256, 770, 1284, 1798]])


def test_what_json_cannot_say_is_null(served: Gateway) -> None:
    file = io.BytesIO()
    np.save(file, np.array([[1.5, np.nan, np.inf, 0]], "f4"), allow_pickle=False)
    said = served.ask("POST", "/predict?model=FP32", file.getvalue(), {"Content-Type": "application/x-npy"})[1]
    assert said["outputs"]["y"]["data"] == [[1.5, None, None, 0.0]]


def npy_header(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


FOUR = b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]%b}'
TWICE = FOUR % b', "outputs": [{"name": "y"}, {"name": "y"}]'
MISTAKES = [
    ("/predict", b"{", None, 400),
    ("/predict", b"[" * 5000, None, 400),
    ("/predict", b'{"data": [[1e999]], "model": "FP32"}', None, 400),
    ("/predict", b'{"data": [[NaN, 1, 2, 3]], "model": "FP32"}', None, 400),
    ("/predict", b'{"data": [[1e39, 1, 2, 3]], "model": "FP32"}', None, 400),
    ("/predict", b'{"data": [[' + b"9" * 500 + b', 1, 2, 3]], "model": "FP32"}', None, 400),
    ("/predict", b'{"data": [[1, 2], [3]], "model": "FP32"}', None, 400),
    ("/predict", b'{"data": [["\xff"]], "model": "FP32"}', None, 400),
    ("/predict", b'{"data": [[1, 2, 3, 4]], "model": "FP32", "priority": "most"}', None, 400),
    ("/predict", b'{"data": [[1, 2, 3, 4]], "model": "FP32", "deadline_ms": 0}', None, 400),
    ("/predict", b'{"data": [[1, 2, 3, 4]]}', None, 400),
    ("/predict", b'{"data": [[1, 2, 3, 4]], "model": "none"}', None, 404),
    ("/predict/async", b'{"data": [[1, 2, 3]], "model": "FP32"}', None, 400),
    ("/predict", b"x", "text/plain", 415),
    ("/predict?model=FP32", b"x", "application/octet-stream", 400),
    ("/predict?model=FP32&dtype=object&shape=1", b"12345678", "application/octet-stream", 400),
    ("/predict?model=FP32&dtype=float32&shape=-1,4", b"", "application/octet-stream", 400),
    ("/predict?model=FP32&dtype=float32&shape=1,4", b"short", "application/octet-stream", 400),
    ("/predict?model=FP32&dtype=float32&shape=1,1", b"too long", "application/octet-stream", 400),
    ("/predict?model=FP32&dtype=float32&shape=99999,999,9", b"", "application/octet-stream", 413),
    ("/predict?model=FP32", b"\x93NUMPY\x01\x00\xff\xff", "application/x-npy", 400),
    ("/predict?model=FP32", b"\x93NUMPY\x09\x00", "application/x-npy", 400),
    ("/predict?model=FP32", b"\x93NUMPY\x01\x00\x0b\x00{'descr': (", "application/x-npy", 400),
    ("/predict?model=FP32", npy_header("(True, 4)"), "application/x-npy", 400),
    ("/predict?model=FP32", npy_header(f"({10**30}, 0)"), "application/x-npy", 400),
    ("/predict?model=FP32&dtype=float32&shape=9999999999999999999999,0", b"", "application/octet-stream", 400),
    ("/predict", b'{"data": {"x": [1], "\xff": 1}, "model": "FP32"}', None, 400),
    ("/predict", b'{"data": {"x": "1"}, "model": "FP32"}', None, 400),
    ("/v2/models/FP32/infer", b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": null}]}', None, 400),
    ("/v2/models/FP32/infer", b"{}", None, 400),
    ("/v2/models/FP32/infer", b"", None, 400),
    ("/v2/models/FP32/infer", FOUR % b', "parameters": {"binary_data_output": "yes"}', None, 400),
    ("/v2/models/FP32/infer", b'{"inputs": [{"name": "x", "shape": [-1], "datatype": "FP32", "data": []}]}', None, 400),
    ("/v2/models/FP32/infer", b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32"}]}', None, 400),
    ("/v2/models/FP32/infer", TWICE, None, 400),
    ("/v2/models/none/infer", b'{"inputs": [{"name": "x", "shape": [], "datatype": "FP32", "data": [1]}]}', None, 404),
    ("/v2/systemsharedmemory/region/r/register", b'{"key": "/../etc/passwd", "byte_size": 1}', None, 400),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "kind", "status"), MISTAKES)
def test_a_mistake_gets_a_code_and_a_sentence(
    served: Gateway, path: str, body: bytes, kind: str | None, status: int
) -> None:
    found, said, _ = served.ask("POST", path, body, {"Content-Type": kind or "application/json"})
    assert found == status, said
    assert said["code"].isupper()
    assert len(said["error"].split()) > 2
    assert "Traceback" not in said["error"]


def test_a_npy_of_objects_is_refused_and_not_unpickled(served: Gateway) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    status, said, _ = served.ask("POST", "/predict?model=FP32", file.getvalue(), {"Content-Type": "application/x-npy"})
    assert status == 400
    assert "cannot be sent" in said["error"]


@pytest.mark.parametrize(
    ("length", "status"), [("-1", 400), ("1e3", 400), ("99999999999999", 400), ("999", 400), ("3", 400)]
)
def test_a_header_length_that_lies_is_refused(served: Gateway, length: str, status: int) -> None:
    body = b'{"inputs": []}'
    found, said, _ = served.ask(
        "POST", "/v2/models/FP32/infer", body, {"Inference-Header-Content-Length": length}
    )
    assert found == status, said


def test_a_trace_goes_along_and_its_form_does_not_matter(served: Gateway) -> None:
    asked = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    for parent in ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "nonsense"):
        assert served.ask("POST", "/v2/models/FP32/infer", asked, {"traceparent": parent})[0] == 200


def test_unknown_paths_and_methods_are_told_in_the_one_form(served: Gateway) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/predict", 405), ("DELETE", "/v2", 405), ("GET", "/predict/result/none", 404)):  # fmt: skip
        found, said, _ = served.ask(method, path)
        assert (found, set(said)) == (status, {"error", "code"})


def test_nothing_is_left_of_all_this(served: Gateway, yard: batchyard.Yard, tools: Any) -> None:
    for name in ("requests_in_yard", "jobs_pending", "body_bytes"):
        tools.until(lambda name=name: served.gauge(name) == 0, what=name)
    assert served.gauge("requests_in_flight") == 1  # the one that asks
    assert yard.snapshot()["rows_under_way"] == 0


def test_a_key_that_predict_does_not_know_is_refused_and_not_taken_for_nothing(served: Gateway) -> None:
    body = {"model": "FP32", "data": [[1, 2, 3, 4]], "deadline": 5}
    status, answer, _ = served.ask("POST", "/predict", body)
    assert (status, answer["code"]) == (400, "INVALID_REQUEST")
    assert "unknown field `deadline`; it has the fields data, model, " in answer["error"]


def test_a_fleet_sees_what_a_node_serves_how_busy_it_is_and_why_it_refuses(
    served: Gateway, yard: batchyard.Yard
) -> None:
    status, body, headers = served.ask("GET", "/v2", headers={"endpoint-load-metrics-format": "json"})
    assert status == 200
    with yard.client() as client:
        digests = {info.name: info.origin.sha256 for info in client.models() if info.origin is not None}
    assert {model["name"]: model["sha256"] for model in body["models"]} == digests
    assert headers["endpoint-load-metrics"].startswith('JSON {"application_utilization":')
    tensor_of = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    ask = {"inputs": [tensor_of, {**tensor_of, "name": "b"}], "parameters": {"receipt": True}}
    text = {"endpoint-load-metrics-format": "text"}
    status, body, headers = served.ask("POST", "/v2/models/add/infer", ask, text)
    assert (status, body["outputs"][0]["data"]) == (200, [2.0, 4.0])
    assert body["parameters"]["provider"] == "cpu"
    assert headers["endpoint-load-metrics"].startswith("TEXT application_utilization=")
    status, body, headers = served.ask("POST", "/v2/models/none/infer", ask)
    assert (status, headers["batchyard-code"]) == (404, "UNKNOWN_MODEL")
