"""Bindings of a model's sessions to addresses, cached: a new binding costs more than a small run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..transport.tensors import TensorSpec
from .forms import Form
from .sessions import Sessions

BINDINGS_MAX = 512  # cached; one is a few kB


class Bindings:
    """`host`: the session that reads and writes this process's memory; None: a device's sessions."""

    def __init__(
        self, sessions: Sessions, host: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._sessions = sessions
        self._host = host
        self._inputs = inputs
        self._outputs = outputs
        self._kept: dict[Any, Any] = {}

    def clear(self) -> None:
        """Drop every binding: some of their memory is about to be unmapped."""
        self._kept.clear()

    def run(self, form: Form, size: int, addresses: Sequence[int], places: Sequence[int]) -> list[Any]:
        """Run on the inputs at these addresses. Returns a value for each output whose place is 0, which the
        runtime allocates; None for the others."""
        binding = self.of(form, size, (*addresses, *places))
        if self._host is not None:
            self._host.run_with_iobinding(binding)
        else:
            self._run_on_device(binding, form, size, addresses)
        if all(places):
            return [None] * len(places)
        values = binding.get_outputs()
        return [None if place else value for place, value in zip(places, values, strict=True)]

    def _run_on_device(self, binding: Any, form: Form, size: int, addresses: Sequence[int]) -> None:
        """A GPU provider copies an input when it is bound, so inputs are bound anew for each run. The
        outputs' binding stays."""

        def work() -> None:
            self.bind_inputs(binding, form, size, addresses)
            self._sessions.get(size).run_with_iobinding(binding)

        self._sessions.do(work)

    def of(self, form: Form, rows: int, places: tuple[int, ...]) -> Any:
        """The binding to these addresses: of the inputs (0: left out), then of the outputs (0: the runtime
        allocates)."""
        key = (form.key, rows, places)
        binding = self._kept.get(key)
        count = len(self._inputs)
        if binding is not None:
            if 0 in places[count:]:
                # It still holds the last run's outputs, and would require their shapes.
                binding.clear_binding_outputs()
                self._bind_outputs(binding, form, rows, places[count:])
            return binding
        if len(self._kept) >= BINDINGS_MAX:
            del self._kept[next(iter(self._kept))]
        binding = self._sessions.get(rows).io_binding()
        if self._host is not None:
            self.bind_inputs(binding, form, rows, places[:count])
        self._bind_outputs(binding, form, rows, places[count:])
        self._kept[key] = binding
        return binding

    def bind_inputs(self, binding: Any, form: Form, rows: int, places: Sequence[int]) -> None:
        for spec, layout, place in zip(self._inputs, form.inputs, places, strict=True):
            if layout is not None:
                binding.bind_input(spec.name, "cpu", 0, spec.dtype, layout.shape(rows), place)

    def _bind_outputs(self, binding: Any, form: Form, rows: int, places: Sequence[int]) -> None:
        for spec, layout, place in zip(self._outputs, form.outputs, places, strict=True):
            if place and layout is not None:
                binding.bind_output(spec.name, "cpu", 0, spec.dtype, layout.shape(rows), place)
            else:
                binding.bind_output(spec.name, "cpu")
