"""The yard's side: a test's model is loaded, asked by eight clients at once, compared, and unloaded.

A small model is served beside it for the whole time. The processes that serve it are those that serve the
tests: when they change, a worker has died, and when the small model no longer answers, one hangs.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import batchyard
import msgspec
import numpy as np
from batchyard.transport.errors import BatchyardError, DeadlineExceeded, Overloaded
from onnx import TensorProto, helper, save

from ...plain import difference
from .requests import Prepared, decode

CLIENTS = 8
LOAD_S = 30.0
REQUEST_S = 20.0
PILOT_S = 5.0
BACK_WITHIN_S = 30.0
ARENA_BYTES = 64 << 20

# What may be refused, by the words of onnxruntime's type. The list is the documented one (docs/architecture.md, "What is refused when a model is loaded").
REFUSED_TYPES = ("seq", "map", "optional", "sparse_tensor", "int2", "uint2", "float8e8m0", "float4")

EQUAL = "served and equal"
RANDOM = "served, random by nature"
BY_TYPE = "refused by type"
BY_WARMUP = "refused by warm-up"
REFUSED = "refused otherwise"
FAILED = "a request failed"
WRONG = "wrong"
HUNG = "hung"
DIED = "worker died"
OUTCOMES = (EQUAL, RANDOM, BY_TYPE, BY_WARMUP, REFUSED, FAILED, WRONG, HUNG, DIED)
GOOD = (EQUAL, RANDOM, BY_TYPE)


class Verdict(msgspec.Struct):
    """What became of one test."""

    name: str
    variant: str
    operators: list[str]
    outcome: str
    text: str = ""
    batched: bool = False  # whether the yard says that requests may share a run
    reason: str = ""  # why not
    rows: str = ""  # our own check of axis 0 (independence.py)
    requests: int = 0
    wrong: int = 0


class Stand:
    """A yard with one worker, and eight clients."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self.folder = folder
        self._log = log
        self._number = 0
        self._pilot = folder / "pilot.onnx"
        save(_pilot(), self._pilot)
        self._open()

    def _open(self) -> None:
        self._yard = batchyard.serve(
            {"pilot": self._pilot}, threads=1, models_root=self.folder, log=self._log
        )
        self._clients = [self._yard.client(arena_bytes=ARENA_BYTES) for _ in range(CLIENTS)]
        self._workers = self._pids()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._yard.close()

    def _pids(self) -> list[int]:
        """Of the workers that serve the pilot, sorted."""
        models = {info.name: info for info in self._clients[0].models()}
        return sorted(worker.pid for worker in models["pilot"].workers)

    def judge(self, made: Prepared) -> Verdict:
        """Serve a test and say what became of it. Whatever happened, the stand is ready for the next."""
        self._number += 1
        verdict = Verdict(made.name, made.variant, made.operators, EQUAL, rows=made.rows)
        name = f"t{self._number}"
        file = self.folder / f"{name}.onnx"
        file.write_bytes(made.model)
        try:
            if self._load(made, name, file, verdict):
                self._ask(made, name, verdict)
                self._yard.operator.unload(name, LOAD_S)
        except DeadlineExceeded as error:
            verdict.outcome, verdict.text = HUNG, f"{verdict.text}; unload: {error}"
        finally:
            file.unlink()
            self._look_after(verdict)
        return verdict

    def _load(self, made: Prepared, name: str, file: Path, verdict: Verdict) -> bool:
        try:
            self._yard.operator.load(name, file, timeout=LOAD_S)
        except DeadlineExceeded as error:
            verdict.outcome, verdict.text = HUNG, f"load: {error}"
            return False
        except BatchyardError as error:
            verdict.outcome, verdict.text = _refusal(made, str(error)), str(error)
            return False
        (info,) = [info for info in self._clients[0].models() if info.name == name]
        verdict.batched, verdict.reason = info.batchable, info.alone_reason
        return True

    def _ask(self, made: Prepared, name: str, verdict: Verdict) -> None:
        """Every request at once, from all clients in turn."""
        futures: list[Future[Any] | Exception] = []
        requests = [({k: decode(v) for k, v in each.inputs.items()}, each.answers) for each in made.requests]
        for index, (feeds, _) in enumerate(requests):
            try:
                futures.append(self._clients[index % CLIENTS].submit(name, feeds, timeout=REQUEST_S))
            except Exception as error:  # what the client itself refuses, or trips over
                futures.append(error)
        verdict.requests = len(futures)
        for future, (feeds, answers) in zip(futures, requests, strict=True):
            try:
                if isinstance(future, Exception):
                    raise future
                text = _compare(self._answer(name, feeds, future), answers)
            except TimeoutError as error:
                verdict.outcome, verdict.text = HUNG, str(error)
                continue
            except Exception as error:  # of ours or not: onnxruntime alone has an answer to it
                text = f"{type(error).__name__}: {error}"
                if verdict.outcome == EQUAL:
                    verdict.outcome, verdict.text = FAILED, f"{_shapes(feeds)}: {text}"[:600]
                continue
            if text and made.random:
                verdict.outcome = RANDOM
            elif text:
                verdict.wrong += 1
                if verdict.outcome != HUNG:
                    verdict.outcome, verdict.text = WRONG, f"{_shapes(feeds)}: {text}"[:600]

    def _answer(self, name: str, feeds: dict[str, Any], future: Future[Any]) -> Any:
        """What a request's future brings; a yard that was full is asked again, alone, as a user would."""
        try:
            return future.result(REQUEST_S + PILOT_S)
        except Overloaded:
            return self._clients[0].infer(name, feeds, timeout=REQUEST_S)

    def _look_after(self, verdict: Verdict) -> None:
        """Notice a worker that died or hangs, and wait, or begin again, until the pilot answers."""
        try:
            self._clients[0].infer("pilot", np.ones((1, 1), np.float32), timeout=PILOT_S)
            pids = self._pids()
            if pids == self._workers:
                if verdict.outcome == HUNG:
                    self._reopen()
                return
        except BatchyardError:
            pids = []
        before, lost = self._workers, self._yard.snapshot().get("workers_hung", 0)
        if before != pids and not lost:
            verdict.outcome = DIED
        else:
            verdict.outcome = HUNG if verdict.outcome != DIED else DIED
        self._reopen()

    def _reopen(self) -> None:
        self.close()
        self._open()


def _refusal(made: Prepared, text: str) -> str:
    lower = text.lower()
    if "warm" in lower or "first run failed" in lower:
        return BY_WARMUP
    odd = [word for word in REFUSED_TYPES if any(word in kind for kind in made.types)]
    if odd and (any(word in lower for word in odd) or "sequence" in lower):
        return BY_TYPE
    return REFUSED


def _compare(result: Any, answers: Sequence[bytes]) -> str:
    given = list(result.values()) if isinstance(result, dict) else [result]
    if len(given) != len(answers):
        return f"{len(given)} outputs in place of {len(answers)}"
    for index, (want, have) in enumerate(zip(answers, given, strict=True)):
        text = difference(decode(want), have)
        if text:
            return f"output {index}: {text}"
    return ""


def _shapes(feeds: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feeds.items())


def _pilot() -> Any:
    axes = ["n", 1]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "pilot",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, axes)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
