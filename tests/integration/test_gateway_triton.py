"""The rows of docs/gateway.md's table of Triton's clients, each by the real tritonclient: what is served, and
what is refused with the way out."""

from __future__ import annotations

import ast
import http.client
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[http,grpc]'")
import batchyard
import grpc
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from batchyard.gateway.grpc_messages import CLASSES_OF, SERVICE
from batchyard.tests.integration.gateways import Gateway, gateway
from google.protobuf import descriptor_pb2
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

NAMES = {0: "cat", 1: "dog", 2: "eel", 3: "fox"}
# As `YOLO.export(format="onnx", dynamic=True)` of ultralytics 8.4 writes it: texts, the collections as Python's.
EXPORTED = {
    "description": "Ultralytics YOLO11n model", "stride": "32", "task": "detect", "batch": "1", "channels": "3",
    "imgsz": "[320, 320]", "names": str(NAMES), "end2end": "False",
    "args": "{'data': None, 'batch': 1, 'quantize': None, 'nms': None, 'dynamic': True, 'simplify': True}",
}  # fmt: skip
WORDS = np.array([["tensor", ""], ["naïve", "two words"], ["列車", "\0 inside"]], object)
PATIENCE_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def yard(onnx_models: Any, neg_model: Path, folder: Path) -> Iterator[batchyard.Yard]:
    """Strings; scores of a file that says what Ultralytics' export says; an optional input; bigger numbers."""
    import onnx

    same = [("Identity", ["x"], ["y"], {})]
    files = {"words": onnx_models.save("words", same, [("x", 8, ["n", "k"])], [("y", 8, ["n", "k"])])}
    scores = onnx.load(str(onnx_models.save("scores", same, [("x", 1, ["n", 4])], [("y", 1, ["n", 4])])))
    onnx.helper.set_model_props(scores, EXPORTED)
    files["scores"] = folder / "scores.onnx"
    onnx.save(scores, str(files["scores"]))
    added = [("Add", ["x", "b"], ["y"], {})]
    inputs = [("x", 1, ["n", 2]), ("b", 1, [1, 2])]
    files["optional"] = onnx_models.save(
        "optional", added, inputs, [("y", 1, ["n", 2])], {"b": np.ones((1, 2), "f4")}
    )
    files["whole"] = onnx_models.save("whole", same, [("x", 13, ["n", 2])], [("y", 13, ["n", 2])])
    shutil.copy(neg_model, folder / "later.onnx")
    (folder / "nested" / "1").mkdir(parents=True)
    shutil.copy(neg_model, folder / "nested" / "1" / "model.onnx")
    with batchyard.serve(files, threads=1, models_root=folder) as started:
        yield started


@pytest.fixture(scope="module")
def served(yard: batchyard.Yard, tools: Any) -> Iterator[Gateway]:
    with gateway(yard.url, tools.free_port(), "--shared-memory", "--model-control") as started:
        yield started


@pytest.fixture(scope="module", params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, served: Gateway) -> Iterator[tuple[Any, Any]]:
    """(the module, a client of it)"""
    module, url = (triton_http, served.http) if request.param == "http" else (triton_grpc, served.grpc)
    with module.InferenceServerClient(url) as client:
        yield module, client


def tensor(module: Any, x: np.ndarray[Any, Any], datatype: str = "FP32", **how: Any) -> Any:
    made = module.InferInput("x", list(x.shape), datatype)
    made.set_data_from_numpy(x, **how)
    return made


def as_json(module: Any) -> dict[str, bool]:
    return {"as_json": True} if module is triton_grpc else {}


def config_of(triton: tuple[Any, Any], model: str) -> Any:
    module, client = triton
    config = client.get_model_config(model, **as_json(module))
    return config["config"] if module is triton_grpc else config


def texts(array: Any) -> Any:
    """BYTES as text: binary ones are bytes, those of JSON are text already."""
    return np.vectorize(lambda one: one.decode() if isinstance(one, bytes) else one, otypes=[object])(array)


# ---- BYTES --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 6000])  # the second goes past the body that is gathered first
def test_strings_go_in_and_come_out(triton: tuple[Any, Any], rows: int) -> None:
    module, client = triton
    x = np.resize(WORDS, (rows, 2))
    encoded = np.vectorize(str.encode, otypes=[object])(x)
    for given in (x, encoded):
        answer = client.infer("words", [tensor(module, given, "BYTES")])
        assert np.array_equal(texts(answer.as_numpy("y")), x)


