"""`batchyard infer MODEL input.npy`: one request, from files to files."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..client import Client, Priority, Receipt, Reply
from ..client.memory import FIXED_BYTES
from ..client.options import TIMEOUT_S
from ..transport.arguments import add_yard, seconds
from ..transport.errors import InvalidRequest
from .arguments import PRIORITIES, parser, priority
from .arrays import Array, load, save, summary
from .text import duration, plural, size

EXAMPLES = """examples:
  batchyard infer digits input.npy --output logits.npy
  batchyard infer digits examples/digits_test.npz:images --priority high --receipt
  batchyard infer translate --input tokens=tokens.npy --input mask=mask.npy --output out.npz"""
SUFFIXES = (".npy", ".npz")
ARENA_PER_INPUT_BYTE = 4  # room for the input, the output, and what splitting them rounds up


def main(argv: list[str]) -> int:
    """Return 0 if the model answered."""
    options = _parser().parse_args(argv)
    if options.output is not None and options.output.suffix not in SUFFIXES:
        raise InvalidRequest(f"--output {options.output}: name a file that ends in .npy or .npz")
    inputs = read_inputs(options.file, options.input)
    nbytes = sum(array.nbytes for array in inputs.values()) if isinstance(inputs, dict) else inputs.nbytes
    arena_bytes = max(FIXED_BYTES, ARENA_PER_INPUT_BYTE * nbytes)
    with Client(options.url, keys=options.keys, arena_bytes=arena_bytes) as client:
        model = client.wait_ready(options.model, options.timeout)
        if options.output is not None and len(model.outputs) > 1 and options.output.suffix != ".npz":
            names = ", ".join(spec.name for spec in model.outputs)
            raise InvalidRequest(f"{options.model} has several outputs ({names}): --output must be an .npz")
        began_s = time.perf_counter()
        reply = client.request(
            options.model,
            inputs,
            priority=options.priority,
            deadline=options.deadline,
            timeout=options.timeout,
        )
        took_ns = int((time.perf_counter() - began_s) * 1e9)
        print("\n".join(answer(options.model, reply, took_ns)))
        if options.receipt:
            print("\n".join(receipt(reply.receipt, model.max_batch)))
        if options.output is not None:
            save(options.output, reply.outputs)
            print(f"wrote {options.output}")
    return 0


def read_inputs(file: str | None, named: list[str]) -> Array | dict[str, Array]:
    """One array, or arrays by input name. Raises InvalidRequest if both or neither are given."""
    if (file is None) == (not named):
        raise InvalidRequest("give one input file, or --input NAME=FILE for each of the model's inputs")
    if file is not None:
        return load(file)
    inputs: dict[str, Array] = {}
    for pair in named:
        name, separator, path = pair.partition("=")
        if not separator or not name or not path:
            raise InvalidRequest(f"--input takes NAME=FILE, such as image=input.npy, not {pair!r}")
        if name in inputs:
            raise InvalidRequest(f"--input {name} is given twice")
        inputs[name] = load(path)
    return inputs


def answer(model: str, reply: Reply, took_ns: int) -> list[str]:
    """The duration and a short summary of every output."""
    lines = [f"{model}: answered in {duration(took_ns)}"]
    for name, array in reply.outputs.items():
        lines += [f"  {line}" for line in summary(name, array)]
    return lines


def receipt(receipt: Receipt, max_batch: int) -> list[str]:
    """Where the time went, and which worker ran it. `max_batch`: most rows of one batch."""
    was_split = receipt.rows > max_batch
    batch = "batches" if was_split else "a batch"
    worker = f"{'last on ' if was_split else ''}worker {receipt.worker}"
    stages: tuple[tuple[str, int], ...] = (
        ("queue", receipt.queue_ns),
        ("gather", receipt.gather_ns),
        ("compute", receipt.compute_ns),
        ("scatter", receipt.scatter_ns),
    )
    return [
        f"  receipt: {', '.join(f'{stage} {duration(stage_ns)}' for stage, stage_ns in stages)}",
        f"  {worker} ({receipt.provider}), revision {receipt.revision}, {batch} of "
        f"{plural(receipt.rows, 'row')}, {size(receipt.copied_bytes)} copied by the worker"
        + (f", {receipt.padded:.1%} of it padding" if receipt.padded else ""),
    ]


def _parser() -> argparse.ArgumentParser:
    arguments = parser("infer", "Run a model on arrays from files and print the result.", EXAMPLES)
    arguments.add_argument("model", help="the model's name; `batchyard models` lists them")
    arguments.add_argument("file", nargs="?", help="an .npy file, or archive.npz:name")
    arguments.add_argument(
        "--input", action="append", default=[], metavar="NAME=FILE", help="for a model with several inputs"
    )
    arguments.add_argument("--output", type=Path, metavar="FILE", help="write the answer: .npy, or .npz")
    arguments.add_argument(
        "--priority",
        type=priority,
        default=Priority.NORMAL,
        metavar="|".join(PRIORITIES),
        help="priority class (normal)",
    )
    arguments.add_argument(
        "--deadline",
        type=seconds,
        metavar="S",
        help="seconds until the broker drops the request (default: the timeout)",
    )
    arguments.add_argument(
        "--timeout",
        type=seconds,
        default=TIMEOUT_S,
        metavar="S",
        help="seconds to wait for the answer (%(default)g)",
    )
    arguments.add_argument("--receipt", action="store_true", help="show where the time went")
    add_yard(arguments)
    return arguments
