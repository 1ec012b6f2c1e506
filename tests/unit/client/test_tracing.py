"""Where the stages of a request are laid between two readings of the client's clock, and what an untraced
program pays: nothing is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from batchyard.client.reply import Receipt
from batchyard.client.tracing import begin, stages
from batchyard.transport.errors import InvalidRequest
from hypothesis import given
from hypothesis import strategies as st

NS = st.integers(0, 10**10)


def receipt(queue_ns: int, gather_ns: int, compute_ns: int, scatter_ns: int, lent_ns: int, worker: int = 1) -> Receipt:
    return Receipt(queue_ns, gather_ns, compute_ns, scatter_ns, 1, 0, worker, "cpu", 1, 7, lent_ns)


@given(NS, NS, NS, NS, NS, NS, NS)
def test_stages_follow_each_other_and_lie_between_sending_and_the_answer(
    queue_ns: int, gather_ns: int, compute_ns: int, scatter_ns: int, lent_ns: int, sent_ns: int, took_ns: int
) -> None:
    ended_ns = sent_ns + took_ns
    laid = stages(receipt(queue_ns, gather_ns, compute_ns, scatter_ns, lent_ns), sent_ns, ended_ns)
    assert laid is not None
    assert sent_ns <= laid.queue[0] <= laid.queue[1] == laid.batch[0] <= laid.batch[1] == laid.reply[0]
    assert laid.reply[1] == ended_ns >= laid.reply[0]
    assert laid.batch[0] <= laid.compute[0] <= laid.compute[1] <= laid.batch[1]


@given(NS, NS, NS, NS, NS, NS)
def test_what_was_measured_keeps_its_length_and_the_rest_is_halved(
    queue_ns: int, gather_ns: int, compute_ns: int, scatter_ns: int, waited_ns: int, ways_ns: int
) -> None:
    lent_ns = waited_ns + gather_ns + compute_ns + scatter_ns
    laid = stages(receipt(queue_ns, gather_ns, compute_ns, scatter_ns, lent_ns), 0, queue_ns + lent_ns + ways_ns)
    assert laid is not None
    lengths = [end - begin for begin, end in (laid.queue, laid.batch, laid.compute)]
    assert lengths == [queue_ns, lent_ns, compute_ns]
    assert laid.batch[1] - laid.compute[1] == scatter_ns
    there, back = laid.queue[0], laid.reply[1] - laid.reply[0]
    assert there + back == ways_ns
    assert 0 <= there - back <= 1


def test_a_broker_that_says_less_leaves_the_worker_s_own_time_as_the_batch() -> None:
    laid = stages(receipt(100, 10, 20, 5, 0), 0, 1_000)
    assert laid is not None
    assert laid.batch[1] - laid.batch[0] == 35


def test_a_result_that_was_kept_has_no_stages() -> None:
    assert stages(receipt(0, 0, 0, 0, 0, worker=0), 0, 1_000) is None


def test_a_parent_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="text of a W3C header"):
        begin("digits", 2, b"00-" + b"a" * 32)  # type: ignore[arg-type]


def test_a_program_that_does_not_trace_never_loads_opentelemetry() -> None:
    code = (
        "import sys; import batchyard; from batchyard.client import tracing; batchyard.Client\n"
        f"assert tracing.begin('digits', 2, '00-{'a' * 32}-{'b' * 16}-01') is None\n"
        "sys.exit(any(name.split('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
