"""Triton's model control: load and unload by name, only where the gateway was started with --model-control.

Owns how a model's name leads to its file. The yard's operator does the rest, and reads nothing outside of
models_root.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from .. import InvalidRequest, Operator
from .errors import Refusal, invalid
from .yard import Yard

FILES = ("{name}.onnx", "{name}/model.onnx", "{name}/1/model.onnx")  # the last is Triton's own layout
OFF = (
    "model control is off: start the gateway with --model-control, or use `batchyard models load` and "
    "`batchyard models unload` on the yard's machine"
)
CONFIG_KEYS = ("name", "platform", "backend", "max_batch_size")
CONFIG_CHARACTERS_MAX = 1 << 16


async def load(yard: Yard, name: str, parameters: Mapping[str, Any]) -> None:
    """Load a model, or read the one that is served under the name anew. Returns when it is ready.
    Raises Refusal and the operator's errors."""
    options = _options(parameters)
    if any(info.name == name for info in await yard.models()):
        await yard.order(name, partial(Operator.swap, name=name, options=options))
        return
    first: InvalidRequest | None = None
    for pattern in FILES:
        file = pattern.format(name=name)
        try:
            await yard.order(name, partial(Operator.load, name=name, file=file, options=options))
            return
        except InvalidRequest as error:
            first = first or error
    assert first is not None
    raise invalid(f"{first} (looked for {', '.join(FILES)} in models_root)")


async def unload(yard: Yard, name: str) -> None:
    """Returns when the requests that were waiting have ended. Raises UnknownModel."""
    await yard.order(name, partial(Operator.unload, name=name))


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options, of a load's parameters. Raises Refusal."""
    for key in parameters:
        if key.startswith("file:"):
            raise invalid("a model's file is not taken over the network: put it into the yard's models_root")
        if key != "config":
            raise invalid(f"a load has the parameter config, and not {key[:40]!r}")
    text = parameters.get("config")
    if not text:
        return {}
    try:
        config = json.loads(text) if len(text) <= CONFIG_CHARACTERS_MAX else None
    except (TypeError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise invalid("config is a JSON object, as a text")
    others = [key for key in config if key not in CONFIG_KEYS]
    if others:
        raise invalid(
            f"config may say max_batch_size here, and not {others[0][:40]!r}: a model's other options are in "
            "batchyard.toml (docs/configuration.md)"
        )
    rows = config.get("max_batch_size")
    if rows is None:
        return {}
    if type(rows) is not int or rows < 0:
        raise invalid(f"max_batch_size is a number of rows, not {str(rows)[:40]!r}")
    return {"max_batch": rows} if rows else {"batchable": False}


def check(on: bool) -> None:
    """Raises Refusal if model control is off."""
    if not on:
        raise Refusal(403, "FORBIDDEN", OFF)
