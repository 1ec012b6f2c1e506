"""`python -m batchyard.tools.scraper URL`: fetches a page once a second, as Prometheus would, until SIGTERM.

A process of its own: a thread of the load generator's would hold up the load.
"""

from __future__ import annotations

import contextlib
import sys
import time
import urllib.request

INTERVAL_S = 1.0
TIMEOUT_S = 0.8


def main(url: str) -> None:
    print("ready", flush=True)  # what comes before costs more processor time than many pages
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=TIMEOUT_S) as page:
            page.read()  # nobody may answer: that is one of the cases
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main(sys.argv[1])
