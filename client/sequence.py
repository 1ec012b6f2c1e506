"""`client.sequence(model)`: steps of a model with state, each beginning where the last one ended.

The state is the client's: the arrays that a step gave are the next step's inputs, where they lie. No
worker holds anything, so any of them may run any step, and a worker's death loses none. A step that fails
leaves the state as it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..transport.errors import ArenaExhausted, InvalidRequest
from ..transport.messages import ModelInfo
from . import ending
from .encoding import plain
from .options import TIMEOUT_S, request_of
from .reply import Reply
from .request import Request
from .signature import Array, Signature
from .states import Foresight, find, rows_of, zeros

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .client import Client

Result = Array | dict[str, Array]


class _Steps(ending.OfThisProcess):
    """What both kinds of sequence share: everything but asking the yard."""

    def __init__(self, model: str, states: Mapping[str, str] | None, initial: Mapping[str, Any]) -> None:
        self.model = model
        self._given = states
        self._initial = dict(initial)
        self._pairs: dict[str, str] | None = None  # input -> output; None: not asked for yet
        self._names: list[str] = []  # inputs that each step brings
        self._constants: dict[str, Any] = {}
        self._max_rows = 0
        self._states: dict[str, Array] = {}  # of the next step; empty before the first
        self._foresight = Foresight()
        self._alike: Any = None  # the last step's shapes, and those of its outputs: the same teach nothing
        self._expecting: tuple[Any, Signature, Signature] | None = None  # for steps of these shapes
        self._busy = threading.Lock()
        self._ended = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.model!r}{', ended' if self._ended else ''}>"

    @property
    def state(self) -> dict[str, Array]:
        """The next step's state inputs by name; empty before the first. `client.sequence(model, **state)`
        goes on from there."""
        return dict(self._states)

    def reset(self) -> None:
        """Begin anew, with what the sequence began with."""
        self._states = {}
        self._foresight = Foresight()
        self._alike = self._expecting = None

    def _learn(self, info: ModelInfo) -> None:
        """Take over the model's description. Raises InvalidRequest and ModelFailed."""
        signature = self._signature = Signature(info)
        pairs = find(signature, self._given)
        names = [entry.spec.name for entry in signature.inputs]
        for name in self._initial:
            if name not in names:
                raise InvalidRequest(f"{self.model!r} has no input {name!r}; it has {', '.join(names)}")
        self._constants = {name: plain(given) for name, given in self._initial.items() if name not in pairs}
        known = {*pairs, *self._constants}
        self._names = [
            entry.spec.name
            for entry in signature.inputs
            if entry.spec.name not in known and not entry.spec.optional
        ]
        self._max_rows = info.max_batch if info.batchable else 0
        self._pairs = pairs

    def _step(self, inputs: Any) -> dict[str, Any]:
        """A step's inputs by name."""
        if isinstance(inputs, Mapping):
            return {**self._constants, **inputs}
        if len(self._names) != 1:
            wanted = ", ".join(self._names) or "nothing"
            raise InvalidRequest(
                f"a step of {self.model!r} brings {wanted}: pass a mapping of names to arrays, or give what "
                "is always the same when the sequence begins"
            )
        return {**self._constants, self._names[0]: inputs}

    def _begun(self, signature: Signature, step: Mapping[str, Any]) -> dict[str, Array]:
        assert self._pairs is not None
        if self._states:
            states = {name: array for name, array in self._states.items() if name not in step}
            shapes = _shapes(step, states)
            if shapes is None or self._alike is None or self._alike[0] != shapes:
                self._check_rows(signature, step, states)
            return states
        arrays = {name: plain(value) for name, value in {**step, **self._initial}.items()}
        return {
            name: plain(self._initial[name])
            if name in self._initial
            else zeros(signature, self._pairs, name, arrays)
            for name in self._pairs
            if name not in step
        }

    def _check_rows(self, signature: Signature, step: Mapping[str, Any], states: Mapping[str, Array]) -> None:
        entries = [entry for entry in signature.inputs if entry.axis >= 0]
        brought = rows_of(signature, {name: plain(value) for name, value in step.items()})
        for entry in entries:
            state = states.get(entry.spec.name)
            if any(other.spec.name in step for other in entries) and state is not None:
                had = state.shape[entry.axis]
                if had != brought:
                    raise InvalidRequest(
                        f"this sequence of {self.model!r} has {had} rows, and the step {brought}: rows can't "
                        "join or leave it; begin another"
                    )

    def _place(self, name: str, place: Array) -> None:
        """Copy a constant into shared memory once, and not with every step."""
        place[...] = self._constants[name]
        self._constants[name] = place

    def _request(
        self, step: Mapping[str, Any], states: Mapping[str, Array], options: Mapping[str, Any]
    ) -> Request:
        """The step's request, with room for the outputs as far as their sizes can be foreseen."""
        pairs = self._pairs or {}

        def expect(signature: Signature) -> Signature:
            shapes = _shapes(step, states)
            known = self._expecting
            if shapes is None or known is None or known[0] != shapes or known[1] is not signature:
                known = self._expecting = shapes, signature, foresee(signature)
            return known[2]

        def foresee(signature: Signature) -> Signature:
            arrays = {name: plain(value) for name, value in step.items()}
            if self._max_rows and rows_of(signature, arrays) > self._max_rows:
                return signature  # it is run in parts
            shapes = self._foresight.shapes(signature, pairs, arrays, states)
            return signature if shapes is None else signature.giving(shapes)

        request = request_of(self.model, {**step, **states}, **options)
        request.expect = expect
        return request

    def _ended_with(self, reply: Reply, step: Mapping[str, Any], states: Mapping[str, Array]) -> None:
        """A step has run: its state outputs are the next one's inputs."""
        outputs = reply.outputs
        pairs = self._pairs or {}
        alike = _shapes(step, states), [array.shape for array in reply.arrays]
        if alike[0] is None or alike != self._alike:
            before = {name: states[name] if name in states else plain(step[name]) for name in pairs}
            self._foresight.learn(step, before, outputs)
            self._alike, self._expecting = alike, None
        self._states = {name: outputs[output] for name, output in pairs.items()}

    def _value(self, reply: Reply) -> Result:
        """A step's outputs except the state: an array, or several by name."""
        kept = set((self._pairs or {}).values())
        outputs = {name: array for name, array in reply.outputs.items() if name not in kept}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _take(self) -> None:
        if self._ended:
            raise InvalidRequest(f"this sequence of {self.model!r} has ended")
        if not self._busy.acquire(blocking=False):
            raise InvalidRequest(
                f"a step of this sequence of {self.model!r} is under way: the next one begins where it ends"
            )

    def _end(self) -> None:
        self._ended = True
        self._states = {}
        self._constants = {}


