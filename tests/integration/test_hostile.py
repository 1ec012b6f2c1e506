"""Peers that do not keep to the protocol, on raw sockets, while a good client goes on getting right answers.

Whatever they send is counted and refused; the broker and its workers live on with the same pids.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from batchyard import Client, SegmentRefused, serve
from batchyard.client import Yard
from batchyard.transport import codec, secret, segments
from batchyard.transport import messages as m
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.errors import Code
from batchyard.transport.segments import Segment, SegmentHandle
from batchyard.transport.tensors import NBYTES_MAX, Slot, Tensor

ANSWER_MS = 5_000
X = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def yard(neg_model: Path, onnx_models: Any) -> Iterator[Yard]:
    free = onnx_models.unary("free_width", "Neg", ["n", "width"])
    with serve({"neg": neg_model, "free": free}, workers=1, max_batch=8, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def client(yard: Yard) -> Iterator[Client]:
    with yard.client() as made:
        yield made


@pytest.fixture(autouse=True)
def a_good_client_is_not_disturbed(yard: Yard, client: Client, tools: Any) -> Iterator[None]:
    """It asks all the time, every answer is right, and nobody had to be started again."""
    client.infer("neg", X)
    pids = [process.pid for process in yard.processes] + tools.worker_pids(client, "neg")
    stop = threading.Event()
    errors: list[BaseException] = []

    def ask() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            x = rng.standard_normal((1, 4)).astype(np.float32)
            try:
                assert (client.infer("neg", x, timeout=10) == -x).all()
            except BaseException as error:
                errors.append(error)
                return
            stop.wait(0.0005)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    stop.set()
    thread.join(15)
    assert errors == []
    assert (client.infer("neg", X) == -1).all()
    assert [process.pid for process in yard.processes] + tools.worker_pids(client, "neg") == pids


class Peer:
    """A raw socket to one of the broker's."""

    def __init__(self, context: zmq.Context[Any], address: str, routing_id: bytes = b"") -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if routing_id:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self.socket.connect(address)

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts)

    def say(self, *messages: Any, frames: Sequence[bytes] = ()) -> None:
        self.send(codec.encode(messages), *frames)

    def hear(self, timeout_ms: int = ANSWER_MS) -> list[Any]:
        if not self.socket.poll(timeout_ms):
            raise AssertionError("no answer")
        messages: list[Any] = codec.broker_to_client.decode(self.socket.recv_multipart()[0])
        return messages

    def ask(self, *messages: Any, frames: Sequence[bytes] = ()) -> Any:
        self.say(*messages, frames=frames)
        return self.hear()[0]


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as made:
        yield made
        made.destroy(linger=0)


@pytest.fixture
def endpoint(yard: Yard) -> Endpoint:
    return Endpoint.parse(yard.url)


@pytest.fixture
def peer(context: zmq.Context[Any], endpoint: Endpoint) -> Peer:
    return Peer(context, endpoint.clients)


@pytest.fixture
def segment() -> Iterator[Segment]:
    with segments.create(1 << 16) as made:
        made.commit(0, 1 << 16)
        yield made


@pytest.fixture
def greeted(peer: Peer, segment: Segment) -> Peer:
    assert isinstance(peer.ask(m.Hello(segment.handle, "hostile")), m.Welcome)
    return peer


def submit(number: int = 1, **changed: Any) -> m.Submit:
    fields = {
        "model": "neg",
        "priority": 2,
        "deadline_ns": 0,
        "inputs": [Tensor(1, [1, 4], 0)],
        "outputs": [Slot(64, 16)],
    } | changed
    return m.Submit(number, *fields.values())


def test_random_bytes_on_every_socket_are_refused(
    context: zmq.Context[Any], endpoint: Endpoint, yard: Yard
) -> None:
    rng = random.Random(1)
    peers = [Peer(context, address) for address in (endpoint.clients, endpoint.workers, endpoint.admin)]
    for _ in range(300):
        for peer in peers:
            peer.send(*(rng.randbytes(rng.choice((0, 1, 7, 300))) for _ in range(rng.choice((1, 1, 2, 5)))))
    for peer in peers:
        assert isinstance(peer.hear()[0], m.Refused)
    refused = yard.snapshot()["refused"]
    assert refused["malformed"] > 0
    assert refused["worker_malformed"] > 0
    assert refused["admin_malformed"] > 0


def test_mutations_of_good_messages_on_every_socket_do_no_harm(
    context: zmq.Context[Any], endpoint: Endpoint, segment: Segment
) -> None:
    rng = random.Random(2)
    good = {
        endpoint.clients: codec.encode(
            [m.Hello(segment.handle, "x"), submit(), m.Describe(5, ""), m.Cancel([1])]
        ),
        endpoint.admin: codec.encode([m.Snapshot()]),
    }
    for address, payload in good.items():
        for _ in range(150):
            bent = bytearray(payload)
            for _ in range(rng.randint(1, 3)):
                bent[rng.randrange(len(bent))] = rng.randrange(256)
            peer = Peer(context, address)
            peer.send(bytes(bent))
            peer.hear()
            peer.socket.close()


