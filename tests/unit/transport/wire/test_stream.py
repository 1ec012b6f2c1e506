"""What only the unix socket's wire has: credentials, descriptors that come along, and peers without libzmq."""

from __future__ import annotations

import array
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.errors import Overloaded
from batchyard.transport.wire import Bounds, Carrier, Descriptor, Ended, Full, carrier, owned
from batchyard.transport.wire.stream import Streams
from batchyard.transport.wire.zmtp import DEALER, command, encode, opening

from .driven import BOUNDS, Server, connections, drain, receive_often

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets here")
GREETING_OF_3_0 = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\0" + b"NULL" + b"\0" * 16 + b"\0" * 32


@pytest.fixture
def endpoint(folder: Path) -> Endpoint:
    return Endpoint.parse(f"ipc://{folder}")


@pytest.fixture
def raw(endpoint: Endpoint, server: Server) -> Iterator[Callable[[], socket.socket]]:
    """Sockets that say what a test wants, and only that."""
    made = []

    def one() -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].connect(endpoint.clients.removeprefix("ipc://"))
        made[-1].setblocking(False)
        return made[-1]

    yield one
    for each in made:
        each.close()


def ended(server: Server) -> bool:
    return bool(server.arrived) and server.arrived[-1][1] is None


def heard(sock: socket.socket) -> bytes:
    """What a raw socket was sent so far; ends with b"EOF" when that was all."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except BlockingIOError:
        return data
    except ConnectionResetError:
        pass
    return data + b"EOF"


def test_a_unix_socket_is_ours_and_tcp_is_libzmqs(endpoint: Endpoint) -> None:
    assert isinstance(carrier(endpoint), Streams)
    tcp = carrier(Endpoint.parse("tcp://127.0.0.1:7070"))
    assert not isinstance(tcp, Streams)
    tcp.close()


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="this kernel does not say")
def test_the_kernel_says_who_is_at_the_other_end(server: Server, connect: Any) -> None:
    connect().send([b"hello"])
    server.until(lambda: server.messages)
    assert server.arrived[0][0].credentials == (os.getpid(), os.getuid())


def test_the_end_comes_behind_everything_that_was_sent_before_it(server: Server, connect: Any) -> None:
    for round_ in range(20):
        connection = connect()
        connection.send([b"first"])
        server.until(lambda: server.messages.count([b"first"]) == round_ + 1)  # noqa: B023
        for number in range(150):
            connection.send([b"%d" % number])
        connection.close()
    server.until(lambda: sum(parts is None for _, parts in server.arrived) == 20)
    by_peer: dict[Any, list[Any]] = {}
    for peer, parts in server.arrived:
        by_peer.setdefault(peer, []).append(parts)
    for got in by_peer.values():
        assert len(got) == 152
        assert got[-1] is None
        assert got.count(None) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="memfd")
def test_a_descriptor_comes_with_the_first_message_and_is_another_of_the_same_file(
    server: Server, connect: Any
) -> None:
    fd = os.memfd_create("batchyard", os.MFD_CLOEXEC)
    os.write(fd, b"shared")
    connect(descriptor=fd).send([b"hello"])
    server.until(lambda: server.messages)
    came = server.arrived[0][0].take_descriptor()
    assert came is not None
    assert came.number != fd
    assert os.pread(came.number, 100, 0) == b"shared"
    assert os.fstat(came.number).st_ino == os.fstat(fd).st_ino
    assert not os.get_inheritable(came.number)
    assert server.arrived[0][0].take_descriptor() is None
    os.close(fd)


def a_descriptor(text: bytes) -> Descriptor:
    number = os.memfd_create("batchyard", os.MFD_CLOEXEC)
    os.write(number, text)
    return Descriptor(owned(number))


def text_of(descriptor: Descriptor | None) -> bytes:
    return b"" if descriptor is None else os.pread(descriptor.number, 100, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="memfd")
def test_descriptors_go_along_with_their_messages_both_ways_and_in_order(
    server: Server, endpoint: Endpoint
) -> None:
    connection = Streams().connect(endpoint.clients, BOUNDS, None, 64)
    connections.append(connection)
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    peer = server.arrived[0][0]
    server.listener.admit(peer, 64)
    before = open_descriptors()
    large = b"x" * (4 << 20)  # more than the kernel takes at once: what follows waits
    for number in range(6):
        peer.send([large])
        peer.send([b"%d" % number, b"more"], [a_descriptor(b"%d.%d" % (number, k)) for k in range(2)], 9)
        connection.send([large])
        connection.send([b"%d" % number], [a_descriptor(b"%d" % number)], 9)
    got: list[list[bytes]] = []
    server.until(
        lambda: len(server.messages) == 13 and len(got) == 12, lambda: got.extend(drain(connection))
    )
    assert [text_of(peer.take_descriptor()) for _ in range(7)] == [b"0", b"1", b"2", b"3", b"4", b"5", b""]
    came = [text_of(connection.take_descriptor()) for _ in range(13)]
    assert came == [b"%d.%d" % (number, k) for number in range(6) for k in range(2)] + [b""]
    assert open_descriptors() == before


@pytest.mark.skipif(sys.platform != "linux", reason="memfd")
def test_memory_that_goes_along_counts_until_it_is_read(server: Server, connect: Any) -> None:
    connection = connect()
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    peer = server.arrived[0][0]
    while not peer.stream.blocked:
        peer.send([b"x" * 60_000])
        server.listener.flush()
    peer.send([b"lent"], [a_descriptor(b"")], BOUNDS.outbox_bytes)
    with pytest.raises(Full):
        peer.send([b"lent"], [a_descriptor(b"")], 1)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_descriptors_that_nobody_wants_are_closed(server: Server, raw: Any) -> None:
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    sock = raw()
    server.turn()
    before = open_descriptors()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    sock.sendmsg([opening(DEALER)], rights)
    sock.sendmsg([b"".join(encode([b"hello"]))], rights)
    server.until(lambda: server.messages)
    assert open_descriptors() == before + 1  # the first is kept, as it may be asked for
    server.listener.admit(server.arrived[0][0])
    sock.sendmsg([b"".join(encode([b"again"]))], rights)
    server.until(lambda: len(server.messages) == 2)
    assert open_descriptors() == before
    for fd in fds:
        os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_nothing_stays_open_when_a_connection_has_ended(server: Server, endpoint: Endpoint) -> None:
    before = open_descriptors()
    fd = os.open(os.devnull, os.O_RDONLY)
    connection = Streams().connect(endpoint.clients, BOUNDS, fd)
    os.close(fd)
    connection.send([b"hello"])
    server.until(lambda: server.messages, connection.flush)
    connection.close()
    server.until(lambda: ended(server))
    never = Streams().connect(endpoint.clients + "-nobody", BOUNDS, 0)
    assert never.receive(1) is None
    never.close()
    assert open_descriptors() == before


# ---- peers that are not as they should be ---------------------------------------------------------


def test_a_peer_of_zmtp_3_0_is_understood(server: Server, raw: Any) -> None:
    server.on_message = lambda peer, parts: peer.send([b"welcome", *parts])
    sock = raw()
    sock.send(GREETING_OF_3_0 + command(b"READY", b"\x0bSocket-Type\0\0\0\x06DEALER"))
    sock.send(b"\0\x05hello")
    server.until(lambda: server.messages)
    server.turn(0)
    assert heard(sock).endswith(b"\x01\x07welcome\0\x05hello")


def test_a_peer_that_sends_a_byte_at_a_time_is_understood(server: Server, raw: Any) -> None:
    sock = raw()
    for byte in opening(DEALER) + b"".join(encode([b"slow", b"x" * 300])):
        sock.send(bytes((byte,)))
        server.turn(5)
    assert server.messages == [[b"slow", b"x" * 300]]


def test_a_peer_that_says_nothing_stays_a_stranger_and_is_dismissed(server: Server, raw: Any) -> None:
    sock = raw()
    server.until(lambda: server.listener.strangers)
    assert server.listener.dismiss_strangers(1, 10, 100) == 0
    assert server.listener.dismiss_strangers(11, 10, 100) == 1
    assert heard(sock) == opening(b"ROUTER") + b"EOF"
    assert server.arrived == []


def test_a_peer_that_stops_amid_a_message_keeps_nobody_waiting(
    server: Server, raw: Any, connect: Any
) -> None:
    sock = raw()
    sock.send(opening(DEALER) + b"\x03" + (1 << 20).to_bytes(8, "big") + b"and no more")
    server.turn()
    connection = connect()
    server.on_message = lambda peer, parts: peer.send(parts)
    connection.send([b"hello"])
    got: list[Any] = []
    server.until(lambda: got, lambda: got.extend(drain(connection)))
    assert got == [[b"hello"]]
    sock.close()
    server.until(lambda: ended(server))


def test_a_peer_that_declares_a_huge_frame_is_closed(server: Server, raw: Any) -> None:
    sock = raw()
    sock.send(opening(DEALER) + b"\0\x02ok\x02" + (1 << 50).to_bytes(8, "big"))
    server.until(lambda: ended(server))
    assert server.messages == [[b"ok"]]
    assert "more than is taken" in server.arrived[0][0].violation
    assert heard(sock).endswith(b"EOF")


def test_a_peer_that_sends_a_command_too_many_is_closed(server: Server, raw: Any) -> None:
    sock = raw()
    ready = command(b"READY", b"\x0bSocket-Type\0\0\0\x06DEALER")
    sock.send(opening(DEALER) + ready)
    server.until(lambda: ended(server))
    assert "a second READY" in server.arrived[0][0].violation


def test_a_peer_that_is_no_zeromq_is_closed_and_one_that_is_another_kind_is_told_why(
    server: Server, raw: Any
) -> None:
    sock = raw()
    sock.send(b"GET / HTTP/1.1\r\n\r\n")
    server.until(lambda: ended(server))
    assert heard(sock) == opening(b"ROUTER") + b"EOF"
    other = raw()
    other.send(opening(b"SUB"))
    server.until(lambda: len(server.arrived) == 2)
    assert b"\x05ERROR" in heard(other)


def test_a_peer_that_asks_and_asks_and_never_reads_is_closed(server: Server, raw: Any) -> None:
    sock = raw()
    sock.send(opening(DEALER))
    pings = command(b"PING", b"\0\0" + b"c" * 16) * 4
    sent = 0

    def ask() -> None:
        nonlocal sent
        try:
            sent += sock.send(pings)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass

    for _ in range(100_000):
        ask()
        server.turn(0)
        if ended(server):
            break
    assert "does not read" in server.arrived[0][0].violation


def test_an_answer_is_not_lost_when_its_peer_has_said_that_it_sends_no_more(server: Server, raw: Any) -> None:
    """As a client that has died: its last words are heard, and then its end."""
    sock = raw()
    sock.send(opening(DEALER) + b"".join(encode([b"last words"])))
    sock.close()
    server.until(lambda: ended(server))
    assert server.messages == [[b"last words"]]


def test_a_message_to_a_listener_that_was_gone_before_is_known_to_be_undelivered(
    server: Server, connect: Any
) -> None:
    connection = connect()
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    assert not connection.undelivered
    server.close()
    assert not connection.undelivered
    connection.send([b"too late"])
    assert connection.undelivered
    with pytest.raises(Ended):
        receive_often(connection)


# ---- the connecting side --------------------------------------------------------------------------


def test_a_broker_that_speaks_no_zmtp_is_told_apart_from_one_that_is_gone(folder: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "clients"))
    listening.listen()
    connection = Streams().connect(f"ipc://{folder}/clients", BOUNDS)
    sock, _ = listening.accept()
    sock.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(Ended) as why:
        receive_often(connection)
    assert why.value.why == "protocol"
    connection.close()
    sock.close()
    listening.close()


def test_no_message_leaves_before_the_other_side_is_ready(folder: Path) -> None:
    """libzmq closes a connection over one that comes before its own READY."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "clients"))
    listening.listen()
    connection = Streams().connect(f"ipc://{folder}/clients", BOUNDS)
    connection.send([b"hello"])
    sock, _ = listening.accept()
    sock.setblocking(False)
    assert connection.receive(1) is None
    assert heard(sock) == opening(DEALER)
    sock.send(opening(b"ROUTER")[:64])
    assert connection.receive(1) is None
    assert heard(sock) == b""
    sock.send(opening(b"ROUTER")[64:])
    assert connection.receive(1) is None
    assert heard(sock) == b"".join(encode([b"hello"]))
    for each in (connection, sock, listening):
        each.close()


