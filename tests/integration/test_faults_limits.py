"""What the machine has no more of: descriptors, shared memory, ports. And peers who use up what there
is: who never read, or never greet. Typed refusals, no traceback, and the others are served."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from batchyard import Client, Overloaded, serve
from batchyard.tests.integration.alone import Alone, alone
from batchyard.transport import codec, secret
from batchyard.transport import messages as m
from batchyard.transport.endpoints import Endpoint

X = np.ones((1, 4), np.float32)
DESCRIPTORS = 128
RSS_GROWTH_MAX_BYTES = 64 << 20


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS // 2, DESCRIPTORS))


@pytest.fixture(scope="module")
def yard(neg_model: Path, run_folder: Path) -> Iterator[Alone]:
    """Its broker may have 128 descriptors, and is started with 64 of them."""
    with alone(f"ipc://{run_folder}/limits", {"neg": neg_model}, in_broker=few_descriptors) as made:
        yield made


@pytest.fixture
def good(yard: Alone) -> Iterator[Client]:
    """A client that was there before: it is served all the time, and rightly."""
    with yard.client() as client, asking(client):
        yield client


@contextmanager
def asking(client: Client) -> Iterator[None]:
    stop = threading.Event()
    surprises: list[BaseException] = []

    def ask() -> None:
        value = 0.0
        while not stop.wait(0.001) and not surprises:
            value += 1
            try:
                assert (client.infer("neg", np.full((1, 4), value, np.float32), timeout=10) == -value).all()
            except BaseException as error:
                surprises.append(error)

    client.infer("neg", X)
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
    assert surprises == []


# ---- descriptors --------------------------------------------------------------------------------


def test_a_broker_raises_its_limit_on_descriptors_to_what_it_may_have(yard: Alone) -> None:
    soft, hard = resource.prlimit(yard.broker.pid, resource.RLIMIT_NOFILE)
    assert soft == hard == DESCRIPTORS


def test_a_broker_short_of_descriptors_refuses_new_clients_keeps_the_old_ones_and_recovers(
    yard: Alone, good: Client, tools: Any
) -> None:
    clients: list[Client] = []
    try:
        with pytest.raises(Overloaded, match="no room for this client: Too many open files"):  # noqa: PT012
            for _ in range(DESCRIPTORS):
                clients.append(yard.client())
                clients[-1].infer("neg", X)
        assert len(clients) > DESCRIPTORS // 8
        for client in clients[:-1]:
            assert (client.infer("neg", X) == -1).all()
    finally:
        for client in clients:
            client.close()
    tools.until(lambda: yard.snapshot()["clients"] <= 2, what="the clients' end")
    with yard.client() as client:
        assert (client.infer("neg", X) == -1).all()


def test_connections_that_never_greet_are_closed_when_they_are_too_many(
    yard: Alone, good: Client, tools: Any
) -> None:
    """libzmq aborts the process when it can't accept for want of a descriptor: it must not come to that."""
    idle = []
    try:
        for number in range(2 * DESCRIPTORS):
            idle.append(socket.socket(socket.AF_UNIX))
            idle[-1].connect(f"{yard.url.removeprefix('ipc://')}/clients")
            if number % 20 == 0:
                yard.snapshot()  # it has looked around: with so few descriptors a burst would be too quick
        tools.until(
            lambda: yard.snapshot()["refused"].get("never_greeted", 0) > DESCRIPTORS, what="their end"
        )
        with yard.client() as client:
            assert (client.infer("neg", X) == -1).all()
    finally:
        for peer in idle:
            peer.close()
    assert yard.broker.poll() is None


def test_peers_whose_connections_end_before_they_are_read_are_not_remembered(
    yard: Alone, good: Client, tools: Any
) -> None:
    """Their end has been reported by then, and nothing else would ever tell of it."""
    endpoint = Endpoint.parse(yard.url)
    register = m.Register(1, ["cpu"], "", secret.find(endpoint))
    greetings = ((endpoint.clients, m.Hello(None, "gone")), (endpoint.workers, register))
    with zmq.Context() as context:
        for number in range(600):
            for address, greeting in greetings:
                with context.socket(zmq.DEALER) as peer:
                    peer.setsockopt(zmq.LINGER, 1000)
                    peer.connect(address)
                    peer.send(codec.encode([greeting]))
            if number % 10 == 0:
                yard.snapshot()  # it keeps pace: it has few descriptors
    tools.until(lambda: yard.snapshot()["clients"] == 1, what="only the good client")
    tools.until(lambda: yard.snapshot()["workers"] == 1, what="only the real worker")