def test_a_message_of_thousands_of_parts_is_read_away_and_refused(peer: Peer, yard: Yard) -> None:
    bye = codec.encode([m.Describe(1, "")])
    peer.send(bye, *([b""] * 60_000))
    (refused,) = peer.hear()
    assert isinstance(refused, m.Refused)
    assert "frames" in refused.text
    assert Path(f"/proc/{yard.processes[0].pid}/status").read_text().count("VmRSS")


@pytest.mark.parametrize("version", [0, m.PROTOCOL_VERSION + 1, 99, 1 << 40])
def test_another_version_is_answered_in_the_layout_that_every_version_has(peer: Peer, version: int) -> None:
    peer.send(msgpack.packb([version, [[1, None, "from the future", {"a": 1}]]]))
    assert peer.socket.poll(ANSWER_MS)
    answer = msgpack.unpackb(peer.socket.recv())
    assert answer[1][0][:2] == [0, Code.WRONG_VERSION]
    assert "install the same" in answer[1][0][2]


def test_before_hello_everything_else_is_refused(peer: Peer) -> None:
    for message in (submit(), m.Cancel([1]), m.Describe(1, ""), m.Bye()):
        answer = peer.ask(message)
        assert isinstance(answer, m.Refused)
        assert answer.code == Code.UNKNOWN_CONNECTION


def test_a_peer_does_not_choose_its_own_routing_id(context: zmq.Context[Any], endpoint: Endpoint) -> None:
    for routing_id in (b"admin", b"x", b"y" * 200):
        answer = Peer(context, endpoint.clients, routing_id).ask(m.Hello(None, "chosen"))
        assert isinstance(answer, m.Refused)
        assert answer.code == Code.UNAUTHORIZED


def test_a_second_hello_is_refused_and_the_first_holds(greeted: Peer, segment: Segment) -> None:
    assert greeted.ask(m.Hello(segment.handle, "again")).code == Code.INVALID_REQUEST
    assert isinstance(greeted.ask(submit()), m.Completed)


@pytest.mark.parametrize(
    "changed",
    [
        {"inputs": [Tensor(1, [1, 4], (1 << 16) - 8)]},
        {"inputs": [Tensor(1, [1, 4], 1 << 16)]},
        {"inputs": [Tensor(1, [1, 4], NBYTES_MAX)]},
        {"inputs": [Tensor(1, [NBYTES_MAX, 4], 0)]},
        {"inputs": [Tensor(1, [1 << 40, 4], 0)], "outputs": []},
        {"inputs": [Tensor(1, [1, 4], 0, 1)]},
        {"inputs": [Tensor(7, [1, 4], 0)]},
        {"inputs": [Tensor(1, [], 0)]},
        {"inputs": [Tensor(1, [1, 4], 0)] * 64},
        {"outputs": [Slot((1 << 16) - 8, 16)]},
        {"outputs": [Slot(64, 16)] * 64},
        {"model": "nothing"},
        {"model": ""},
        {"model": "free", "inputs": [Tensor(1, [1 << 32, 1 << 32], 0)], "outputs": []},
        {"model": "free", "inputs": [Tensor(1, [1 << 40, 0], 0)], "outputs": []},
    ],
    ids=range(15),
)
def test_a_request_that_lies_is_answered_with_an_error_and_the_connection_goes_on(
    greeted: Peer, changed: dict[str, Any]
) -> None:
    answer = greeted.ask(submit(**changed))
    assert isinstance(answer, m.Failed)
    assert answer.code in (Code.INVALID_REQUEST, Code.UNKNOWN_MODEL, Code.OVERLOADED)
    assert isinstance(greeted.ask(submit(2)), m.Completed)


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 63])
def test_handles_at_odd_addresses_are_the_peers_own_affair(
    greeted: Peer, segment: Segment, offset: int
) -> None:
    segment.buffer[offset : offset + 16] = np.array([1, 2, 3, 4], np.float32).tobytes()
    message = submit(inputs=[Tensor(1, [1, 4], offset)], outputs=[Slot(1024 + offset, 16)])
    for number in range(4):
        message.request = number
        assert isinstance(greeted.ask(message), m.Completed)
        answer = np.frombuffer(bytes(segment.buffer[1024 + offset : 1040 + offset]), np.float32)
        assert answer.tolist() == [-1, -2, -3, -4]


