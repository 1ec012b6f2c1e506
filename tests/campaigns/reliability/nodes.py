"""Three nodes on three loopback addresses, each a `batchyard up` with a gateway, and a real Envoy before them.

The model sleeps: what it takes is no processor's time, so three nodes of one machine are three times as quick.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from batchyard.cli.fleet import envoy
from batchyard.cli.fleet.nodes import Fleet
from batchyard.cli.fleet.nodes import Node as Address
from batchyard.cli.fleet.render import render
from batchyard.tests.ports import free_port

MODEL = "nap"
NAP_S = 0.04
WITHIN_S = 60.0
TOKEN = "a-token-of-this-campaign"
CODE = f"""
import time, batchyard

@batchyard.model(inputs={{"x": "float32[n, width]"}}, outputs={{"y": "float32[n]"}})
def nap(batch):
    time.sleep({NAP_S})
    return {{"y": batch["x"][:, 0]}}

@batchyard.model(inputs={{"x": "float32[n, width]"}}, outputs={{"y": "float32[n]"}})
def quick(batch):
    return {{"y": batch["x"][:, 0]}}
"""
CONFIG = "".join(
    f'[models.{name}]\npython = "models.py:{name}"\nmax_batch = 1\nwarmup = false\n' for name in (MODEL, "quick")
)


class Node:
    """One yard with its gateway, in a process group of its own. `within`: a command that runs another one, such
    as `ip netns exec NAME`."""

    def __init__(
        self,
        folder: Path,
        host: str,
        port: int,
        config: str = CONFIG,
        code: str = CODE,
        within: Sequence[str] = (),
        token: str = TOKEN,
    ) -> None:
        self.address = Address(host, port)
        self.token = token
        self._folder = folder / host
        self._folder.mkdir()
        (self._folder / "models.py").write_text(code)
        (self._folder / "batchyard.toml").write_text(config)
        self._within = within
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*self._within, sys.executable, "-m", "batchyard.cli.main", "up", "--threads", "1"]
        command += ["--url", f"ipc://{self._folder}/yard", "--gateway", str(self.address.port)]
        command += ["--gateway-host", self.address.host]
        environment = {**os.environ, "BATCHYARD_GATEWAY_TOKEN": self.token}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Every process of it at once, without a word."""
        process = self._running
        pids = [process.pid]
        for pid in pids:  # it grows: children of children
            children = Path(f"/proc/{pid}/task/{pid}/children")
            pids += map(int, children.read_text().split()) if children.exists() else []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()

    def stop(self) -> None:
        """Ask it to end, and do not wait."""
        self._running.terminate()

    def wait(self) -> None:
        """Until it has ended. Raises where it did not in order."""
        status = self._running.wait(WITHIN_S)
        if status:
            raise RuntimeError(f"{self.address} ended with {status}: {self.log()}")

    @property
    def ended(self) -> bool:
        return self._running.poll() is not None

    def restart(self) -> None:
        """Stop it in order, and start it again."""
        self.stop()
        self.wait()
        self.start()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def log(self) -> str:
        return (self._folder / "log").read_text()[-1000:]

    def ready(self) -> bool:
        return self.ask("/v2/health/ready")[0] == 200

    def count(self, model: str = MODEL) -> int:
        """Requests that it has answered since it started; 0 where it does not answer."""
        status, body = self.ask(f"/v2/models/{model}/stats")
        return int(body["model_stats"][0]["inference_stats"]["success"]["count"]) if status == 200 else 0

    def ask(self, path: str) -> tuple[int, Any]:
        """(status, JSON); 0 where nobody listens."""
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}
        finally:
            connection.close()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
            try:
                self._process.wait(WITHIN_S)
            except subprocess.TimeoutExpired:
                self.kill()


class Front:
    """Envoy. `http` and `grpc`: the fleet's addresses for a client."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port
        self.http = f"http://127.0.0.1:{port}"
        self.grpc = f"grpc://127.0.0.1:{port + 1}"

    def healthy(self) -> int:
        """Nodes that both clusters may ask."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port + 2, timeout=5)
        try:
            connection.request("GET", "/clusters?format=json")
            body = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return 0
        finally:
            connection.close()
        counts = []
        for cluster in body["cluster_statuses"]:
            statuses = [host["health_status"] for host in cluster.get("host_statuses", [])]
            counts.append(sum(each.get("eds_health_status") == "HEALTHY" and len(each) == 1 for each in statuses))
        return min(counts)


@contextmanager
def front(
    fleet: Fleet, changed: Callable[[str], str] = lambda text: text, **how: Any
) -> Iterator[Front]:
    """An Envoy before these nodes, once it may ask all of them. `how`: more for `render`; `changed`: its text."""
    port = free_port(3, "0.0.0.0")
    for node in fleet.all:
        fleet.tokens.setdefault(node, TOKEN)
    with envoy.written(changed(render(fleet, "127.0.0.1", port, port + 1, port + 2, **how))) as file:
        process = subprocess.Popen(envoy.command(file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        made = Front(process, port)
        wanted = len(fleet.nodes) + len(fleet.shares) if fleet.mirror is None else 1
        try:
            until(lambda: made.healthy() >= wanted, "an Envoy that may ask every node")
            yield made
        finally:
            process.terminate()
            process.wait(WITHIN_S)


@contextmanager
def nodes(folder: Path, count: int = 3) -> Iterator[list[Node]]:
    """So many, ready."""
    port = free_port(3, "0.0.0.0")
    with running([Node(folder, f"127.0.0.{number}", port) for number in range(2, 2 + count)]) as made:
        yield made


@contextmanager
def running(made: list[Node]) -> Iterator[list[Node]]:
    """These, ready."""
    with ExitStack() as stack:
        for node in made:
            stack.callback(node.close)
            node.start()
        for node in made:
            until(node.ready, f"{node.address} being ready", node)
        yield made


def until(condition: Callable[[], Any], what: str, node: Node | None = None) -> float:
    """How long it took. Raises RuntimeError where it never came, with what the node says."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > WITHIN_S:
            raise RuntimeError(f"not within {WITHIN_S:g} s: {what}; {node.log() if node else ''}")
        time.sleep(0.02)
    return time.monotonic() - began_s
