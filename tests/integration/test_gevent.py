"""A client in a process that gevent has patched (gunicorn -k gevent, locust, celery -P gevent): every verb
answers, and other greenlets run meanwhile. gevent takes epoll out of `select`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from batchyard import serve
from batchyard.client import Yard

pytest.importorskip("gevent", reason="gevent is not installed")

PATCHED = """
from gevent import monkey; monkey.patch_all()
import select, sys, time, gevent
assert not hasattr(select, "epoll")
import batchyard
import numpy as np
url, verb = sys.argv[1:]
x = np.arange(4, dtype=np.float32)[None]
turns = 0
def others():
    global turns
    while True:
        turns += 1
        gevent.sleep(0)
gevent.spawn(others)
with batchyard.Client(url) as client:
    give_up_s = time.monotonic() + 20
    while turns < 2 and time.monotonic() < give_up_s:  # an answer may be there before anybody has to wait
        if verb == "infer":
            found = client.infer("neg", x)
        elif verb == "submit":
            found = client.submit("neg", x).result(30)
        elif verb == "map":
            found = list(client.map("neg", [x] * 20))[-1]
        else:
            calls = [gevent.spawn(lambda: [client.infer("neg", x) for _ in range(5)]) for _ in range(10)]
            gevent.joinall(calls, raise_error=True)
            found = calls[-1].value[-1]
print(found.tolist(), turns > 1)
"""


@pytest.fixture(scope="module")
def yard(neg_model: Path) -> Iterator[Yard]:
    with serve({"neg": neg_model}, threads=1) as made:
        yield made


@pytest.mark.parametrize("verb", ["infer", "submit", "map", "crowd"])
def test_every_verb_answers_in_a_patched_process(verb: str, yard: Yard) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PATCHED, yard.url, verb], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip() == "[[-0.0, -1.0, -2.0, -3.0]] True"