def test_slots_that_overlap_each_other_and_the_input_harm_only_their_owner(greeted: Peer) -> None:
    for number in range(20):
        greeted.say(submit(number, outputs=[Slot(number % 3 * 8, 16)]))
    ended: list[int] = []
    while len(ended) < 20:
        for message in greeted.hear():
            ended += message.requests
    assert sorted(ended) == list(range(20))


def test_a_number_used_twice_is_refused_and_thousands_of_requests_in_one_message_are_fine(
    greeted: Peer,
) -> None:
    greeted.say(*(submit(number) for number in range(4096)))
    ended: set[int] = set()
    while len(ended) < 4096:
        for message in greeted.hear():
            ended |= set(message.requests) if isinstance(message, m.Completed) else {message.request}
    assert ended == set(range(4096))


def test_empty_requests_of_any_width_pile_up_nowhere(greeted: Peer, yard: Yard, tools: Any) -> None:
    """Every width is a lane of its own."""
    widths = range(2_000)
    greeted.say(
        *(submit(width, model="free", inputs=[Tensor(1, [1, width], 0)], outputs=[]) for width in widths)
    )
    ended: set[int] = set()
    while len(ended) < len(widths):
        for message in greeted.hear():
            assert isinstance(message, m.Answer) or message.code == Code.OVERLOADED, message
            ended.add(message.request)
    tools.until(lambda: yard.snapshot()["rows_under_way"] <= 1)


def test_deadlines_of_years_and_of_no_time_are_both_fine(greeted: Peer) -> None:
    for deadline_ns in (1 << 62, (1 << 62) - 1, 1):
        answer = greeted.ask(submit(deadline_ns=deadline_ns))
        assert isinstance(answer, m.Completed | m.Failed)


# ---- memory that is not theirs ------------------------------------------------------------------


