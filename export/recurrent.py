"""`nn.RNN` as ONNX's own operator, whose sequence may have any length. torch's exporter does that for
`nn.GRU` and `nn.LSTM`, and writes this one step by step, for the length that it was traced with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..transport.errors import InvalidRequest


def translations(name: str, program: Any) -> dict[Any, Callable[..., Any]]:
    """For torch.onnx.export's `custom_translation_table`. Raises InvalidRequest for recurrent layers that
    ONNX or onnxruntime do not have. `nn.RNN` in float64 runs as a fixed number of steps alone."""
    import torch

    aten = torch.ops.aten
    operators = {
        aten.rnn_tanh.input: translation("Tanh"),
        aten.rnn_relu.input: translation("Relu"),
    }
    kinds = {aten.gru.input: "GRU", aten.lstm.input: "LSTM"}
    for node in program.graph.nodes:
        kind = kinds.get(node.target)
        if not kind and node.target not in operators:
            continue
        _, _, params, has_biases, layers, _, _, is_bidirectional, *_ = node.args
        is_double = node.args[0].meta["val"].dtype == torch.float64
        if kind and is_double:
            raise InvalidRequest(
                f"{name} has an nn.{kind} in float64, which onnxruntime does not have: export it in float32 "
                "(model.float())"
            )
        if kind and len(params) > layers * (1 + is_bidirectional) * (4 if has_biases else 2):
            raise InvalidRequest(
                f"{name} has an nn.LSTM with proj_size, which ONNX does not have: export it without, or with "
                "nn.LSTMCell and a Linear layer for each step, for one length"
            )
        if is_double:
            operators.pop(node.target)
    return operators


def translation(activation: str) -> Callable[..., Any]:
    """The function that writes one call of `nn.RNN` with this activation."""
    from onnxscript import opset18 as op

    def stack(parts: Sequence[Any]) -> Any:
        """One axis in front, for the directions."""
        parts = [op.Unsqueeze(part, [0]) for part in parts]
        return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)

    def rnn(
        input: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        """aten::rnn_tanh.input and rnn_relu.input. `params`: of each layer, of each direction: weights of the
        input, weights of the state, and a bias of each if there are any."""
        directions, hidden = 1 + bidirectional, hx.shape[2]
        count = 4 if has_biases else 2
        steps = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        last = []
        for layer in range(num_layers):
            first = layer * directions
            mine = [params[count * (first + way) : count * (first + way + 1)] for way in range(directions)]
            steps, state = op.RNN(
                steps,
                stack([one[0] for one in mine]),
                stack([one[1] for one in mine]),
                stack([op.Concat(one[2], one[3], axis=0) for one in mine]) if has_biases else None,
                None,  # every row has all steps
                op.Slice(hx, [first], [first + directions], [0]),
                activations=[activation] * directions,
                direction="bidirectional" if bidirectional else "forward",
                hidden_size=hidden,
            )
            # [steps, directions, rows, hidden] -> [steps, rows, directions * hidden]
            steps = op.Reshape(op.Transpose(steps, perm=[0, 2, 1, 3]), [0, 0, directions * hidden])
            last.append(state)
        output = op.Transpose(steps, perm=[1, 0, 2]) if batch_first else steps
        return output, last[0] if len(last) == 1 else op.Concat(*last, axis=0)

    return rnn