def test_strings_go_in_and_come_out_as_json(served: Gateway) -> None:
    with triton_http.InferenceServerClient(served.http) as client:
        wanted = [triton_http.InferRequestedOutput("y", binary_data=False)]
        answer = client.infer("words", [tensor(triton_http, WORDS, "BYTES", binary_data=False)], outputs=wanted)
    assert np.array_equal(answer.as_numpy("y"), WORDS)
    status, said, _ = served.ask("POST", "/predict", {"model": "words", "data": [["a", "é"]]})
    assert (status, said["outputs"]["y"]["data"]) == (200, [["a", "é"]])
    for form in ("application/octet-stream", "application/x-npy"):
        asked = {"model": "words", "data": [["a", "b"]]}
        assert served.ask("POST", "/predict", asked, {"Accept": form})[0] == 406


def test_strings_lie_in_shared_memory(triton: tuple[Any, Any]) -> None:
    module, client = triton
    serialized = serialize_byte_tensor(np.vectorize(str.encode, otypes=[object])(WORDS))
    size, key = len(serialized.item()), f"/by-test-words-{module.__name__[-4:]}"
    region = shm.create_shared_memory_region("words", key, 2 * size)
    try:
        shm.set_shared_memory_region(region, [serialized])
        client.register_system_shared_memory("words", key, 2 * size)
        given = module.InferInput("x", list(WORDS.shape), "BYTES")
        given.set_shared_memory("words", size)
        wanted = module.InferRequestedOutput("y")
        wanted.set_shared_memory("words", size, size)
        client.infer("words", [given], outputs=[wanted])
        found = shm.get_contents_as_numpy(region, np.object_, WORDS.shape, size)
        assert np.array_equal(texts(found), WORDS)
        client.unregister_system_shared_memory("words")
    finally:
        shm.destroy_shared_memory_region(region)


