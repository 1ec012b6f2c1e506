"""`batchyard <verb>`: finds the verb, runs it, and turns what goes wrong into one sentence.

Owns the list of verbs and the exit codes that they share. Loads a verb's file only when it is asked
for, so that `batchyard --help` is instant.

    0    done
    1    it failed, and stderr says why in one sentence
    2    the command line is wrong
    130  Ctrl-C
    143  SIGTERM (`up` ends with 0 on both: it has no other end)
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

# verb -> (the module whose main(argv) runs it, what it does)
VERBS = {
    "demo": ("batchyard.cli.demo", "serve a small model, send it real images, check every answer"),
    "up": ("batchyard.cli.up", "a yard on this machine: broker and workers, until Ctrl-C"),
    "infer": ("batchyard.cli.infer", "run a model on an array from a file"),
    "models": ("batchyard.cli.models", "what a yard serves, and by which workers"),
    "top": ("batchyard.cli.top", "what a yard does now: rates, latencies, workers, memory"),
    "doctor": ("batchyard.cli.doctor", "look for what is wrong on this machine"),
    "export": ("batchyard.cli.export", "make ONNX files of PyTorch models, and judge them"),
    "bench": ("batchyard.bench.main", "measure, and compare with the runtime alone"),
    "keys": ("batchyard.cli.keys", "make the keys of a yard that other machines may use"),
}
HELP = """usage: batchyard <verb> [arguments]

{verbs}

examples:
  batchyard demo
  batchyard up --config batchyard.toml
  batchyard infer digits input.npy

`batchyard <verb> --help` shows a verb's arguments and an example."""
INTERRUPTED = 130
TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM. Not an Exception: what a verb has started is ended on the way out, nothing goes on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `batchyard` with `argv` (default: the process's own), and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {name:<8}{does}" for name, (_, does) in VERBS.items())))
        return 0
    if verb in ("-V", "--version"):
        from importlib.metadata import version

        print(f"batchyard {version('batchyard')}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean `batchyard {near[0]}`?" if near else f"there is: {', '.join(VERBS)}"
        return _fail(f"no verb {verb!r}; {hint}", 2)
    return _run(VERBS[verb][0], arguments[1:])


def _run(module: str, arguments: list[str]) -> int:
    from ..transport.errors import BatchyardError
    from .extras import missing

    before = None
    if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        run: Callable[[list[str]], int] = import_module(module).main
        status = run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `batchyard models | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (BatchyardError, OSError) as error:
        return _fail(str(error))
    except ImportError as error:  # also what onnxruntime makes of a Ctrl-C while it loads
        return _fail(missing(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: object) -> NoReturn:
    raise Terminated


def _fail(text: str, status: int = 1) -> int:
    print(f"batchyard: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
