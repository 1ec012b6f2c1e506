"""`batchyard <verb>`: finds the verb, runs it, and turns errors into one sentence.

Owns the list of verbs and their shared exit codes. Loads a verb's module only when it runs, so that
`batchyard --help` is instant.

    0    done
    1    it failed, and stderr says why in one sentence
    2    the command line is wrong
    130  Ctrl-C
    143  SIGTERM (`up` ends with 0 on both: it has no other end)
"""

from __future__ import annotations

import difflib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from ..transport.processes import NO_TELEMETRY, open_standard_streams

# verb -> (the module whose main(argv) runs it, what it does)
VERBS = {
    "demo": ("batchyard.cli.demo.main", "serve a small model, send it real images, check every answer"),
    "up": ("batchyard.cli.up", "run a yard on this machine until Ctrl-C"),
    "infer": ("batchyard.cli.infer", "run a model on an array from a file"),
    "check": ("batchyard.cli.check", "examine an ONNX file: inputs, batching, speed"),
    "models": ("batchyard.cli.models", "show what a yard serves, or change it"),
    "top": ("batchyard.cli.top", "watch a yard: rates, latencies, workers, memory"),
    "doctor": ("batchyard.cli.doctor.main", "find problems on this machine"),
    "export": ("batchyard.cli.export", "convert PyTorch models to ONNX and check them"),
    "frigate": ("batchyard.adapters.frigate.__main__", "be Frigate's detector, on this machine's hardware"),
    "bench": ("batchyard.bench.main", "measure a yard beside onnxruntime alone"),
    "fleet": ("batchyard.cli.fleet.main", "many nodes behind one address, by Envoy"),
    "keys": ("batchyard.cli.keys", "create keys for a yard that other machines may use"),
}
HELP = """usage: batchyard <verb> [arguments]

{verbs}

examples:
  batchyard demo
  batchyard up --config batchyard.toml
  batchyard infer digits input.npy

`batchyard <verb> --help` shows a verb's arguments and an example."""
MEANT = {"serve": "up", "start": "up", "run": "up", "ls": "models", "list": "models"}
INTERRUPTED = 130
TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM. Not an Exception, so that no handler swallows it: `finally` blocks clean up on the way out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `batchyard` with `argv` (default: the process's own), and return the exit code."""
    os.environ.setdefault(NO_TELEMETRY, "1")
    open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr does so already
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _main(arguments), arguments[0] if arguments else "")


def _main(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {name:<8}{does}" for name, (_, does) in VERBS.items())))
        return 0
    if verb in ("-V", "--version"):
        from importlib.metadata import version

        print(f"batchyard {version('batchyard')}")
        return 0
    if verb not in VERBS:
        near = MEANT.get(verb) or next(iter(difflib.get_close_matches(verb, VERBS, n=1)), "")
        hint = f"did you mean `batchyard {near}`?" if near else f"there is: {', '.join(VERBS)}"
        return _fail(f"no verb {verb!r}; {hint}", 2)
    return _verb(VERBS[verb][0], arguments[1:])


def run(module: str, arguments: list[str]) -> int:
    """Run `module`.main(arguments) and return the exit code; errors become one sentence on stderr."""
    return _guarded(lambda: _verb(module, arguments))


def _verb(module: str, arguments: list[str]) -> int:
    verb: Callable[[list[str]], int] = import_module(module).main
    # Until here a signal ends the process, which holds nothing yet. An exception amid the first lines of
    # numpy or onnxruntime could be swallowed there, or be a crash.
    before = None
    if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses
        before = signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see __init__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return verb(arguments)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _guarded(action: Callable[[], int], verb: str = "") -> int:
    from ..transport import extras
    from ..transport.errors import BatchyardError

    try:
        status = action()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `batchyard models | head`: the reader has seen enough
        _let_go_of_stdout()
        if verb == "up":
            return _fail("stopped: nobody reads what it prints any more; send that to a file to go on")
        return 1
    except BatchyardError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _let_go_of_stdout()  # or the end of the program would try once more
        said = error.strerror or str(error)
        return _fail(f"{error.filename}: {said}" if error.filename else said)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return _fail(extras.missing(error.name))
        return _fail(f"{error.name or 'a package'} cannot be imported ({error}); see `batchyard doctor`")
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return TERMINATED


def _let_go_of_stdout() -> None:
    """Drop what is still to be written to stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(signum: int, frame: object) -> NoReturn:
    raise Terminated


def _fail(text: str, status: int = 1) -> int:
    print(f"batchyard: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
