"""The codec against whatever a peer may send: two typed errors, and never anything else."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.errors import MalformedMessage, WrongVersion
from batchyard.transport.tensors import Tensor, TensorSpec
from hypothesis import example, given, settings
from hypothesis import strategies as st

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
DECODERS = {
    name: getattr(codec, name)
    for name in (
        "client_to_broker",
        "broker_to_client",
        "worker_to_broker",
        "broker_to_worker",
        "admin_to_broker",
        "broker_to_admin",
    )
}
HEAD = bytes([0x92, m.PROTOCOL_VERSION])  # an array of two, the first of which is the version
SUBMIT = [2, 1, "m", 2, 0, [[1, [1, 4], 0, 0]], [[64, 16]]]


def outcome(decoder: codec.Decoder[Any], payload: bytes) -> str:
    """What became of the payload; anything but the two typed errors is the test's failure."""
    try:
        messages = decoder.decode(payload)
    except WrongVersion:
        return "another version"
    except MalformedMessage:
        return "malformed"
    assert isinstance(messages, list)
    return "decoded"


def submit(*, version: Any = m.PROTOCOL_VERSION, **changed: Any) -> bytes:
    """An envelope with one Submit, fields replaced by their place in it."""
    fields = list(SUBMIT)
    for name, value in changed.items():
        fields[["tag", "request", "model", "priority", "deadline_ns", "inputs", "outputs"].index(name)] = (
            value
        )
    return bytes(msgpack.packb([version, [fields]]))


def test_the_message_that_the_others_are_bent_from_is_good() -> None:
    assert outcome(codec.client_to_broker, submit()) == "decoded"


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_of_every_message_is_malformed(name: str) -> None:
    payload = bytes.fromhex(GOLDEN[name])
    decoder = DECODERS[name.split(".")[0]]
    assert {outcome(decoder, payload[:stop]) for stop in range(len(payload))} == {"malformed"}


@pytest.mark.parametrize("garbage", [b"\0", b"\xc0", b"\xc1", b"x", bytes(1000)])
def test_trailing_garbage_is_malformed(garbage: bytes) -> None:
    assert outcome(codec.client_to_broker, submit() + garbage) == "malformed"


@pytest.mark.parametrize(
    "garbage", [b"", b"\xc1", b"\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x80\x04\x95", b"{}"]
)
def test_bytes_of_another_protocol_are_malformed(garbage: bytes) -> None:
    assert {outcome(decoder, garbage) for decoder in DECODERS.values()} == {"malformed"}


HUGE = [1 << 63, (1 << 64) - 1]