def test_peers_are_read_in_turns(server: Server, connect: Any) -> None:
    peers = [connect(), connect()]
    for connection in peers:
        connection.send([b"hello"])
    server.until(lambda: len(server.messages) == 2)
    for connection, what in zip(peers, (b"a", b"b"), strict=True):
        for _ in range(60):
            connection.send([what])
    server.watch.wait(1000)
    said = [parts for _, parts in server.listener.receive(40, 1 << 20)]
    assert len(said) == 40
    assert min(said.count([b"a"]), said.count([b"b"])) >= 16
    assert server.listener.has_more


def test_a_listener_whose_backlog_is_full_does_not_hold_a_connection_up(folder: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "clients"))
    listening.listen(0)
    connections = [Streams().connect(f"ipc://{folder}/clients", BOUNDS) for _ in range(4)]
    assert [connection.receive(1) for connection in connections] == [None] * 4
    assert [len(connection.watched) for connection in connections].count(0) >= 1
    for connection in connections:
        connection.close()
    listening.close()


def test_what_is_sent_may_be_written_over_at_once(server: Server, connect: Any) -> None:
    connection = connect()
    memory = bytearray(b"a" * (8 << 20))
    view = memoryview(memory)
    connection.send([b"small", view[:1000], view])
    memory[:] = b"b" * len(memory)
    server.until(lambda: server.messages, connection.flush)
    assert set(server.messages[0][2]) == {ord("a")}


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors")
def test_without_descriptors_a_connection_says_so_and_a_listener_goes_on(
    server: Server, raw: Any, connect: Any, endpoint: Endpoint
) -> None:
    import resource

    first = connect()
    first.send([b"hello"])
    server.until(lambda: server.messages)
    knocking = raw()  # connected by the kernel, and not accepted yet
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 20, hard))
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        with pytest.raises(Overloaded, match="descriptors"):
            Streams().connect(endpoint.clients, BOUNDS)
        server.turn()
        assert server.watch.wait(0) == 0, "who can't be let in wakes us for ever"
        assert heard(knocking).endswith(b"EOF")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    connect().send([b"again"])
    server.until(lambda: len(server.messages) == 2)


def test_a_socket_file_that_another_listener_has_replaced_is_left_alone(
    folder: Path, serving: Carrier
) -> None:
    first = Server(serving, f"ipc://{folder}/one")
    (folder / "one").unlink()
    second = Server(serving, f"ipc://{folder}/one")
    first.close()
    assert (folder / "one").exists()
    second.close()
    assert not (folder / "one").exists()


def test_bounds_are_each_listeners_own(folder: Path, serving: Carrier) -> None:
    server = Server(serving, f"ipc://{folder}/small", Bounds(frame_bytes=300, parts=1))
    connection = Streams().connect(f"ipc://{folder}/small", BOUNDS)
    connection.send([b"x" * 300])
    connection.send([b"x" * 301])
    server.until(lambda: ended(server), connection.flush)
    assert server.messages == [[b"x" * 300]]
    connection.close()
    server.close()
