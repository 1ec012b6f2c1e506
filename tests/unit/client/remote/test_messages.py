"""A call's bytes are what the gateway's own readers read, and its answers what the client reads."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx", reason="pip install 'batchyard[fleet]'")
pytest.importorskip("grpc", reason="pip install 'batchyard[fleet]'")
import httpx
from batchyard import BatchyardError
from batchyard.client.remote import protobuf
from batchyard.client.remote.calls import Answer, Call, array_of, bytes_of
from batchyard.client.remote.failures import Interrupted
from batchyard.client.remote.grpc import GrpcCarrier
from batchyard.client.remote.grpc import _answer as grpc_answer
from batchyard.client.remote.http import HttpCarrier
from batchyard.client.remote.http import _answer as http_answer
from batchyard.gateway.grpc_messages import CLASSES, parsed
from batchyard.gateway.http_infer import HEADER_LENGTH, _decoder

RECEIPT = {
    "queue_ns": 5, "rows": 8, "gather_ns": 1, "compute_ns": 2, "scatter_ns": 3, "copied_bytes": 0, "worker": 1,
    "provider": "cpu", "revision": 4, "batch": 77, "lent_ns": 9, "padded": 0.25,
}  # fmt: skip
X = np.arange(6, dtype=np.float32).reshape(2, 3)
SCALAR = np.array(3, np.int64)


def call() -> Call:
    inputs = [("x", "FP32", (3, 2), bytes_of(X.T)), ("s", "INT64", (), bytes_of(SCALAR))]
    return Call("m", inputs, 0, time.monotonic_ns() + 10**9, "00-a-b-01")


def test_a_grpc_request_is_protobufs() -> None:
    packed = GrpcCarrier("localhost:1", None, False).pack(call())
    message = parsed("ModelInferRequest", packed.body, 1 << 20)
    assert message.model_name == "m"
    assert [(each.name, each.datatype, list(each.shape)) for each in message.inputs] == [
        ("x", "FP32", [3, 2]),
        ("s", "INT64", []),
    ]
    assert list(message.raw_input_contents) == [X.T.tobytes(), SCALAR.tobytes()]
    assert message.parameters["priority"].int64_param == 1
    assert 0 < message.parameters["timeout"].int64_param <= 1_000_000
    assert message.parameters["receipt"].bool_param is True


@pytest.mark.parametrize("several", [False, True])
def test_an_http_request_that_is_sent_again_says_what_is_left_of_its_deadline(several: bool) -> None:
    """Its body is the same: the deadline would start anew."""
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        heads.append(int(head.split("batchyard-timeout-ms: ")[1].split()[0]))
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            carrier = HttpCarrier("http://{}:{}".format(*server.sockets[0].getsockname()), None)
            packed = carrier.pack(call())
            for left_s in (3000, 1000, -1):
                packed.until_ns = time.monotonic_ns() + left_s * 10**9
                with pytest.raises(Interrupted):
                    await (anext(carrier.stream(packed)) if several else carrier.infer(packed))
            await carrier.close()

    asyncio.run(main())
    assert 2_900_000 < heads[0] <= 3_000_000
    assert 900_000 < heads[1] <= 1_000_000
    assert heads[2] == 1, "0 would be no deadline to Envoy"


def test_an_http_request_is_the_gateways() -> None:
    packed = HttpCarrier("http://localhost:1", None).pack(call())
    head = _decoder.decode(packed.body[: packed.head_nbytes])
    assert [(each.name, each.shape, each.parameters["binary_data_size"]) for each in head.inputs] == [
        ("x", [3, 2], 24),
        ("s", [], 8),
    ]
    assert packed.body[packed.head_nbytes :] == X.T.tobytes() + SCALAR.tobytes()
    assert head.parameters["binary_data_output"] is True


def message() -> Any:
    made = CLASSES["ModelInferResponse"](model_name="m", model_version="4")
    for name, value in RECEIPT.items():
        kind = {int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(made.parameters[name], kind, value)
    made.outputs.add(name="y", datatype="FP32", shape=[2, 3])
    made.outputs.add(name="e", datatype="UINT8", shape=[0])
    made.raw_output_contents.extend([X.tobytes(), b""])
    return made


def check(answer: Answer) -> None:
    reply = answer.reply()
    np.testing.assert_array_equal(reply.outputs["y"], X)
    assert reply.outputs["e"].shape == (0,)
    assert reply.outputs["y"].flags.writeable
    receipt = reply.receipt
    assert {name: getattr(receipt, name) for name in RECEIPT} == RECEIPT


def test_a_grpc_answer_is_read() -> None:
    check(grpc_answer(memoryview(message().SerializeToString())))


def test_an_http_answer_is_read() -> None:
    import json

    outputs = [
        {"name": "y", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
        {"name": "e", "datatype": "UINT8", "shape": [0], "parameters": {"binary_data_size": 0}},
    ]
    head = json.dumps({"model_name": "m", "parameters": RECEIPT, "outputs": outputs}).encode()
    check(http_answer(httpx.Response(200, headers={HEADER_LENGTH: str(len(head))}, content=head + X.tobytes())))


@pytest.mark.parametrize("end", [1, 7, 20, -1])
def test_a_cut_off_answer_is_an_error(end: int) -> None:
    whole = message().SerializeToString()
    with pytest.raises(BatchyardError):
        grpc_answer(memoryview(whole)[:end]).reply()


def test_another_servers_answer_says_what_it_lacks() -> None:
    with pytest.raises(BatchyardError, match="no receipt"):
        Answer([("y", X)], {}).reply()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 1 << 62, -1])
def test_numbers_come_back(value: int) -> None:
    ((at, raw),) = protobuf.fields(memoryview(protobuf.field(3, protobuf.varint(value))))
    assert (at, list(protobuf.whole_numbers(raw))) == (3, [value])


def test_strings_are_the_protocols_bytes() -> None:
    texts = np.array([["a", "ü"], ["", "z" * 300]], object)
    np.testing.assert_array_equal(array_of("BYTES", texts.shape, bytes_of(texts)), texts)
    with pytest.raises(BatchyardError, match="strings"):
        array_of("BYTES", (3,), memoryview(b"\x01"))
