"""Many clients at once on one model, and every answer held against plain onnxruntime on that request alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from .plain import Plain, difference

CLIENTS = 8
PATIENCE_S = 120.0  # the machine is shared

Feeds = Mapping[str, Any]


def ask(
    yard: Any, model: str, requests: Sequence[Feeds], clients: int = CLIENTS, **options: Any
) -> list[Any]:
    """The answers to the requests, dealt out to so many clients that start together; an exception in
    place of an answer that is none. Every other client sends all its requests before it waits for one."""
    answers: list[Any] = [None] * len(requests)
    start = threading.Barrier(clients)

    def client_of(number: int) -> None:
        mine = range(number, len(requests), clients)
        with yard.client(**options) as client:
            start.wait(PATIENCE_S)
            if number % 2:
                futures = [(index, _submit(client, model, requests[index])) for index in mine]
                for index, future in futures:
                    answers[index] = future if isinstance(future, Exception) else _outcome(future)
            else:
                for index in mine:
                    try:
                        answers[index] = client.infer(model, requests[index], timeout=PATIENCE_S)
                    except Exception as error:
                        answers[index] = error

    threads = [threading.Thread(target=client_of, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _submit(client: Any, model: str, feeds: Feeds) -> Any:
    try:
        return client.submit(model, feeds, timeout=PATIENCE_S)
    except Exception as error:
        return error


def _outcome(future: Any) -> Any:
    try:
        return future.result(PATIENCE_S)
    except Exception as error:
        return error


def differences(
    plain: Plain, requests: Sequence[Feeds], answers: Sequence[Any], share: float | None = None
) -> list[str]:
    """What is wrong with the answers, a line each; [] where every one is what onnxruntime gives for that
    request alone, within its type's rounding (tests/plain.py), or within `share` of the largest value."""
    wrong = []
    for number, (feeds, answer) in enumerate(zip(requests, answers, strict=True)):
        text = _wrong(plain.run(feeds), answer, share)
        if text:
            sizes = ", ".join(
                f"{name}{list(getattr(value, 'shape', ()))}" for name, value in list(feeds.items())[:4]
            )
            wrong.append(f"request {number} ({sizes}): {text}")
    return wrong


def _wrong(want: Sequence[Any], answer: Any, share: float | None) -> str:
    if isinstance(answer, Exception):
        return f"{type(answer).__name__}: {answer}"
    have = list(answer.values()) if isinstance(answer, Mapping) else [answer]
    if len(have) != len(want):
        return f"{len(have)} outputs in place of {len(want)}"
    for output, (right, given) in enumerate(zip(want, have, strict=True)):
        text = difference(right, given, share)
        if text:
            return f"output {output}: {text}"
    return ""