def _shapes(step: Mapping[str, Any], states: Mapping[str, Array]) -> tuple[Any, ...] | None:
    """What tells steps apart where only sizes matter. None: of lists and the like, which have no shape."""
    arrays = (*step.values(), *states.values())
    if any(type(array) is not np.ndarray for array in arrays):
        return None
    return (*step, *[array.shape for array in arrays])


def _left(options: dict[str, Any], spent_s: float) -> dict[str, Any]:
    """A call's options after it has spent so much of its time."""
    left = dict(options)
    for key in ("timeout", "deadline"):
        if isinstance(left.get(key), int | float):
            left[key] = max(1e-6, left[key] - spent_s)
    return left


class ClientSequence(_Steps):
    """Steps of one stream; made by `Client.sequence`. One step at a time."""

    def __init__(
        self, client: Client, model: str, states: Mapping[str, str] | None, initial: Mapping[str, Any]
    ) -> None:
        super().__init__(model, states, initial)
        self._client = client

    def infer(self, inputs: Any, **options: Any) -> Result:
        """Make a step; what the model gives beside its state: an array, or a dict when there are several.

        inputs: one array, or a mapping of input names to arrays. options: as for `Client.infer`. Raises
        as that does; then the state is as it was, and the step can be made again.
        """
        return self._value(self.request(inputs, **options))

    def request(self, inputs: Any, **options: Any) -> Reply:
        """`infer`, with the receipt and every output."""
        self._take()
        try:
            if self._pairs is None:
                began_s = time.monotonic()
                self._begin(options.get("timeout", TIMEOUT_S))
                options = _left(options, time.monotonic() - began_s)
            step = self._step(inputs)
            states = self._begun(self._signature, step)
            reply = self._client._ask(self._request(step, states, options))
            self._ended_with(reply, step, states)
            return reply
        finally:
            self._busy.release()

    def _begin(self, timeout: float = TIMEOUT_S) -> None:
        self._learn(self._client.wait_ready(self.model, timeout))
        for name, array in self._constants.items():
            with suppress(ArenaExhausted, InvalidRequest):
                self._place(name, self._client.empty(array.shape, array.dtype))

    def __enter__(self) -> Self:
        if self._pairs is None:
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


class AsyncSequence(_Steps):
    """As `ClientSequence`, for one event loop; made by `AsyncClient.sequence`."""

    def __init__(
        self, client: AsyncClient, model: str, states: Mapping[str, str] | None, initial: Mapping[str, Any]
    ) -> None:
        super().__init__(model, states, initial)
        self._client = client

    async def infer(self, inputs: Any, **options: Any) -> Result:
        """As `ClientSequence.infer`."""
        return self._value(await self.request(inputs, **options))

    async def request(self, inputs: Any, **options: Any) -> Reply:
        """As `ClientSequence.request`."""
        self._take()
        try:
            if self._pairs is None:
                began_s = time.monotonic()
                await self._begin(options.get("timeout", TIMEOUT_S))
                options = _left(options, time.monotonic() - began_s)
            step = self._step(inputs)
            states = self._begun(self._signature, step)
            reply = await self._client._ask(self._request(step, states, options))
            self._ended_with(reply, step, states)
            return reply
        finally:
            self._busy.release()

    async def _begin(self, timeout: float = TIMEOUT_S) -> None:
        self._learn(await self._client.wait_ready(self.model, timeout))
        for name, array in self._constants.items():
            with suppress(ArenaExhausted, InvalidRequest):
                self._place(name, await self._client.empty(array.shape, array.dtype))

    async def __aenter__(self) -> Self:
        if self._pairs is None:
            await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()