POOR_CLIENT = """
import os, resource, sys
import batchyard, numpy as np
X = np.ones((1, 4), np.float32)
ask = {
    "infer": lambda client: client.infer("neg", X),
    "submit": lambda client: client.submit("neg", X).result(20),
    "stream": lambda client: list(client.stream("neg", X)),
}[sys.argv[2]]
rich = batchyard.Client(sys.argv[1])
rich.infer("neg", X)
open_now = max(map(int, os.listdir("/proc/self/fd")))
for more in range(3, 40, 4):  # wherever the end is met, it is an error and not the process's end
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + more, 4096))
    poor = []
    try:
        while True:
            poor.append(batchyard.Client(sys.argv[1]))
            ask(poor[-1])
    except batchyard.Overloaded as error:
        assert "may open no more descriptors" in str(error), error
    assert (rich.infer("neg", X) == -1).all()
    for client in poor:
        client.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
poor[-1] = batchyard.Client(sys.argv[1])
assert (poor[-1].infer("neg", X) == -1).all()
print("in order")
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("verb", ["infer", "submit", "stream"])
def test_a_client_process_short_of_descriptors_gets_a_typed_error_and_lives_on(yard: Alone, verb: str) -> None:
    done = run(POOR_CLIENT, yard.url, verb)
    assert done.stdout == "in order\n", done.stderr


# ---- shared memory ------------------------------------------------------------------------------

FULL_MEMORY = """
import errno, os, resource, signal, sys
import batchyard, numpy as np
how, segment = sys.argv[2:]
if how == "no file may be so large":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
else:
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    setattr(os, how, full)
try:
    with batchyard.Client(sys.argv[1], segment=segment) as client:
        client.infer("neg", np.ones((1, 4), np.float32))
except batchyard.ArenaExhausted as error:
    print(error)
"""


@pytest.mark.parametrize("segment", ["memfd", "named"])
@pytest.mark.parametrize("how", ["no file may be so large", "ftruncate", "posix_fallocate"])
def test_a_client_for_whom_the_system_has_no_shared_memory_is_told_so(
    yard: Alone, how: str, segment: str
) -> None:
    done = run(FULL_MEMORY, yard.url, how, segment)
    assert done.returncode == 0, done.stderr
    assert "memory" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("limit", ["RLIMIT_FSIZE", "RLIMIT_NOFILE"])
def test_a_worker_that_gets_no_memory_to_lend_sends_its_answer(onnx_models: Any, tools: Any, limit: str) -> None:
    """Nor a descriptor. No slot was kept for an answer whose size nobody foresaw."""
    large = np.ones((1, 1 << 19), np.float32)
    model = onnx_models.unary("free_limits", "Neg", ["n", "width"])
    with serve({"free": model}, threads=1) as yard, yard.client() as client:
        assert (client.infer("free", X) == -1).all()
        (worker,) = tools.worker_pids(client, "free")
        kind = getattr(resource, limit)
        taken = {int(name) for name in os.listdir(f"/proc/{worker}/fd")}
        most = min(set(range(len(taken) + 1)) - taken) if limit == "RLIMIT_NOFILE" else 0
        resource.prlimit(worker, kind, (most, resource.prlimit(worker, kind)[1]))
        assert (client.infer("free", large, timeout=20) == -1).all()
        assert tools.worker_pids(client, "free") == [worker]


# ---- places that are taken ----------------------------------------------------------------------


def test_a_second_broker_says_who_holds_the_endpoint(yard: Alone, neg_model: Path) -> None:
    done = run(
        "import sys; from batchyard.broker.__main__ import main; sys.exit(main())",
        *("--model", f"neg={neg_model}", "--url", yard.url),
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"broker: a yard already runs at {yard.url} (process {yard.broker.pid}): stop it")


@pytest.mark.parametrize("taken", [0, 1, 2], ids=["clients", "workers", "admin"])
def test_a_broker_whose_port_is_taken_says_which_and_what_to_do(
    neg_model: Path, tools: Any, taken: int
) -> None:
    port = tools.free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port + taken))
        holder.listen()
        done = run(
            "import sys; from batchyard.broker.__main__ import main; sys.exit(main())",
            *("--model", f"neg={neg_model}", "--url", f"tcp://127.0.0.1:{port}", "--open-to-this-machine"),
        )
    assert done.returncode == 1
    expected = f"broker: tcp://127.0.0.1:{port + taken} is in use by another process: stop it, or choose another --url\n"
    assert done.stderr == expected


# ---- who takes and does not give ----------------------------------------------------------------


def test_an_admin_that_asks_without_end_and_never_reads_costs_the_others_nothing(
    yard: Alone, good: Client, tools: Any
) -> None:
    question = codec.encode([m.Snapshot()])
    before = yard.rss_bytes()
    with zmq.Context() as context, context.socket(zmq.DEALER) as reader:
        reader.setsockopt(zmq.LINGER, 0)
        reader.setsockopt(zmq.RCVHWM, 1)
        reader.setsockopt(zmq.SNDTIMEO, 200)
        reader.connect(Endpoint.parse(yard.url).admin)
        try:
            for _ in range(20_000):
                reader.send(question)
        except zmq.Again:
            pass  # the broker answers at its own pace: the queue in front of it is full, and stays here
        tools.until(lambda: yard.snapshot(20)["refused"].get("admin_unreachable", 0), 20)
        assert (good.infer("neg", X, timeout=5) == -1).all()
        assert yard.rss_bytes() < before + RSS_GROWTH_MAX_BYTES
    assert yard.snapshot()["workers"] == 1


def test_an_operator_that_asks_thousands_of_things_at_once_is_refused_and_delays_nobody(
    yard: Alone, good: Client
) -> None:
    """One message of 4,096 questions once kept everybody waiting for 0.15 s, and a look reads four."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as operator:
        operator.setsockopt(zmq.LINGER, 0)
        operator.connect(Endpoint.parse(yard.url).admin)
        operator.send(codec.encode([m.Snapshot()] * 4096))
        assert operator.poll(5000)
        (answer,) = codec.broker_to_admin.decode(operator.recv())
        assert isinstance(answer, m.Refused)
        assert "at most" in answer.text