@pytest.mark.parametrize(
    "changed",
    [
        *({"request": wrong} for wrong in (-1, None, "1", 1.0, True, [], *HUGE)),
        *({"model": wrong} for wrong in (1, None, b"m", "x" * 256, ["m"])),
        *({"priority": wrong} for wrong in (-1, 4, "2", None, 1 << 40)),
        *({"deadline_ns": wrong} for wrong in (-1, (1 << 62) + 1, 0.5, None)),
        *({"inputs": wrong} for wrong in (None, {}, [[1, [1], 0, 0]] * 4097, [[]], [None], 5)),
        *({"outputs": wrong} for wrong in (None, [[0]], [[0, -1]], [[0, 0]] * 4097, [[0, 1 << 47]])),
        *({"tag": wrong} for wrong in (0, 6, 99, -1, "Submit", None, 1 << 40)),
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_a_field_of_the_wrong_type_or_range_is_malformed(changed: dict[str, Any]) -> None:
    assert outcome(codec.client_to_broker, submit(**changed)) == "malformed"


LOADED = [2, "net", 1, [["x", 1, ["n"]]], [["y", 1, ["n"]]], True, "", 8, "cpu", ""]
MANY = list(range(1, 66))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        *(([sizes], "decoded") for sizes in ({}, {1: 5, 1024: 0})),
        *(([sizes], "malformed") for sizes in ({0: 5}, {1025: 5}, {1: -1}, {1: 1 << 62}, dict.fromkeys(MANY, 1))),
        *(([{}, sizes], "decoded") for sizes in ([], [1, 1024])),
        *(([{}, sizes], "malformed") for sizes in ([0], [1, 1025], [-1], MANY)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_worker_names_no_batch_size_that_nothing_can_be_divided_by(fields: list[Any], said: str) -> None:
    payload = bytes(msgpack.packb([m.PROTOCOL_VERSION, [LOADED + fields]]))
    assert outcome(codec.worker_to_broker, payload) == said


def test_tags_of_another_direction_are_malformed() -> None:
    batch = bytes.fromhex(GOLDEN["broker_to_worker.Batch"])
    assert outcome(codec.client_to_broker, batch) == "malformed"
    assert outcome(codec.admin_to_broker, bytes.fromhex(GOLDEN["client_to_broker.Submit"])) == "malformed"


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 5, 7, 127, 128, 1 << 32, (1 << 63) - 1, -1])
def test_another_version_is_told_apart_whatever_follows(version: int) -> None:
    for behind in ([], [SUBMIT], [[99]], "text", None, {"a": 1}, [[2, -1]]):
        payload = msgpack.packb([version, behind])
        assert outcome(codec.client_to_broker, payload) == "another version"
    assert outcome(codec.client_to_broker, msgpack.packb([version])) == "another version"
    assert outcome(codec.client_to_broker, msgpack.packb([version, [], "new", "fields"])) == "another version"


@pytest.mark.parametrize("version", ["1", 1.0, None, True, [1], {}, "", b"1"])
def test_a_version_that_is_no_number_is_malformed(version: Any) -> None:
    assert outcome(codec.client_to_broker, submit(version=version)) == "malformed"


def test_the_sentence_about_another_version_names_both_and_says_what_to_do() -> None:
    with pytest.raises(WrongVersion, match=r"speaks protocol 9, this side speaks 6: install the same"):
        codec.client_to_broker.decode(submit(version=9))


def test_fields_that_a_newer_peer_added_at_the_end_are_skipped() -> None:
    newer = msgpack.packb([m.PROTOCOL_VERSION, [[*SUBMIT, None, False, "new", {"field": [1]}]], "behind the messages"])
    assert codec.client_to_broker.decode(newer) == codec.client_to_broker.decode(submit())


def test_as_many_messages_as_allowed_pass_and_one_more_is_malformed() -> None:
    bye = msgpack.packb([5])
    head = HEAD + b"\xdc"
    for count, expected in ((m.MESSAGES_MAX, "decoded"), (m.MESSAGES_MAX + 1, "malformed")):
        assert outcome(codec.client_to_broker, head + count.to_bytes(2, "big") + bye * count) == expected


def test_an_array_that_promises_billions_of_elements_costs_nothing() -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        for head in (
            HEAD + b"\xdd\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff\x01",
            HEAD + b"\x91\x92\x03\xdd\xff\xff\xff\xff",
        ):
            assert outcome(codec.client_to_broker, head) == "malformed"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
def test_deeply_nested_arrays_and_maps_are_malformed(depth: int) -> None:
    for opening in (b"\x91", b"\x81\x01"):
        nested = opening * depth + b"\x01"
        for payload in (
            nested,
            HEAD + nested,
            HEAD + b"\x91" + nested,
            HEAD + b"\x91\x93\x04\x01" + nested,
        ):
            for decoder in DECODERS.values():
                assert outcome(decoder, payload) == "malformed"


def test_strings_that_are_not_utf8_are_malformed() -> None:
    for raw in (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
        good = msgpack.packb([m.PROTOCOL_VERSION, [[4, 1, "x" * len(raw)]]])
        assert outcome(codec.client_to_broker, good) == "decoded"
        assert outcome(codec.client_to_broker, good.replace(b"x" * len(raw), raw)) == "malformed"


def test_what_is_encoded_together_is_decoded_together_in_order() -> None:
    messages = [m.Cancel([1]), m.Bye(), m.Describe(2, "m")]
    assert codec.client_to_broker.decode(codec.encode(messages)) == messages
    assert codec.client_to_broker.decode(codec.encode([])) == []


def test_a_memoryview_is_read_like_bytes() -> None:
    assert codec.client_to_broker.decode(memoryview(submit())) == codec.client_to_broker.decode(submit())


# ---- and what nobody thought of ----------------------------------------------------------------


@settings(max_examples=1500)
@given(payload=st.binary(max_size=200), name=st.sampled_from(sorted(DECODERS)))
@example(payload=HEAD, name="client_to_broker")
def test_arbitrary_bytes_are_decoded_or_refused_by_a_typed_error(payload: bytes, name: str) -> None:
    outcome(DECODERS[name], payload)
    outcome(DECODERS[name], HEAD + b"\x91" + payload)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A golden message with a few bytes changed, cut out, doubled or put in."""
    name = draw(st.sampled_from(sorted(GOLDEN)))
    payload = bytearray(bytes.fromhex(GOLDEN[name]))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(payload) - 1)))
        kind = draw(st.sampled_from(("change", "cut", "put", "double")))
        if kind == "change" and payload:
            payload[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del payload[at : at + draw(st.integers(1, 6))]
        elif kind == "put":
            payload[at:at] = draw(st.binary(min_size=1, max_size=9))
        else:
            stop = at + draw(st.integers(1, 16))
            payload[at:at] = payload[at:stop]
    return name.split(".")[0], bytes(payload)


@settings(max_examples=3000)
@given(mutated())
def test_mutations_of_good_messages_are_decoded_or_refused_by_a_typed_error(case: tuple[str, bytes]) -> None:
    direction, payload = case
    outcome(DECODERS[direction], payload)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=1000)
@given(
    tag=st.integers(-1, 8), fields=st.lists(plain_values, max_size=12), name=st.sampled_from(sorted(DECODERS))
)
def test_well_formed_messagepack_of_any_shape_meets_only_typed_errors(
    tag: int, fields: list[Any], name: str
) -> None:
    outcome(DECODERS[name], msgpack.packb([m.PROTOCOL_VERSION, [[tag, *fields]]]))
    outcome(DECODERS[name], msgpack.packb([m.PROTOCOL_VERSION, fields]))
    outcome(DECODERS[name], msgpack.packb(fields))


def test_a_payload_of_megabytes_is_refused_before_anything_is_built_of_it() -> None:
    """16 MB of nils once took 1.2 GB in the broker before it was found to be no message."""
    payload = b"\xdd" + (16 << 20).to_bytes(4, "big") + b"\xc0" * (16 << 20)
    tracemalloc.start()
    try:
        assert {outcome(decoder, payload) for decoder in DECODERS.values()} == {"malformed"}
        small = b"\x92\x02\xdd" + (1 << 19).to_bytes(4, "big") + b"\xc0" * (1 << 19)
        assert outcome(codec.client_to_broker, small) == "another version"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_any_number_of_messages_goes_into_payloads_that_the_other_side_takes() -> None:
    messages = [m.Failed(number, 5, "x" * 1500, 0, False) for number in range(9_001)]
    payloads = codec.payloads(messages)
    read = [message for payload in payloads for message in codec.broker_to_client.decode(payload)]
    assert read == messages
    assert len(codec.payloads(messages[:4096])) == 2  # too many bytes for one
    assert codec.payloads(messages[:1]) == [codec.encode(messages[:1])]
    assert codec.payloads([]) == [codec.encode([])]


# ---- before it is sent --------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_what_the_other_side_takes_is_not_refused_before_it_is_sent(name: str) -> None:
    decoder = DECODERS[name.split(".")[0]]
    for message in decoder.decode(bytes.fromhex(GOLDEN[name])):
        assert decoder.refusal(message) == ""


@pytest.mark.parametrize(
    "message",
    [
        m.LoadFailed("x" * 256, 1, ""),
        m.LoadFailed("net", -1, ""),
        m.LoadFailed("net", 1, "x" * 4097),
        m.Done(1, 1, -1, 0, 0, 0, []),
        m.Done(1, 1, 0, 0, 0, 0, [m.ItemOutputs(0, [Tensor(1, [1] * 65, 0, 1)])]),
        m.Loaded("net", 1, [], [], False, "", 1, "cpu", "", {}),
        m.Loaded("net", 1, [], [TensorSpec("y", 1, [1])], True, "", 1, "cpu", "", {}, batch_axes=[-2]),
        m.Loaded("net", 1, [], [TensorSpec("y", 1, [1])], True, "", 0, "cpu", "", {}),
        m.Attach(1, None),  # type: ignore[arg-type]  # another direction's
    ],
    ids=lambda message: repr(message)[:60],
)
def test_what_the_other_side_would_refuse_is_known_before_it_is_sent(message: Any) -> None:
    """A refused message is lost, and whoever waits for it waits for ever."""
    assert codec.worker_to_broker.refusal(message)
