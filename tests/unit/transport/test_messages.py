"""The golden wire bytes: golden.json holds one envelope for every message of every direction.

They are read back with the independent `msgpack` package, so the protocol is MessagePack and not
"whatever our codec does". The rule when an entry no longer matches:

    a field was added at the end, with a default    old bytes must still decode: keep the old entry
                                                    under a name of its own, add a new one
    anything else changed                           raise PROTOCOL_VERSION, and write the file anew

An entry is never edited to make the test pass while the version stays.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.python_models import Function, FunctionSignature
from batchyard.transport.segments import SegmentHandle
from batchyard.transport.tensors import ABSENT, Slot, Tensor, TensorSpec

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))

RECEIPT = m.BatchReceipt(8, 1_000, 250_000, 2_000, 4096, 3, "cpu", 2, 17, 270_000, 0.25)
RECEIPT_PLAIN = [8, 1_000, 250_000, 2_000, 4096, 3, "cpu", 2, 17, 270_000, 0.25]
IMAGE = TensorSpec("image", 1, ["batch", 3, 224, 224])
IMAGE_PLAIN = ["image", 1, ["batch", 3, 224, 224], False]
LOGITS = TensorSpec("logits", 10, ["batch", 1000])
LOGITS_PLAIN = ["logits", 10, ["batch", 1000], False]
SCALE = TensorSpec("scale", 1, None, True)  # of any shape, and may be left out
SCALE_PLAIN = ["scale", 1, None, True]
FUNCTION = Function("resize", "images.tools", FunctionSignature([IMAGE], [LOGITS], True, 16))
FUNCTION_PLAIN = ["resize", "images.tools", [[IMAGE_PLAIN], [LOGITS_PLAIN], True, 16]]
ORIGIN = m.Provenance("ab" * 32, "static", "zoo:resnet18", {"rms": 0.008}, {"CPUExecutionProvider": {1: 663_000}}, {"names": "{0: 'cat'}"})
ORIGIN_PLAIN = ["ab" * 32, "static", "zoo:resnet18", {"rms": 0.008}, {"CPUExecutionProvider": {1: 663_000}}, {"names": "{0: 'cat'}"}]
MEMFD = SegmentHandle("memfd", "7:1234", 67_108_864)
NAMED = SegmentHandle("named", "batchyard-00112233445566778899aabbccddeeff", 4096)

# name -> (decoder of the direction, our struct, the plain list behind the envelope's version)
EXPECTED: dict[str, tuple[codec.Decoder[Any], Any, list[Any]]] = {
    "client_to_broker.Hello": (
        codec.client_to_broker,
        m.Hello(MEMFD, "python 4711"),
        [1, ["memfd", "7:1234", 67_108_864], "python 4711", False],
    ),
    "client_to_broker.Hello without a segment": (
        codec.client_to_broker,
        m.Hello(None, "python 4711"),
        [1, None, "python 4711", False],
    ),
    "client_to_broker.Hello of one that borrows": (
        codec.client_to_broker,
        m.Hello(MEMFD, "python 4711", True),
        [1, ["memfd", "7:1234", 67_108_864], "python 4711", True],
    ),
    "client_to_broker.Submit": (
        codec.client_to_broker,
        m.Submit(42, "resnet18", 2, 50_000_000, [Tensor(1, [2, 3, 224, 224], 1_204_224)], [Slot(4096, 8000)]),
        [2, 42, "resnet18", 2, 50_000_000, [[1, [2, 3, 224, 224], 1_204_224, 0, 0]], [[4096, 8000, None]], None, False],
    ),
    "client_to_broker.Submit with frames": (
        codec.client_to_broker,
        m.Submit((1 << 63) - 1, "m", 0, 0, [Tensor(7, [], 0, 1), Tensor(9, [0, 5], 0, 2)], []),
        [2, (1 << 63) - 1, "m", 0, 0, [[7, [], 0, 1, 0], [9, [0, 5], 0, 2, 0]], [], None, False],
    ),
    "client_to_broker.Submit of strings, and an input left out": (
        codec.client_to_broker,
        m.Submit(5, "m", 3, 0, [Tensor(8, [2], 640, 0, 19), Tensor(ABSENT, [], 0)], []),
        [2, 5, "m", 3, 0, [[8, [2], 640, 0, 19], [0, [], 0, 0, 0]], [], None, False],
    ),
    "client_to_broker.Submit without inputs": (
        codec.client_to_broker,
        m.Submit(6, "m", 2, 0, [], [Slot(64, 4)]),
        [2, 6, "m", 2, 0, [], [[64, 4, None]], None, False],
    ),
    "client_to_broker.Submit for an output of one shape": (
        codec.client_to_broker,
        m.Submit(7, "m", 2, 0, [], [Slot(64, 24, [2, 3])]),
        [2, 7, "m", 2, 0, [], [[64, 24, [2, 3]]], None, False],
    ),
    "client_to_broker.Submit of several that are alike": (
        codec.client_to_broker,
        m.Submit(
            7, "m", 2, 90, [Tensor(1, [4], 64)], [Slot(0, 4)], m.More([8, 9], [91, 0], [128, 192, 1 << 40, 256])
        ),
        [2, 7, "m", 2, 90, [[1, [4], 64, 0, 0]], [[0, 4, None]], [[8, 9], [91, 0], [128, 192, 1 << 40, 256]], False],
    ),
    "client_to_broker.Submit of rows that are packed": (
        codec.client_to_broker,
        m.Submit(8, "m", 2, 0, [Tensor(1, [3, 4], 64)], [Slot(256, 12)], None, True),
        [2, 8, "m", 2, 0, [[1, [3, 4], 64, 0, 0]], [[256, 12, None]], None, True],
    ),
    "client_to_broker.Cancel": (codec.client_to_broker, m.Cancel([42, 43, 70_000]), [3, [42, 43, 70_000]]),
    "client_to_broker.Describe": (codec.client_to_broker, m.Describe(44, "größe"), [4, 44, "größe"]),
    "client_to_broker.Bye": (codec.client_to_broker, m.Bye(), [5]),
    "broker_to_client.Refused": (
        codec.broker_to_client,
        m.Refused(11, "the peer speaks protocol 9"),
        [0, 11, "the peer speaks protocol 9"],
    ),
    "broker_to_client.Welcome": (
        codec.broker_to_client,
        m.Welcome(0x1234_5678_9ABC_DEF0, 268_435_456),
        [1, 0x1234_5678_9ABC_DEF0, 268_435_456],
    ),
    "broker_to_client.Completed": (
        codec.broker_to_client,
        m.Completed([42, 43], [15_000, 16_000], RECEIPT),
        [2, [42, 43], [15_000, 16_000], RECEIPT_PLAIN],
    ),
    "broker_to_client.Answer": (
        codec.broker_to_client,
        m.Answer(42, 15_000, RECEIPT, [[Tensor(1, [2, 5], 0, 1)], [Tensor(1, [1, 5], 64, 2)]]),
        [3, 42, 15_000, RECEIPT_PLAIN, [[[1, [2, 5], 0, 1, 0]], [[1, [1, 5], 64, 2, 0]]], [], []],
    ),
    "broker_to_client.Answer with a lent frame": (
        codec.broker_to_client,
        m.Answer(42, 15_000, RECEIPT, [[Tensor(1, [2, 5], 0, 1)]], [m.FrameSegment(1, MEMFD)], [0]),
        [3, 42, 15_000, RECEIPT_PLAIN, [[[1, [2, 5], 0, 1, 0]]], [[1, ["memfd", "7:1234", 67_108_864]]], [0]],
    ),
    "broker_to_client.Failed": (
        codec.broker_to_client,
        m.Failed(42, 4, "too much under way", 1_000_000, True),
        [4, 42, 4, "too much under way", 1_000_000, True],
    ),
    "broker_to_client.Released": (codec.broker_to_client, m.Released([42]), [5, [42]]),
    "broker_to_client.Streamed": (
        codec.broker_to_client,
        m.Streamed(42, [Tensor(1, [1, 1000], 0, 1)]),
        [7, 42, [[1, [1, 1000], 0, 1, 0]]],
    ),
    "worker_to_broker.Yielded": (
        codec.worker_to_broker,
        m.Yielded(7, 17, [Tensor(1, [1, 1000], 0, 1)]),
        [8, 7, 17, [[1, [1, 1000], 0, 1, 0]]],
    ),
    "broker_to_worker.Unwanted": (codec.broker_to_worker, m.Unwanted(17), [8, 17]),
    "broker_to_client.Described": (
        codec.broker_to_client,
        m.Described(
            44,
            [
                m.ModelInfo(
                    "resnet18",
                    m.ModelState.READY,
                    "",
                    2,
                    [IMAGE],
                    [LOGITS],
                    True,
                    "",
                    32,
                    [m.WorkerInfo(3, 4712, "cpu", "CPUExecutionProvider", {1: 20_000, 2: 31_000})],
                    False,
                    ORIGIN,
                    [0, 0],
                    "every output has the axis 'batch'; 6 rows differ by 0",
                    ["height"],
                    "rows differ by 0",
                    4096,
                    512,
                    True,
                    True,
                ),
                m.ModelInfo("broken", m.ModelState.FAILED, "no such file", 1, [], [], False, "", 32, []),
            ],
        ),
        [
            6,
            44,
            [
                [
                    "resnet18",
                    1,
                    "",
                    2,
                    [IMAGE_PLAIN],
                    [LOGITS_PLAIN],
                    True,
                    "",
                    32,
                    [[3, 4712, "cpu", "CPUExecutionProvider", {1: 20_000, 2: 31_000}, ""]],
                    False,
                    ORIGIN_PLAIN,
                    [0, 0],
                    "every output has the axis 'batch'; 6 rows differ by 0",
                    ["height"],
                    "rows differ by 0",
                    4096,
                    512,
                    True,
                    True,
                ],
                [
                    "broken", 2, "no such file", 1, [], [], False, "", 32, [], True, None, [], "", [], "", 0, 0, False, False,
                ],
            ],
        ],
    ),
    "worker_to_broker.Register": (codec.worker_to_broker, m.Register(4712, ["cpu"]), [1, 4712, ["cpu"], "", ""]),
    "worker_to_broker.Register fallback_reason": (
        codec.worker_to_broker,
        m.Register(4712, ["cpu"], "webgpu: no adapter", "5ec"),
        [1, 4712, ["cpu"], "webgpu: no adapter", "5ec"],
    ),
    "worker_to_broker.Leaving": (codec.worker_to_broker, m.Leaving("887A0006"), [6, "887A0006"]),
    "worker_to_broker.Loaded": (
        codec.worker_to_broker,
        m.Loaded(
            "resnet18",
            2,
            [IMAGE, SCALE],
            [LOGITS],
            True,
            "",
            32,
            "cpu",
            "CPUExecutionProvider",
            {1: 20_000},
            [1, 8],
            0.5,
            ORIGIN,
            {1: 663_000},
            [0, -1, 0],
            "axis 0 is free in every output",
            m.Padding([[2], [-1]], "rows differ by 0", True, {224: {1: 20_000}}),
            True,
        ),
        [
            2,
            "resnet18",
            2,
            [IMAGE_PLAIN, SCALE_PLAIN],
            [LOGITS_PLAIN],
            True,
            "",
            32,
            "cpu",
            "CPUExecutionProvider",
            {1: 20_000},
            [1, 8],
            0.5,
            ORIGIN_PLAIN,
            {1: 663_000},
            [0, -1, 0],
            "axis 0 is free in every output",
            [[[2], [-1]], "rows differ by 0", True, {224: {1: 20_000}}],
            True,
        ],
    ),
    "worker_to_broker.LoadFailed": (
        codec.worker_to_broker,
        m.LoadFailed("resnet18", 2, "Protobuf parsing failed"),
        [3, "resnet18", 2, "Protobuf parsing failed"],
    ),
    "worker_to_broker.Done": (
        codec.worker_to_broker,
        m.Done(99, 17, 1_000, 250_000, 2_000, 4096, [m.ItemOutputs(1, [Tensor(1, [1, 5], 128, 1)])], [0], 7),
        [4, 99, 17, 1_000, 250_000, 2_000, 4096, [[1, [[1, [1, 5], 128, 1, 0]]]], [0], 7, []],
    ),
    "worker_to_broker.Done with a lent frame": (
        codec.worker_to_broker,
        m.Done(99, 17, 1, 2, 3, 4, [], [], 0, [m.FrameSegment(2, MEMFD)]),
        [4, 99, 17, 1, 2, 3, 4, [], [], 0, [[2, ["memfd", "7:1234", 67_108_864]]]],
    ),
    "worker_to_broker.BatchFailed": (
        codec.worker_to_broker,
        m.BatchFailed(99, 17, 8, "Non-zero status code returned"),
        [5, 99, 17, 8, "Non-zero status code returned", -1],
    ),
    "worker_to_broker.RunsAlone": (
        codec.worker_to_broker,
        m.RunsAlone("resnet18", 2, "output 'logits' came out with shape [1, 1000] for 3 rows"),
        [7, "resnet18", 2, "output 'logits' came out with shape [1, 1000] for 3 rows"],
    ),
    "broker_to_worker.Refused": (
        codec.broker_to_worker,
        m.Refused(12, "register first"),
        [0, 12, "register first"],
    ),
    "broker_to_worker.WorkerWelcome": (
        codec.broker_to_worker,
        m.WorkerWelcome(99, 3, 4710),
        [1, 99, 3, 4710],
    ),
    "broker_to_worker.Load": (
        codec.broker_to_worker,
        m.Load("resnet18", 2, "/models/resnet18.onnx", 32, None, True, [1, 8], 1, 0.25),
        [2, "resnet18", 2, "/models/resnet18.onnx", 32, None, True, [1, 8], 1, 0.25, None, None, False, {}],
    ),
    "broker_to_worker.Load of a function": (
        codec.broker_to_worker,
        m.Load("resize", 1, "", 8, None, True, [], 0, None, FUNCTION),
        [2, "resize", 1, "", 8, None, True, [], 0, None, FUNCTION_PLAIN, None, False, {}],
    ),
    "broker_to_worker.Load with its batch axes": (
        codec.broker_to_worker,
        m.Load("vad", 1, "/m/vad.onnx", 8, None, True, [], 0, None, None, {"x": 0, "state": 1, "y": 0}, True),
        [2, "vad", 1, "/m/vad.onnx", 8, None, True, [], 0, None, None, {"x": 0, "state": 1, "y": 0}, True, {}],
    ),
    "broker_to_worker.Load of a padded model": (
        codec.broker_to_worker,
        m.Load("net", 1, "/m/net.onnx", 8, None, True, pad={"sequence": m.Pad([16, 64], {"ids": 1.0})}),
        [2, "net", 1, "/m/net.onnx", 8, None, True, [], 0, None, None, None, False]
        + [{"sequence": [[16, 64], {"ids": 1.0}]}],
    ),
    "broker_to_worker.Unload": (codec.broker_to_worker, m.Unload("resnet18", 1), [3, "resnet18", 1]),
    "broker_to_worker.Attach": (
        codec.broker_to_worker,
        m.Attach(5, NAMED),
        [4, 5, ["named", "batchyard-00112233445566778899aabbccddeeff", 4096]],
    ),
    "broker_to_worker.Dismissed": (codec.broker_to_worker, m.Dismissed(), [7]),
    "broker_to_worker.Detach": (codec.broker_to_worker, m.Detach(5), [5, 5]),
    "broker_to_worker.Batch": (
        codec.broker_to_worker,
        m.Batch(
            17, "resnet18", 2, 3, [m.Item(5, [Tensor(1, [3, 4], 128)], [Slot(0, 60)], b"\x01\xff")], 7_000
        ),
        [6, 17, "resnet18", 2, 3, [[5, [[1, [3, 4], 128, 0, 0]], [[0, 60, None]], b"\x01\xff", 0, 0, [], False]], 7_000],
    ),
    "broker_to_worker.Batch of a part": (
        codec.broker_to_worker,
        m.Batch(18, "resnet18", 2, 8, [m.Item(5, [Tensor(1, [13, 4], 128)], [Slot(0, 260)], b"", 5, 8)]),
        [6, 18, "resnet18", 2, 8, [[5, [[1, [13, 4], 128, 0, 0]], [[0, 260, None]], b"", 5, 8, [], False]], 0],
    ),
    "broker_to_worker.Batch of requests that are alike": (
        codec.broker_to_worker,
        m.Batch(
            19, "net", 1, 6, [m.Item(5, [Tensor(1, [2, 4], 128)], [Slot(0, 40)], more=[192, 64, 1 << 40, 256], packed=True)]
        ),
        [6, 19, "net", 1, 6, [[5, [[1, [2, 4], 128, 0, 0]], [[0, 40, None]], b"", 0, 0, [192, 64, 1 << 40, 256], True]], 0],
    ),
    "admin_to_broker.Snapshot": (codec.admin_to_broker, m.Snapshot("5ec"), [1, "5ec"]),
    "admin_to_broker.LoadModel": (
        codec.admin_to_broker,
        m.LoadModel("resnet18", "resnet18.onnx", 16, 90_000_000_000, {"warmup": False}),
        [2, "resnet18", "resnet18.onnx", 16, 90_000_000_000, {"warmup": False}, ""],
    ),
    "admin_to_broker.SwapModel": (
        codec.admin_to_broker,
        m.SwapModel("m", "", 0.5, None, {"batch_axis": {"x": 0}}),
        [3, "m", "", 0.5, None, {"batch_axis": {"x": 0}}, ""],
    ),
    "admin_to_broker.UnloadModel": (codec.admin_to_broker, m.UnloadModel("m"), [4, "m", ""]),
    "broker_to_admin.ModelChanged": (codec.broker_to_admin, m.ModelChanged("m", 3), [2, "m", 3, None]),
    "broker_to_admin.Refused": (codec.broker_to_admin, m.Refused(2, "no"), [0, 2, "no"]),
    "broker_to_admin.SnapshotTaken": (
        codec.broker_to_admin,
        m.SnapshotTaken({"batches": 1 << 40, "stages": [["m", 0, "total", {"counts": {30: 2}, "sum": 9}]]}),
        [1, {"batches": 1 << 40, "stages": [["m", 0, "total", {"counts": {30: 2}, "sum": 9}]]}],
    ),
}


def test_the_golden_file_and_the_table_name_the_same_messages() -> None:
    assert sorted(GOLDEN) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_encoder_produces_exactly_the_golden_bytes(name: str) -> None:
    assert codec.encode([EXPECTED[name][1]]).hex() == GOLDEN[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_an_independent_reader_finds_plain_lists_in_the_golden_bytes(name: str) -> None:
    plain = msgpack.unpackb(bytes.fromhex(GOLDEN[name]), strict_map_key=False)
    assert plain == [m.PROTOCOL_VERSION, [EXPECTED[name][2]]]


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_bytes_decode_to_the_message_in_their_direction(name: str) -> None:
    decoder, message, _ = EXPECTED[name]
    (decoded,) = decoder.decode(bytes.fromhex(GOLDEN[name]))
    assert codec.encode([decoded]).hex() == GOLDEN[name]
    if not isinstance(decoded, m.LentBatch):  # that leaves its items encoded
        assert decoded == message


def test_a_worker_reads_a_batch_with_its_items_left_as_bytes() -> None:
    _, batch, _ = EXPECTED["broker_to_worker.Batch"]
    (lent,) = codec.broker_to_worker.decode(bytes.fromhex(GOLDEN["broker_to_worker.Batch"]))
    assert isinstance(lent, m.LentBatch)
    assert (lent.batch, lent.model, lent.revision, lent.rows) == (17, "resnet18", 2, 3)
    assert lent.lease_ns == 7_000
    assert msgspec.msgpack.decode(lent.items, type=list[m.Item]) == batch.items


@pytest.mark.parametrize("name", EXPECTED)
def test_an_independent_writer_is_understood(name: str) -> None:
    decoder, _, plain = EXPECTED[name]
    assert decoder.decode(msgpack.packb([m.PROTOCOL_VERSION, [plain]])) == decoder.decode(bytes.fromhex(GOLDEN[name]))


def test_a_worker_that_does_not_know_a_files_other_entries_is_understood() -> None:
    decoder, message, plain = EXPECTED["worker_to_broker.Loaded"]
    older = [part if part != ORIGIN_PLAIN else ORIGIN_PLAIN[:-1] for part in plain]
    (decoded,) = decoder.decode(msgpack.packb([m.PROTOCOL_VERSION, [older]]))
    assert decoded == msgspec.structs.replace(message, origin=msgspec.structs.replace(ORIGIN, metadata={}))


def _structs_inside(value: Any) -> set[type]:
    if isinstance(value, msgspec.Struct):
        found = {type(value)}
        for name in value.__struct_fields__:
            found |= _structs_inside(getattr(value, name))
        return found
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return {kind for entry in value for kind in _structs_inside(entry)}
    return set()


def test_every_struct_of_the_protocol_has_golden_bytes() -> None:
    declared = {
        kind for _, kind in inspect.getmembers(m, inspect.isclass) if issubclass(kind, msgspec.Struct)
    }
    covered = {kind for _, message, _ in EXPECTED.values() for kind in _structs_inside(message)}
    assert declared - covered == {m.LentBatch}  # the same bytes as Batch, as the other side reads them


def test_every_direction_takes_every_message_of_its_union() -> None:
    unions = {
        "client_to_broker": m.ClientMessage,
        "broker_to_client": m.BrokerToClient,
        "worker_to_broker": m.WorkerMessage,
        "broker_to_worker": m.BrokerToWorker,
        "admin_to_broker": m.AdminMessage,
        "broker_to_admin": m.BrokerToAdmin,
    }
    for direction, union in unions.items():
        named = {name.split(".")[1].split(" ")[0] for name in EXPECTED if name.startswith(direction + ".")}
        assert named == {kind.__name__.removeprefix("Lent") for kind in union.__args__}, direction


def test_the_version_is_the_one_that_the_golden_bytes_were_written_for() -> None:
    assert m.PROTOCOL_VERSION == 6, "write golden.json anew: see the module's docstring"


def test_the_first_byte_of_an_envelope_is_the_same_in_every_version() -> None:
    assert {text[:4] for text in GOLDEN.values()} == {"9206"}  # an array of two, then the version
