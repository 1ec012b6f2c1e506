"""cli/: the `batchyard` command, one file per verb. Imported by nobody."""

import signal
import sys

# A Ctrl-C while the command is loaded ends it at once, without a traceback; from then on main.py listens to
# it. Only where this process is the command: `python -m` has no name for it yet.
if sys.argv[:1] == ["-m"] or (sys.argv and sys.argv[0].endswith(("/batchyard", "\\batchyard"))):
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:
        pass  # not in the main thread
