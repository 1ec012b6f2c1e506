"""One client process of `bench load`: a schedule on stdin, its outcome on stdout. load.py starts it.

Latencies go out as the counts of an HDR histogram of 3 digits (hdrhistogram.org), for each priority.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from . import models
from .loops import Send, scheduled_loop

MICROSECONDS_MAX = 60_000_000
DIGITS = 3


def histogram() -> Any:
    """An empty one, of microseconds."""
    from hdrh.histogram import HdrHistogram

    return HdrHistogram(1, MICROSECONDS_MAX, DIGITS)


def main() -> int:
    from ..client import Client, Priority

    given = json.load(sys.stdin)
    classes: list[Any] = [Priority[name] for name in given["priorities"]]
    sends = [Send(at_ns, classes[index], deadline_s) for at_ns, index, deadline_s in given["sends"]]
    x = models.sample(given["model"])
    with Client(given["url"]) as connected:
        client: Any = connected
        client.infer(given["model"], x)
        print("ready", flush=True)
        time.sleep(max(0.0, float(sys.argv[1]) - time.monotonic()))  # all begin at one time
        warm_up_s, seconds = given["warm_up_s"], given["seconds"]
        measured = scheduled_loop(client, given["model"], [x], sends, seconds, warm_up_s=warm_up_s)
    histograms = {}
    for name, latencies_ns in measured.by_priority_ns.items():
        each = histogram()
        for latency_ns in latencies_ns:
            each.record_value(min(MICROSECONDS_MAX, max(1, latency_ns // 1000)))
        histograms[name] = each.encode().decode()
    late = {"late_sends": measured.late_sends, "late_worst_ns": measured.late_worst_ns}
    print(json.dumps({"histograms": histograms, "errors": measured.errors, "sent": len(sends)} | late))
    return 0


if __name__ == "__main__":
    sys.exit(main())