def test_typed_strings_are_read(served: Gateway) -> None:
    """What Triton's own Python client never sends, and others do."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    asked = service_pb2.ModelInferRequest(model_name="words")
    asked.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"a", b"\xff"])
    with grpc.insecure_channel(served.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="UTF-8"):
            stub.ModelInfer(asked, timeout=PATIENCE_S)
        asked.inputs[0].contents.bytes_contents[1] = b"b"
        raw = stub.ModelInfer(asked, timeout=PATIENCE_S).raw_output_contents[0]
    assert raw == b"\1\0\0\0a\1\0\0\0b"


# ---- classes ------------------------------------------------------------------------------------


def test_the_best_classes_come_with_their_labels(triton: tuple[Any, Any]) -> None:
    module, client = triton
    x = np.array([[0.125, 0.5, 0.25, 0.0], [4, 3, 2, 1]], "f4")
    wanted = [module.InferRequestedOutput("y", class_count=2)]
    found = client.infer("scores", [tensor(module, x)], outputs=wanted).as_numpy("y")
    assert texts(found).tolist() == [["0.500000:1:dog", "0.250000:2:eel"], ["4.000000:0:cat", "3.000000:1:dog"]]


# ---- numbers in JSON ----------------------------------------------------------------------------


def test_the_greatest_numbers_and_nan_stay_whole_in_json(served: Gateway) -> None:
    with triton_http.InferenceServerClient(served.http) as client:
        for model, datatype, x in (
            ("whole", "UINT64", np.array([[2**64 - 1, 2**63 + 1]], "u8")),
            ("scores", "FP32", np.array([[np.nan, np.inf, -np.inf, 0.1]], "f4")),
        ):
            given = [tensor(triton_http, x, datatype, binary_data=False)]
            wanted = [triton_http.InferRequestedOutput("y", binary_data=False)]
            y = client.infer(model, given, outputs=wanted).as_numpy("y")
            assert np.array_equal(y, x, equal_nan=datatype == "FP32")


# ---- what is said of models and of the server ---------------------------------------------------


def test_the_configuration_says_what_is_optional_how_it_batches_and_its_labels(triton: tuple[Any, Any]) -> None:
    config = config_of(triton, "optional")
    assert [entry.get("optional", False) for entry in config["input"]] == [False, True]
    config = config_of(triton, "scores")
    assert config["max_batch_size"] == 32
    assert int(config["dynamic_batching"]["priority_levels"]) == 4
    assert config["model_transaction_policy"].get("decoupled", False) is False
    labels = config["parameters"]["labels"]["string_value"]
    assert ast.literal_eval(labels) == {str(index): name for index, name in NAMES.items()}
    if triton[0] is triton_http:  # every key there, as Triton writes them
        assert {"is_shape_tensor", "allow_ragged_batch", "format"} <= set(config["input"][0])
        assert config["version_policy"] == {"latest": {"num_versions": 1}}


def test_an_optional_input_is_left_out(triton: tuple[Any, Any]) -> None:
    module, client = triton
    answer = client.infer("optional", [tensor(module, np.zeros((1, 2), "f4"))])
    assert answer.as_numpy("y").tolist() == [[1, 1]]


def test_statistics_are_told_by_batch_size(triton: tuple[Any, Any], tools: Any) -> None:
    module, client = triton

    def runs() -> dict[int, int]:
        (model,) = client.get_inference_statistics("whole", **as_json(module))["model_stats"]
        return {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in model["batch_stats"]}

    before = runs().get(5, 0)
    client.infer("whole", [tensor(module, np.ones((5, 2), "u8"), "UINT64")])
    tools.until(lambda: runs().get(5) == before + 1, what="the batch of 5 is counted")


def test_metadata_claims_what_is_there(triton: tuple[Any, Any]) -> None:
    module, client = triton
    extensions = client.get_server_metadata(**as_json(module))["extensions"]
    assert extensions == [
        "binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters",
        "schedule_policy", "statistics", "system_shared_memory",
    ]  # fmt: skip


def test_settings_are_read_and_stay_what_they_are(triton: tuple[Any, Any]) -> None:
    module, client = triton
    name = {"headers": None}
    for model in (None, "scores"):
        trace = client.get_trace_settings(model, **as_json(module))
        trace = trace.get("settings", trace)
        assert "OFF" in str(trace["trace_level"])
        client.update_trace_settings(model, {"trace_level": ["OFF"], "trace_rate": None}, **name)
        with pytest.raises(InferenceServerException, match=r"docs/tracing\.md"):
            client.update_trace_settings(model, {"trace_level": ["TIMESTAMPS"]})
    logs = client.get_log_settings(**as_json(module))
    assert "log_verbose_level" in logs.get("settings", logs)
    client.update_log_settings({"log_error": True})
    with pytest.raises(InferenceServerException, match="set when it starts"):
        client.update_log_settings({"log_verbose_level": 1})
    with pytest.raises(InferenceServerException, match="no model is called"):
        client.get_trace_settings("nonsense")


# ---- the repository -----------------------------------------------------------------------------


def test_models_are_loaded_read_anew_and_unloaded(triton: tuple[Any, Any], folder: Path) -> None:
    module, client = triton

    def index() -> dict[str, str]:
        found = client.get_model_repository_index(**as_json(module))
        return {one["name"]: one["version"] for one in (found["models"] if isinstance(found, dict) else found)}

    for name in ("later", "nested"):  # a file of the name; Triton's own layout of folders
        client.load_model(name, config='{"max_batch_size": 4}')
        assert client.is_model_ready(name)
        assert config_of(triton, name)["max_batch_size"] == 4
        version = index()[name]
        client.load_model(name)
        assert int(index()[name]) > int(version)
        client.unload_model(name)
        assert name not in index()
    with pytest.raises(InferenceServerException, match="models_root"):
        client.load_model("nonsense")
    with pytest.raises(InferenceServerException, match="put it into the yard's models_root"):
        client.load_model("later", config="{}", files={"file:1/model.onnx": b"bytes"})
    with pytest.raises(InferenceServerException, match=r"batchyard\.toml"):
        client.load_model("later", config='{"instance_group": []}')
    with pytest.raises(InferenceServerException, match="nonsense"):
        client.unload_model("nonsense")


# ---- what is not there, and the way out ---------------------------------------------------------


def test_what_is_not_there_is_refused_with_the_way_out(triton: tuple[Any, Any]) -> None:
    module, client = triton
    x = tensor(module, np.zeros((1, 4), "f4"))
    with pytest.raises(InferenceServerException, match=r"docs/sequences\.md"):
        client.infer("scores", [x], sequence_id=5, sequence_start=True)
    with pytest.raises(InferenceServerException, match="--shared-memory"):
        client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64)
    assert not client.get_cuda_shared_memory_status(**as_json(module))
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("r")


# ---- streams, health, reflection ----------------------------------------------------------------


def test_every_answer_of_a_stream_says_that_it_is_the_last_of_its_request(served: Gateway) -> None:
    seen: list[Any] = []
    done = threading.Event()

    def take(result: Any, error: Any) -> None:
        seen.append((result, error))
        if len(seen) == 2:
            done.set()

    with triton_grpc.InferenceServerClient(served.grpc) as client:
        client.start_stream(take)
        for _ in range(2):
            given = [tensor(triton_grpc, np.zeros((1, 4), "f4"))]
            client.async_stream_infer("scores", given, enable_empty_final_response=True)
        assert done.wait(PATIENCE_S)
        client.stop_stream()
    assert [error for _, error in seen] == [None, None]
    assert all(result.get_response().parameters["triton_final_response"].bool_param for result, _ in seen)


def test_whatever_get_has_head_has_without_its_body(served: Gateway) -> None:
    connection = http.client.HTTPConnection(served.http, timeout=PATIENCE_S)
    found = dict.fromkeys(("/v2/health/live", "/v2/health/ready", "/v2/models/scores/ready", "/", "/docs"), 200)
    found |= dict.fromkeys(("/metrics", "/v2", "/v2/models/scores", "/v2/models/scores/config"), 200)
    found |= {"/v2/models/nonsense/ready": 404, "/nowhere": 404, "/v2/models/scores/infer": 405}
    for path, status in found.items():  # on one connection: a body would be taken for the next answer
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (status, b""), path
    connection.request("OPTIONS", "/v2")
    assert connection.getresponse().getheader("allow") == "GET, HEAD"
    connection.close()


def test_who_waits_for_a_model_may_ask_before_it_is_there(triton: tuple[Any, Any]) -> None:
    _, client = triton
    for model, version, is_ready in (("scores", "", True), ("nonsense", "", False), ("scores", "99", False)):
        assert client.is_model_ready(model, version) is is_ready


def test_grpcs_own_health_checks_are_answered(served: Gateway) -> None:
    """By the bytes of its two messages: a service's name, and a number."""
    with grpc.insecure_channel(served.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        name = SERVICE.encode()
        for asked in (b"", b"\x0a" + bytes([len(name)]) + name):
            assert check(asked, timeout=PATIENCE_S) == b"\x08\x01"  # SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x01q", timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        for asked, told in ((b"", b"\x08\x01"), (b"\x0a\x01q", b"\x08\x03")):
            call = watch(asked, timeout=PATIENCE_S)
            assert next(call) == told
            call.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_the_services_describe_themselves(served: Gateway, version: str) -> None:
    package = f"grpc.reflection.{version}"
    request, response = (CLASSES_OF[package][f"ServerReflection{kind}"] for kind in ("Request", "Response"))
    asked = [
        request(list_services=""),
        request(file_containing_symbol=f"{SERVICE}.ModelInfer"),
        request(file_containing_symbol="inference.ModelInferRequest.InferInputTensor"),
        request(file_containing_symbol="inference.Nonsense"),
        request(all_extension_numbers_of_type="inference.ModelConfig"),
    ]
    with grpc.insecure_channel(served.grpc) as channel:
        call = channel.stream_stream(
            f"/{package}.ServerReflection/ServerReflectionInfo",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        names, *files, unknown, extensions = call(iter(asked), timeout=PATIENCE_S)
    listed = [service.name for service in names.list_services_response.service]
    assert {SERVICE, "grpc.health.v1.Health", f"{package}.ServerReflection"} <= set(listed)
    for found in files:
        (raw,) = found.file_descriptor_response.file_descriptor_proto
        file = descriptor_pb2.FileDescriptorProto.FromString(raw)
        assert "ModelStreamInfer" in [method.name for method in file.service[0].method]
    assert (unknown.error_response.error_code, extensions.error_response.error_code) == (5, 12)


# ---- Ultralytics --------------------------------------------------------------------------------


def test_ultralytics_finds_what_its_own_export_wrote(triton: tuple[Any, Any]) -> None:
    """The calls of ultralytics/utils/triton.py, and what its AutoBackend makes of the metadata."""
    module, client = triton
    config = config_of(triton, "scores")
    types = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_UINT8": np.uint8}
    metadata = ast.literal_eval(config.get("parameters", {}).get("metadata", {}).get("string_value", "None"))
    assert metadata == EXPORTED
    assert (int(metadata["stride"]), metadata["task"]) == (32, "detect")
    assert ast.literal_eval(metadata["names"]) == NAMES
    x = np.random.default_rng(3).random((1, 4)).astype(types[config["input"][0]["data_type"]])
    kind = config["input"][0]["data_type"].replace("TYPE_", "")
    given = module.InferInput(config["input"][0]["name"], [*x.shape], kind)
    given.set_data_from_numpy(x)
    outputs = sorted(entry["name"] for entry in config["output"])
    wanted = [module.InferRequestedOutput(name) for name in outputs]
    answer = client.infer(model_name="scores", inputs=[given], outputs=wanted)
    assert np.array_equal(answer.as_numpy(outputs[0]), x)
