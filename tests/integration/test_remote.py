"""Clients without an arena in common, and the other ways in: tcp with frames, named segments, CURVE."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from batchyard import (
    BatchyardError,
    BrokerLost,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    Operator,
    Overloaded,
    SegmentRefused,
    Unauthorized,
    UnknownModel,
    serve,
)
from batchyard.client import Yard
from batchyard.transport import codec, secret
from batchyard.transport import messages as m
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.errors import Code
from batchyard.transport.keys import KeyFolder
from batchyard.transport.tensors import Tensor, TensorSpec

X = np.ones((1, 4), np.float32)
WIDE = 100_000


@pytest.fixture(scope="module")
def paths(onnx_models: Any, slow_model: Path, neg_model: Path) -> dict[str, Path]:
    return {
        "neg": neg_model,
        "slow": slow_model,
        "wide": onnx_models.unary("wide_remote", "Neg", ["n", WIDE]),
        "free": onnx_models.unary("free_remote", "Neg", ["n", "width"]),
        "pair": onnx_models.save(
            "pair_remote",
            [("Sub", ["a", "b"], ["d"], {}), ("Add", ["a", "b"], ["s"], {})],
            [("a", 1, ["n", 4]), ("b", 1, ["n", 4])],
            [("d", 1, ["n", 4]), ("s", 1, ["n", 4])],
        ),
    }


@pytest.fixture(scope="module")
def remote(paths: dict[str, Path], tools: Any) -> Iterator[Yard]:
    """A yard that listens on loopback tcp, for every user of this machine."""
    url = f"tcp://127.0.0.1:{tools.free_port()}"
    with serve(paths, workers=1, max_batch=8, threads=1, url=url, open_to_this_machine=True) as made:
        yield made


def nothing_is_held(yard: Yard) -> bool:
    snapshot = yard.snapshot()
    return snapshot["inline_used_bytes"] == 0 and snapshot["rows_under_way"] == 0


def ask_everything(client: Client) -> None:
    """One of everything, and every answer right."""
    np.testing.assert_array_equal(client.infer("neg", X), -X)
    wide = np.arange(3 * WIDE, dtype=np.float32).reshape(3, WIDE)
    np.testing.assert_array_equal(client.infer("wide", wide), -wide)
    many = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    np.testing.assert_array_equal(client.infer("neg", many), -many)
    for shape in ((1, 3), (20, 5), (2, 0)):
        x = np.ones(shape, np.float32)
        np.testing.assert_array_equal(client.infer("free", x), -x)
    answer = client.infer("pair", {"a": X, "b": X})
    assert isinstance(answer, dict)
    assert (answer["d"] == 0).all()
    assert (answer["s"] == 2).all()
    futures = [client.submit("neg", np.full((1, 4), n, np.float32), priority=n % 4) for n in range(100)]
    assert [float(future.result(20)[0, 0]) for future in futures] == [-float(n) for n in range(100)]
    array = client.empty((2, 4))
    array[:] = 7
    assert (client.infer("neg", array) == -7).all()
    with pytest.raises(UnknownModel):
        client.infer("nothing", X)
    with pytest.raises(InvalidRequest):
        client.infer("neg", np.ones((1, 4)))


# ---- tcp ----------------------------------------------------------------------------------------


def test_the_same_client_class_works_over_tcp(remote: Yard, tools: Any) -> None:
    with remote.client() as client:
        ask_everything(client)
        assert client.bytes_copied == 0  # nothing is shared
    tools.until(lambda: nothing_is_held(remote), what="slots of frames")
    assert remote.snapshot()["inline_copied_bytes"] > 0


def test_asyncio_and_threads_work_over_tcp(remote: Yard, tools: Any) -> None:
    async def main() -> None:
        async with remote.async_client() as client:
            answers = await asyncio.gather(
                *(client.infer("neg", np.full((2, 4), n, np.float32)) for n in range(60))
            )
            assert [float(y[0, 0]) for y in answers] == [-float(n) for n in range(60)]

    with remote.client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        in_asyncio = pool.submit(lambda: asyncio.run(main()))
        calls = [pool.submit(client.infer, "neg", np.full((1, 4), n, np.float32)) for n in range(60)]
        assert [float(call.result(20)[0, 0]) for call in calls] == [-float(n) for n in range(60)]
        in_asyncio.result(20)
    tools.until(lambda: nothing_is_held(remote), what="slots of frames")


def test_timeouts_and_cancellation_over_tcp_give_every_slot_back(remote: Yard, tools: Any) -> None:
    with remote.client() as client:
        client.wait_ready("slow")
        x = np.ones((8, 512), np.float32)
        futures = [client.submit("slow", x) for _ in range(30)]
        with pytest.raises((DeadlineExceeded, Overloaded)):  # at its time, or at once if that is foreseen
            client.infer("slow", x, timeout=0.03, priority=3)
        for future in futures[3:]:
            future.cancel()
        assert all((future.result(20) == x).all() for future in futures[:3])
        tools.until(lambda: nothing_is_held(remote), what="slots of frames")


DOOMED = """
import sys, numpy as np, batchyard
client = batchyard.Client(sys.argv[1])
client.wait_ready("slow")
futures = [client.submit("slow", np.ones((8, 512), np.float32)) for _ in range(100)]
futures[0].result(20)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_remote_client_killed_with_requests_under_way_leaves_no_slot(remote: Yard, tools: Any) -> None:
    """Also those that a worker is running when it dies: nobody is left to be told that they are free."""
    process = subprocess.Popen(
        [sys.executable, "-c", DOOMED, remote.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert remote.snapshot()["inline_used_bytes"] > 0
    process.kill()
    process.communicate()
    tools.until(lambda: nothing_is_held(remote), what="slots of frames")
    with remote.client() as client:
        assert (client.infer("neg", X) == -1).all()


def test_a_remote_peer_that_asks_nonsense_and_never_reads_does_not_end_the_broker(
    remote: Yard, tools: Any
) -> None:
    """Its answers go out one by one; it is dropped in the middle of a message of its own."""
    pids = [process.pid for process in remote.processes]
    clients = remote.snapshot()["clients"]
    endpoint = Endpoint.parse(remote.url)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.setsockopt(zmq.RCVBUF, 4096)
        socket.connect(endpoint.clients)
        socket.send(codec.encode([m.Hello(None, "deaf")]))
        assert socket.poll(5000)
        nonsense = [
            m.Submit(number, "nothing", 2, 0, [Tensor(1, [1, 4], 0, 1)], []) for number in range(4096)
        ]
        for _ in range(30):
            socket.send_multipart([codec.encode(nonsense), X.tobytes()])
        with remote.client() as client:
            assert (client.infer("neg", X) == -1).all()
        # What was refused to it fills every buffer on the way, and then the broker's own queue.
        tools.until(lambda: "not_reading" in remote.snapshot(20)["refused"], 30, "the peer to be dropped")
        assert [process.pid for process in remote.processes] == pids
    tools.until(lambda: remote.snapshot()["clients"] == clients)


def test_a_number_that_comes_again_while_a_worker_holds_its_slots_gets_no_others(
    remote: Yard, tools: Any
) -> None:
    endpoint = Endpoint.parse(remote.url)
    x = np.ones((8, 512), np.float32).tobytes()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint.clients)
        socket.send(codec.encode([m.Hello(None, "again")]))
        for _ in range(20):
            submit = m.Submit(1, "slow", 2, 0, [Tensor(1, [8, 512], 0, 1)], [])
            socket.send_multipart([codec.encode([submit]), x])
            socket.send(codec.encode([m.Cancel([1])]))
        with remote.client() as client:
            for number in range(10):
                value = np.full((8, 512), number, np.float32)
                np.testing.assert_array_equal(client.infer("slow", value), value)
    tools.until(lambda: nothing_is_held(remote), what="slots of frames")


def test_a_worker_over_tcp_that_claims_another_process_cannot_have_it_killed(
    remote: Yard, tools: Any
) -> None:
    """Over tcp the kernel names no process: the pid in the message is a claim, and only that."""
    victim = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        endpoint = Endpoint.parse(remote.url)
        spec_in, spec_out = [TensorSpec("x", 1, ["n", 4])], [TensorSpec("y", 1, ["n", 4])]
        with remote.client() as client, zmq.Context() as context:
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(endpoint.workers)
            socket.send(codec.encode([m.Register(victim.pid, ["cpu"], "", secret.find(endpoint))]))
            socket.send(codec.encode([m.Loaded("neg", 1, spec_in, spec_out, True, "", 8, "cpu", "", {})]))
            tools.until(lambda: len(tools.worker_pids(client, "neg")) == 2)
            futures = []

            def is_lent_a_batch() -> bool:
                futures.extend(client.submit("neg", X, timeout=60) for _ in range(50))
                if not socket.poll(50):
                    return False
                messages = codec.broker_to_worker.decode(socket.recv())
                return any(isinstance(message, m.LentBatch) for message in messages)

            tools.until(is_lent_a_batch)
            socket.close()  # with a batch in its hands
            assert all((future.result(60) == -1).all() for future in futures)
            tools.until(lambda: len(tools.worker_pids(client, "neg")) == 1)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.communicate()


# ---- named segments -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(paths: dict[str, Path]) -> Iterator[Yard]:
    """A yard that takes named segments, too."""
    models = [part for name, path in paths.items() for part in ("--model", f"{name}={path}")]
    with Yard([*models, "--max-batch", "8", "--named-segments"], 1, 1) as made:
        made.await_models(list(paths), 60)
        yield made


def test_a_client_that_shrinks_its_named_segment_fails_alone(local: Yard, tools: Any) -> None:
    with local.client() as good, local.client(segment="named") as client:
        assert (client.infer("neg", X) == -1).all()
        before = tools.worker_pids(good, "neg")
        name = client._sessions.current.memory.segment.handle.name  # type: ignore[union-attr]
        os.truncate(f"/dev/shm/{name}", 1 << 20)  # its own slots are in the rest
        for _ in range(3):
            with pytest.raises(InvalidRequest, match="has shrunk its segment"):
                client.infer("neg", X)
            assert (good.infer("neg", X) == -1).all()
        assert tools.worker_pids(good, "neg") == before


def test_a_memfd_over_tcp_is_refused_with_the_way_that_works(remote: Yard) -> None:
    with remote.client(segment="memfd") as client, pytest.raises(SegmentRefused, match='segment="frames"'):
        client.infer("neg", X)


def test_named_segments_work_over_ipc_and_their_names_go_with_the_client(local: Yard, tools: Any) -> None:
    baseline = local.snapshot()["arenas"]
    with local.client(segment="named") as client:
        ask_everything(client)
        assert client.bytes_copied > 0
        name = client._sessions.current.memory.segment.handle.name  # type: ignore[union-attr]
        assert Path("/dev/shm", name).exists()
        array = client.empty((1, WIDE))
        array[:] = 1
        assert client.request("wide", array).receipt.copied_bytes == 0
        del array
    assert not Path("/dev/shm", name).exists()
    tools.until(lambda: local.snapshot()["arenas"] == baseline)


def test_frames_work_over_ipc_too(local: Yard, tools: Any) -> None:
    with local.client(segment="frames") as client:
        ask_everything(client)
    tools.until(lambda: nothing_is_held(local), what="slots of frames")


def test_clients_with_and_without_an_arena_share_batches(local: Yard) -> None:
    with (
        local.client() as shared,
        local.client(segment="named") as named,
        local.client(segment="frames") as framed,
    ):
        clients = [shared, named, framed]
        futures = [clients[n % 3].submit("neg", np.full((1, 4), n, np.float32)) for n in range(300)]
        assert [float(future.result(20)[0, 0]) for future in futures] == [-float(n) for n in range(300)]


# ---- who may be what ----------------------------------------------------------------------------


def ask_in_vain(address: str, message: Any, decoder: Any) -> str:
    """What a stranger is told who can connect and knows no more than the protocol."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.send(codec.encode([message]))
        assert socket.poll(30_000)
        (refused,) = decoder.decode(socket.recv())
    assert isinstance(refused, m.Refused)
    assert refused.code == Code.UNAUTHORIZED
    return refused.text


def test_a_stranger_on_this_machine_is_neither_worker_nor_operator(remote: Yard) -> None:
    endpoint = Endpoint.parse(remote.url)
    assert "no worker" in ask_in_vain(endpoint.workers, m.Register(1, ["cpu"]), codec.broker_to_worker)
    for message in (m.Snapshot(), m.UnloadModel("neg"), m.Snapshot("sesam")):
        assert "no operator" in ask_in_vain(endpoint.admin, message, codec.broker_to_admin)
    assert Operator(remote.url).snapshot()["workers"] == 1, "the yard's user finds its secret"
    with pytest.raises(Unauthorized):
        Operator(remote.url, secret="sesam").snapshot()
    with Client(remote.url) as client:
        assert (client.infer("neg", X) == -1).all()


def refusal(match: str) -> Any:
    """Without keys, a client is not told whether it is refused or its broker dies at every greeting."""
    return pytest.raises((Unauthorized, BrokerLost), match=match)


def test_an_embedded_yard_on_tcp_admits_its_own_clients_alone(
    neg_model: Path, tools: Any
) -> None:
    with serve(neg_model, threads=1, url=f"tcp://127.0.0.1:{tools.free_port()}") as yard:
        keys = yard.keys
        assert keys is not None
        with yard.client() as client, Client(yard.url, keys=keys) as other:
            assert (client.infer("neg", X) == -1).all()
            assert (other.infer("neg", X) == -1).all()
        with Client(yard.url, connect_timeout=2) as keyless, refusal(match="keys="):
            keyless.infer("neg", X)
        tools.kill(yard.processes[0].pid)

        def is_back() -> bool:
            try:
                return bool(yard.snapshot(1)["workers"])
            except BatchyardError:
                return False

        tools.until(is_back, 60)
        with yard.client() as client:
            client.wait_ready("neg", 30)
            assert (client.infer("neg", X) == -1).all()
    assert not keys.exists()


# ---- CURVE --------------------------------------------------------------------------------------


def test_with_keys_only_admitted_clients_come_in(neg_model: Path, tmp_path: Path, tools: Any) -> None:
    keys = KeyFolder.create(tmp_path / "yard")
    stranger = KeyFolder.create(tmp_path / "stranger")
    for name in ("server.key",):
        shutil.copy(keys.path / name, stranger.path / name)
    url = f"tcp://127.0.0.1:{tools.free_port()}"
    yard = Yard(["--model", f"neg={neg_model}"], 1, 1, url=url, keys=keys.path)
    try:
        with Client(url, keys=keys.path) as client:
            client.wait_ready("neg", 30)
            assert (client.infer("neg", X) == -1).all()
            assert (client.submit("neg", X).result(20) == -1).all()
            with Client(url, keys=stranger.path) as refused, pytest.raises(Unauthorized, match="authorized"):
                refused.infer("neg", X)
            with Client(url, connect_timeout=2) as keyless, refusal(match="keys="):
                keyless.infer("neg", X)

            async def main() -> None:
                async with yard.async_client() as admitted:
                    assert ((await admitted.infer("neg", X)) == -1).all()

            asyncio.run(main())
            assert (client.infer("neg", X) == -1).all()
    finally:
        yard.close()


def test_a_worker_whose_key_is_not_admitted_serves_nothing(
    neg_model: Path, tmp_path: Path, tools: Any
) -> None:
    keys = KeyFolder.create(tmp_path / "yard")
    stranger = KeyFolder.create(tmp_path / "stranger")
    shutil.copy(keys.path / "server.key", stranger.path / "server.key")
    url = f"tcp://127.0.0.1:{tools.free_port()}"
    yard = Yard(["--model", f"neg={neg_model}"], 1, 1, url=url, keys=keys.path)
    command = [
        sys.executable,
        "-m",
        "batchyard.gpuworker",
        "--url",
        url,
        "--keys",
        str(stranger.path),
        "--lifeline",
    ]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        with yard.client() as client:
            client.wait_ready("neg", 30)
            tools.until(lambda: yard.snapshot()["workers"] == 1)
            for _ in range(20):
                assert (client.infer("neg", X) == -1).all()
            assert yard.snapshot()["workers"] == 1
    finally:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait(20)
        yard.close()


@pytest.mark.skipif(os.cpu_count() is None, reason="no machine to speak of")
def test_a_yard_that_others_could_reach_does_not_start_without_keys(neg_model: Path, tools: Any) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "batchyard.broker",
            "--model",
            f"neg={neg_model}",
            "--url",
            f"tcp://0.0.0.0:{tools.free_port()}",
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "without CURVE keys" in done.stderr
