"""Rows mapped through each node's own yard, by Dask: `python -m batchyard.examples.bulk.rows_dask --help`.

One Dask worker and one yard on every node. A worker asks the yard beside it, so tensors stay in that
machine's shared memory, and only a partition's rows and results travel. Dask runs a lost worker's partitions
again. Where the worker is there and its yard is not, Dask knows nothing of it: `run` gives the partition to
the workers that have not failed it yet, and when none is left, it ends with what each of them said.

On a cluster, start `batchyard up` and `dask worker SCHEDULER` on every node, and pass --scheduler. Without,
this starts some yards and as many workers on this machine, with a model that sleeps: it shows how the parts
fit together, and what one node needs for the same job.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ...client import Client, Yard, serve
from ...transport.errors import BatchyardError, BrokerLost, DeadlineExceeded, Overloaded, WorkerLost

Array = np.ndarray[Any, Any]
ROW_FLOATS = 64
MODEL = "nap"
CODE = """
import time, batchyard

@batchyard.model(inputs={"x": "float32[n, width]"}, outputs={"y": "float32[n]"})
def nap(batch):
    time.sleep(0.05)
    return {"y": batch["x"].sum(1)}
"""
URLS_VARIABLE = "BATCHYARD_BULK_URLS"  # of this machine's yards, by the number of the worker
_clients: dict[str, Client] = {}  # of this process: one for all of its partitions


def through_yard(rows: Array, options: argparse.Namespace) -> tuple[Array | None, str, str]:
    """(a partition's results by the yard beside this worker, or None; the worker's address; why None).
    Called by Dask, on a worker. Raises a model's own errors: it would fail on every node."""
    from distributed import get_worker

    worker = get_worker()
    url = _local_url(worker.name)
    client = _clients.get(url or "")
    if client is None:
        client = _clients[url or ""] = Client(url)
    size = options.rows_per_request
    requests = (rows[at : at + size] for at in range(0, len(rows), size))
    try:
        answers = client.map(options.model, requests, window=16, timeout=options.timeout)
        # Copied: slots are free for the next.
        return np.concatenate([np.array(answer) for answer in answers]), worker.address, ""
    except (BrokerLost, Overloaded, DeadlineExceeded, WorkerLost) as error:
        return None, worker.address, f"{type(error).__name__}: {error}"


def _local_url(worker: Any) -> str | None:
    """On a node of its own: the node's yard. In the try: the yard of this worker's number."""
    urls = os.environ.get(URLS_VARIABLE)
    if not urls:
        return None
    each = urls.split(" ")
    return each[int(worker) % len(each)]


def run(
    dask: Any, partitions: list[Array], options: argparse.Namespace, lose: Callable[[Any], None] | None = None
) -> tuple[Array, float]:
    """(results in order, seconds). `lose`: called when a quarter is done.

    Raises BatchyardError for a partition that no worker's yard could do."""
    from distributed import as_completed

    began_s = time.monotonic()
    results: list[Any] = [None] * len(partitions)  # fetched as they come: a node lost later takes none along
    failed: list[dict[str, str]] = [{} for _ in partitions]  # why, by the worker's address
    numbers = {}  # of partitions, by the key of their future

    def start(number: int, workers: list[str] | None = None) -> Any:
        # Others, too: these may all be gone before it runs, and then it would wait for ever.
        where = {} if workers is None else {"workers": workers, "allow_other_workers": True}
        future = dask.submit(through_yard, partitions[number], options, pure=False, **where)
        numbers[future.key] = number
        return future

    running = as_completed([start(number) for number in range(len(partitions))])
    done = 0
    for future in running:
        number = numbers.pop(future.key)
        result, worker, why = future.result()
        if result is None:
            failed[number][worker] = why
            left = [each for each in dask.nthreads() if each not in failed[number]]
            if not left:
                each = "; ".join(f"{worker}: {why}" for worker, why in failed[number].items())
                raise BatchyardError(f"no node is left that could do partition {number}: {each}")
            running.add(start(number, left))
            continue
        results[number] = result
        done += 1
        print(f"\r{done} of {len(partitions)} partitions", end="", file=sys.stderr, flush=True)
        if lose is not None and done == len(partitions) // 4:
            lose(dask)
    print(file=sys.stderr)
    return np.concatenate(results), time.monotonic() - began_s


def main(argv: list[str] | None = None) -> int:
    """Return 0 if every row came back, right."""
    options = _parser().parse_args(argv)
    rows = np.random.default_rng(1).random((options.rows, ROW_FLOATS), np.float32)
    partitions = np.array_split(rows, options.partitions)
    if options.scheduler:
        from distributed import Client as Dask

        with Dask(options.scheduler) as dask:
            results, seconds = run(dask, partitions, options)
        print(f"{len(results):,} rows in {seconds:.1f} s")
        return 0
    took = {}
    for nodes, lose_one in ((1, False), (options.nodes, False), (options.nodes, True)):
        results, seconds = _tried(nodes, partitions, options, lose_one)
        if not np.allclose(results, rows.sum(1), rtol=1e-4):
            print("wrong results", file=sys.stderr)
            return 1
        took[nodes, lose_one] = seconds
        what = f"{nodes} node{'s' * (nodes > 1)}{', one of them lost' if lose_one else ''}"
        first_s = took[1, False]
        times = f"{first_s / seconds:.2f} times as fast as one node"
        print(f"{what}: {len(rows):,} rows in {seconds:.1f} s, {times}", flush=True)
    return 0


def _tried(
    nodes: int, partitions: list[Array], options: argparse.Namespace, lose_one: bool
) -> tuple[Array, float]:
    """The job on so many yards and workers of this machine."""
    from distributed import Client as Dask
    from distributed import LocalCluster

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bulk-"))
        (Path(folder) / "models.py").write_text(CODE)
        yards: list[Yard] = [
            stack.enter_context(serve({MODEL: f"{folder}/models.py:nap"}, max_batch=8, threads=1))
            for _ in range(nodes)
        ]
        os.environ[URLS_VARIABLE] = " ".join(yard.url for yard in yards)
        cluster = stack.enter_context(
            LocalCluster(n_workers=nodes, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        )

        def lose(dask: Any) -> None:
            """The first node: its yard, and its worker's process, which Dask starts again without a yard."""
            pids = dict(dask.run(_named).values())
            yards[0].close()
            os.kill(pids[0], signal.SIGKILL)
            print("\nthe first node is lost", file=sys.stderr)

        return run(stack.enter_context(Dask(cluster)), partitions, options, lose if lose_one else None)


def _named(dask_worker: Any) -> tuple[int, int]:
    """(the worker's number, its process)."""
    return int(dask_worker.name), os.getpid()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rows_dask", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--scheduler", help="a Dask scheduler whose workers lie beside a yard each (default: a try here)")
    add("--model", default=MODEL, help="the yards' model (%(default)s)")
    add("--rows", type=int, default=9600, help="(%(default)s)")
    add("--partitions", type=int, default=24, help="pieces that run again as a whole (%(default)s)")
    add("--rows-per-request", type=int, default=8, help="(%(default)s)")
    patience = "seconds that a request may take, and a lost yard may need to be there again (%(default)g)"
    add("--timeout", type=float, default=30.0, help=patience)
    add("--nodes", type=int, default=3, help="of the try (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
