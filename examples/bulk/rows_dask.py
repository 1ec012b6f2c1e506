"""Rows mapped through each node's own yard, by Dask: `python -m batchyard.examples.bulk.rows_dask --help`.

One Dask worker and one yard on every node. A worker asks the yard beside it, so tensors stay in that
machine's shared memory, and only a partition's rows and results travel. A lost node's partitions run again on
the others, and so do those of a worker that has lost its yard.

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
from ...transport.errors import BrokerLost

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


def through_yard(rows: Array, model: str, rows_per_request: int) -> Array:
    """A partition's rows through the yard of the machine that this runs on. Called by Dask, on a worker."""
    url = _local_url()
    client = _clients.get(url or "")
    if client is None:
        client = _clients[url or ""] = Client(url)
    requests = (rows[at : at + rows_per_request] for at in range(0, len(rows), rows_per_request))
    try:
        answers = client.map(model, requests, window=16, timeout=300.0)
        return np.concatenate([np.array(answer) for answer in answers])  # copies: slots are free for the next
    except BrokerLost:  # for longer than a yard takes to start its broker again
        from distributed import Reschedule

        raise Reschedule from None  # no error of the partition's: it is for a node that has a yard


def _local_url() -> str | None:
    """On a node of its own: the node's yard. In the try: the yard of this worker's number."""
    urls = os.environ.get(URLS_VARIABLE)
    if not urls:
        return None
    from distributed import get_worker

    each = urls.split(" ")
    return each[int(get_worker().name) % len(each)]


def run(
    dask: Any, partitions: list[Array], options: argparse.Namespace, lose: Callable[[Any], None] | None = None
) -> tuple[Array, float]:
    """(results in order, seconds). `lose`: called when a quarter is done."""
    from distributed import as_completed

    began_s = time.monotonic()
    futures = [
        # retries: for errors; Dask runs a lost worker's partitions again by itself.
        dask.submit(through_yard, rows, options.model, options.rows_per_request, retries=2, pure=False)
        for rows in partitions
    ]
    for done, _ in enumerate(as_completed(futures), 1):
        print(f"\r{done} of {len(partitions)} partitions", end="", file=sys.stderr, flush=True)
        if lose is not None and done == len(partitions) // 4:
            lose(dask)
    print(file=sys.stderr)
    return np.concatenate(dask.gather(futures)), time.monotonic() - began_s


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
    add("--nodes", type=int, default=3, help="of the try (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
