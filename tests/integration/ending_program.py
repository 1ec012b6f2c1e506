"""A small program that uses the package and ends, as `test_endings.py` tells it to.

argv: verb, "closed" or "open", "pending" or "done", the way it ends, the yard's url (serve: the model's file).
Prints `ending <time.monotonic()>` at the moment from which on it only ends, and `ended` when a child has.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
from batchyard import AsyncClient, AsyncInferenceQueue, BrokerLost, Client, Overloaded, serve

X = np.ones((1, 4), np.float32)
PENDING = 8  # requests; the model takes 50 ms for each
held: list[Any] = []  # what nobody closes lives until the interpreter takes modules down


def daemon(work: Any) -> None:
    threading.Thread(target=work, daemon=True).start()


def infer(where: str, closed: bool, pending: bool) -> None:
    client = Client(where)
    held.append(client)
    client.infer("neg", X)
    if pending:
        begun = threading.Event()

        def camera() -> None:  # as programs have it: a thread that asks for ever
            while True:
                begun.set()
                client.infer("slow", X)

        daemon(camera)
        begun.wait()
    if closed and not pending:
        client.close()


def submit(where: str, closed: bool, pending: bool) -> None:
    client = Client(where)
    held.append(client)
    held.append([client.submit("neg", X).result() for _ in range(3)])
    if pending:
        futures = [client.submit("slow", X) for _ in range(PENDING)]
        held.append(futures)
        if not closed:  # a callback that is not made for errors, and a thread that waits for one
            futures[-1].add_done_callback(lambda future: future.result())
            daemon(futures[-1].result)
    if closed:
        client.close()


def stuck(where: str, closed: bool, pending: bool) -> None:
    """A done-callback that never returns."""
    client = Client(where)
    held.append(client)
    begun = threading.Event()

    def callback(_: Any) -> None:
        begun.set()
        threading.Event().wait()

    client.submit("slow", X).add_done_callback(callback)  # slow: or this thread would be the one that calls
    begun.wait()
    if pending:
        held.append(client.submit("neg", X))
    if closed:
        client.close()


def map_(where: str, closed: bool, pending: bool) -> None:
    client = Client(where)
    results = client.map("slow" if pending else "neg", [X] * PENDING, window=PENDING)
    held.extend((client, results, next(results)))
    if not pending:
        held.extend(results)
    if closed:
        client.close()


def asyncio_(where: str, closed: bool, pending: bool) -> None:
    async def main() -> None:
        client = AsyncClient(where)
        held.append(client)
        await client.infer("neg", X)
        tasks = [client.submit("slow" if pending else "neg", X) for _ in range(PENDING)]
        held.append(tasks)
        if pending:
            await asyncio.sleep(0)
        else:
            await asyncio.gather(*tasks)
        if closed:
            await client.close()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def loop(where: str, closed: bool, pending: bool) -> None:
    """An event loop in a daemon thread of its own."""
    begun = threading.Event()

    async def main() -> None:
        client = AsyncClient(where)
        held.append(client)
        await client.infer("neg", X)
        begun.set()
        while pending:
            await client.infer("slow", X)
        if closed:
            await client.close()

    daemon(lambda: asyncio.run(main()))
    begun.wait()


def jobs(where: str, closed: bool, pending: bool) -> None:
    async def main() -> None:
        queue = AsyncInferenceQueue(model="slow" if pending else "neg", url=where)
        held.append(queue)
        await queue.start()
        numbers = [await queue.submit(X) for _ in range(PENDING)]
        if not pending:
            for number in numbers:
                await queue.get_result(number)
        if closed:
            await queue.stop()

    asyncio.run(main())


def serve_(where: str, closed: bool, pending: bool) -> None:
    yard = serve({"slow": where}, max_batch=2)  # its warm-up runs every size, and each row takes 50 ms
    client = yard.client()
    client.submit("slow", X).result()
    held.append(client)
    if pending:
        held.append([client.submit("slow", X) for _ in range(PENDING)])
        daemon(lambda: until_it_stops(client))
    if closed:
        yard.close()


def until_it_stops(client: Client) -> None:
    """A yard that is being closed refuses what comes too late to be admitted; when it is, calls end."""
    with suppress(Overloaded, BrokerLost):
        client.infer("slow", X)


VERBS = {
    "infer": infer,
    "submit": submit,
    "stuck": stuck,
    "map": map_,
    "asyncio": asyncio_,
    "loop": loop,
    "jobs": jobs,
    "serve": serve_,
}


def say(what: str = "ending") -> None:
    print(what, time.monotonic(), flush=True)


def child(*arguments: Any) -> None:
    """What a spawned process runs."""
    work(*arguments)
    say()


def work(verb: str, closed: str, pending: str, where: str) -> None:
    VERBS[verb](where, closed == "closed", pending == "pending")


def main(verb: str, closed: str, pending: str, end: str, where: str) -> None:
    arguments = (verb, closed, pending, where)
    if end in ("thread", "_exit in a thread"):
        worked = threading.Event()

        def outlive() -> None:
            try:
                work(*arguments)
            finally:
                worked.set()
            if end == "thread":
                threading.main_thread().join()
            say()
            if end == "_exit in a thread":
                os._exit(5)

        thread = threading.Thread(target=outlive)
        thread.start()
        worked.wait()  # 3.12 starts no thread once this one has ended
        if end == "thread":
            return
        thread.join()
    if end == "spawn":
        process = multiprocessing.get_context("spawn").Process(target=child, args=arguments)
        process.start()
        process.join()
        say("ended")
        say()
        sys.exit(process.exitcode)
    work(*arguments)
    if end in ("fork", "multiprocessing fork"):
        if verb != "serve":  # its yard is the parent's, whatever the child does
            inherited = arguments
        else:
            inherited = ("serve", closed, "done", "")
        if end == "fork":
            if os.fork() == 0:
                in_child(*inherited)
                say()
                sys.exit(4)
            status = os.waitstatus_to_exitcode(os.wait()[1])
            say("ended")
            say()
            sys.exit(0 if status == 4 else 1)
        process = multiprocessing.get_context("fork").Process(target=forked, args=inherited)
        process.start()
        process.join()
        say("ended")
        say()
        sys.exit(process.exitcode)
    say()
    if end == "sys.exit":
        sys.exit(7)
    if end == "exception":
        raise ValueError("the program's own")
    if end == "ctrl-c":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    if end == "_exit":
        os._exit(5)


def in_child(verb: str, closed: str, pending: str, where: str) -> None:
    """In a forked child: the parent's clients once more, and one of its own."""
    for thing in held:
        if isinstance(thing, Client) and closed == "open":
            thing.infer("neg" if verb != "serve" else "slow", X)
    if verb != "serve":
        work(verb, closed, pending, where)


def forked(verb: str, closed: str, pending: str, where: str) -> None:
    """What a forked process runs that multiprocessing ends."""
    in_child(verb, closed, pending, where)
    say()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # forks, from 3.12
    main(*sys.argv[1:])