def offers(good: Segment) -> dict[str, SegmentHandle]:
    """What a peer may try to pass off as its arena. Descriptors stay open for the test."""
    import fcntl

    nbytes = 1 << 16

    def place(fd: int) -> str:
        return f"{fd}:{os.fstat(fd).st_ino}"

    def memfd(name: str, size: int, seals: int) -> str:
        fd = os.memfd_create(name, os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return place(fd)

    required = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    file = os.open("/proc/self/exe", os.O_RDONLY)
    read, _ = os.pipe()
    return {
        "unsealed": SegmentHandle("memfd", memfd("batchyard", nbytes, 0), nbytes),
        "not ours": SegmentHandle("memfd", memfd("other", nbytes, required), nbytes),
        "read-only": SegmentHandle(
            "memfd", memfd("batchyard", nbytes, required | fcntl.F_SEAL_WRITE), nbytes
        ),
        "smaller": SegmentHandle("memfd", memfd("batchyard", 4096, required), nbytes),
        "a file": SegmentHandle("memfd", place(file), nbytes),
        "a pipe": SegmentHandle("memfd", place(read), nbytes),
        "closed": SegmentHandle("memfd", "99999:1", nbytes),
        "another inode": SegmentHandle("memfd", f"{good.handle.name.partition(':')[0]}:1", 1 << 16),
        "no number": SegmentHandle("memfd", "7/../../1/fd/3", nbytes),
        "another size": SegmentHandle(good.handle.backend, good.handle.name, nbytes * 2),
        "no size": SegmentHandle(good.handle.backend, good.handle.name, 0),
        "negative": SegmentHandle(good.handle.backend, good.handle.name, -1),
        "huge": SegmentHandle(good.handle.backend, good.handle.name, (1 << 64) - 1),
        "no backend": SegmentHandle("floppy", good.handle.name, nbytes),
        "no such name": SegmentHandle("named", "batchyard-" + "0" * 32, nbytes),
        "a path": SegmentHandle("named", "../../etc/passwd", nbytes),
    }


def test_memory_that_is_not_a_sealed_segment_of_the_peers_own_is_refused(
    context: zmq.Context[Any], endpoint: Endpoint, segment: Segment, yard: Yard
) -> None:
    before = {int(name) for name in os.listdir("/proc/self/fd")}
    arenas = yard.snapshot()["arenas"]
    try:
        for what, handle in offers(segment).items():
            peer = Peer(context, endpoint.clients)
            answer = peer.ask(m.Hello(handle, what))
            assert isinstance(answer, m.Refused), what
            assert answer.code == Code.SEGMENT_REFUSED or "message" in answer.text, what
            assert peer.ask(submit()).code == Code.UNKNOWN_CONNECTION
        assert yard.snapshot()["arenas"] == arenas
    finally:
        for name in os.listdir("/proc/self/fd"):
            try:
                kind = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if int(name) not in before and kind.startswith(
                ("/memfd:", "pipe:", "/proc", sys.prefix, "/root", "/usr")
            ):
                os.close(int(name))


def test_a_yard_that_has_memfds_takes_no_named_segment_unless_it_is_told_to(yard: Yard) -> None:
    with yard.client(segment="named") as client, pytest.raises(SegmentRefused, match="named_segments = true"):
        client.infer("neg", np.ones((1, 4), np.float32))


THIEF = """
import sys, zmq
from batchyard.transport import codec, messages as m
from batchyard.transport.segments import SegmentHandle
with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    socket.connect(sys.argv[1])
    inode = sys.argv[3].partition(":")[2]  # somebody has told the thief all there is to know
    for name in [sys.argv[3], *(f"{fd}:{inode}" for fd in range(3, 64))]:
        socket.send(codec.encode([m.Hello(SegmentHandle("memfd", name, int(sys.argv[2])), "thief")]))
        assert socket.poll(5000)
        (answer,) = codec.broker_to_client.decode(socket.recv())
        assert isinstance(answer, m.Refused), answer
        assert answer.code == 13, answer
print("nothing found")
"""


def test_a_descriptor_number_means_the_peers_own_descriptor_and_nobody_elses(
    endpoint: Endpoint, segment: Segment
) -> None:
    """Numbers of the broker's and of other clients' arenas lead nowhere in the thief's own process."""
    done = subprocess.run(
        [sys.executable, "-c", THIEF, endpoint.clients, str(segment.nbytes), segment.handle.name],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "nothing found\n", done.stderr


# ---- those who pretend to be workers ------------------------------------------------------------


def test_messages_on_the_workers_socket_without_registering_are_refused(
    context: zmq.Context[Any], endpoint: Endpoint, yard: Yard
) -> None:
    peer = Peer(context, endpoint.workers)
    for message in (m.Done(1, 1, 0, 0, 0, 0, []), m.BatchFailed(1, 1, 8, ""), m.LoadFailed("neg", 1, "")):
        answer = peer.ask(message)
        assert isinstance(answer, m.Refused)
        assert answer.code == Code.UNKNOWN_CONNECTION
    answer = peer.ask(m.Register(os.getpid(), ["cpu"], "", "sesam"))
    assert isinstance(answer, m.Refused)
    assert answer.code == Code.UNAUTHORIZED
    assert yard.snapshot()["workers"] == 1


IMPOSTOR = """
import sys, zmq
from batchyard.transport import codec, messages as m
from batchyard.transport.tensors import TensorSpec, Tensor
with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    socket.connect(sys.argv[1])
    say = lambda *messages: socket.send(codec.encode(messages))
    say(m.Register(1, ["cpu"] * 16, "", sys.argv[2]))
    assert socket.poll(5000)
    welcome, *loads = codec.broker_to_worker.decode(socket.recv())
    assert isinstance(welcome, m.WorkerWelcome), welcome
    say(m.Register(1, []))  # again
    for batch in range(1, 2000, 7):  # other workers' batches, in this life of the broker and others
        say(m.Done(welcome.epoch, batch, 1, 1, 1, 0, [m.ItemOutputs(5, [Tensor(99, [1], 0, 9)])]))
        say(m.BatchFailed(welcome.epoch + 1, batch, 77, "x" * 4096, -5))
    for spec in (TensorSpec("x", 99, ["n"]), TensorSpec("x", 1, ["n", -4]), TensorSpec("x", 1, ["n", 1 << 62])):
        say(m.Loaded("neg", 1, [spec], [spec], True, "", 8, "cpu", "", {}))
    say(m.Loaded("nothing", 1, [spec], [spec], True, "", 8, "cpu", "", {}))
    say(m.LoadFailed("nothing", 1, "x"))
    socket.send(b"garbage")
    say(m.Register(1, []))
    while True:  # until the refusal of the garbage: everything before it has been read then
        assert socket.poll(5000)
        if any(isinstance(message, m.Refused) for message in codec.broker_to_worker.decode(socket.recv())):
            break
print("still there")
"""


def test_an_impostor_among_the_workers_ends_nobodys_batches_and_not_the_broker(
    endpoint: Endpoint, yard: Yard, tools: Any
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPOSTOR, endpoint.workers, secret.find(endpoint)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "still there\n", done.stderr
    tools.until(lambda: yard.snapshot()["workers"] == 1, what="the impostor's death to be seen")
    assert yard.snapshot()["refused"]["stale_batch"] > 0


# ---- those who do not read ----------------------------------------------------------------------


def test_a_peer_that_never_reads_its_answers_is_dropped_and_nobody_else_notices(
    greeted: Peer, yard: Yard, tools: Any
) -> None:
    before = yard.snapshot()["clients"]
    big = codec.encode([m.Describe(number, "") for number in range(500)])
    try:
        for _ in range(200):
            greeted.socket.send(big, zmq.NOBLOCK)
    except zmq.Again:
        pass
    assert yard.snapshot(20)["clients"] in (before, before - 1)
    greeted.socket.close()
    tools.until(lambda: yard.snapshot()["clients"] == before - 1, 20)
