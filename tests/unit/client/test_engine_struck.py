"""An exception of a signal's handler at any instruction of the engine: its driver loses the connection and ends who
is in no table, and afterwards every request has one outcome, which is its own answer or says that it was lost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from batchyard.client.reply import Reply
from batchyard.client.request import Request
from batchyard.tests.unit.client.yard import MS, RECEIPT, Side, info
from batchyard.transport import messages as m
from batchyard.transport.errors import BrokerLost, Code

from ...striking import CLIENT, CutOff, struck

ROWS = 2
BIG = 18_000  # rows: a second such request has no room in the arena of 1 MiB


class Crowd:
    """A side with requests in every state; `asked` are those that wait for an outcome."""

    def __init__(self) -> None:
        self.side = Side()
        self.side.connect()
        self.asked: dict[Request, float] = {}
        self.questions: list[Request] = []
        for number in range(2):
            self.submit(number)
        self.submit(5, model="other")
        self.question()
        self.side.sent()
        self.submit(2)
        self.submit(3, BIG)
        self.submit(4, BIG)

    def submit(self, number: float, rows: int = ROWS, model: str = "net") -> None:
        request = self.side.request(np.full((rows, 4), number, np.float32), model=model)
        self.asked[request] = number
        self.side.engine.submit(request, self.side.now_ns)

    def question(self) -> None:
        question = self.side.request(None, model="net")
        self.questions.append(question)
        self.side.engine.ask(question, self.side.now_ns)

    def mend(self) -> None:
        self.side.lose()
        self.side.engine.end_strays([*self.asked, *self.questions], BrokerLost("struck"))

    def go_on(self) -> None:
        """Another broker answers whatever it is asked."""
        self.side.engine.take_outcomes()
        self.side.connect(knows=False)
        answered: set[int] = set()
        for _ in range(20):
            for message in self.side.sent():
                if isinstance(message, m.Describe):
                    self.side.hear(m.Described(message.request, [info(name=message.model)]))
                elif isinstance(message, m.Submit):
                    assert message.request not in answered
                    answered.add(message.request)
                    request = self.side.engine.pending[message.request]
                    if request in self.asked:
                        x = self.side.read(request)
                        self.side.write(request, np.full((len(x), 3), x[0, 0], np.float32))
                    self.side.hear(m.Completed([message.request], [5], RECEIPT))

    def check(self, place: str) -> None:
        engine = self.side.engine
        for request, number in self.asked.items():
            outcome = request.outcome
            assert outcome is not None, f"{place}: {number} has no outcome"
            if isinstance(outcome, Reply):
                assert (outcome.value == number).all(), f"{place}: {number} has the answer of another"
            else:
                assert isinstance(outcome, BrokerLost | CutOff), f"{place}: {number}: {outcome!r}"
        for question in self.questions:
            assert question.outcome is not None, f"{place}: a question has no outcome"
        assert not engine.pending, f"{place}: {engine.pending}"
        assert not engine.is_busy, place


def described(crowd: Crowd) -> None:
    (number,) = [n for n, request in crowd.side.engine.pending.items() if request.model == "other"]
    crowd.side.hear(m.Described(number, [info(name="other")]))


def completed(crowd: Crowd) -> None:
    requests = [request for request in crowd.asked if request.is_sent][:2]
    for request in requests:
        x = crowd.side.read(request)
        crowd.side.write(request, np.full((len(x), 3), x[0, 0], np.float32))
    crowd.side.engine.received(
        [m.Completed([request.message.request for request in requests], [5, 5], RECEIPT)], (), crowd.side.now_ns
    )


def failed(crowd: Crowd) -> None:
    number = next(iter(crowd.asked)).message.request
    crowd.side.engine.received([m.Failed(number, Code.BROKER_LOST, "it was")], (), crowd.side.now_ns)


def submitted(crowd: Crowd) -> None:
    crowd.submit(6)


def asked(crowd: Crowd) -> None:
    crowd.question()


def room_came(crowd: Crowd) -> None:
    waiting = [request for request in crowd.asked if request.want is not None]
    large = next(request for request in crowd.asked if request.rows == BIG and request not in waiting)
    crowd.side.write(large, np.full((BIG, 3), crowd.asked[large], np.float32))
    crowd.side.engine.received([m.Completed([large.message.request], [5], RECEIPT)], (), crowd.side.now_ns)
    crowd.side.engine.expire(crowd.side.now_ns + 1)


def time_passed(crowd: Crowd) -> None:
    crowd.side.engine.next_due_ns()
    crowd.side.engine.expire(crowd.side.now_ns + 100 * MS)


def sent(crowd: Crowd) -> None:
    crowd.side.engine.take_envelopes()


def lost_and_connected(crowd: Crowd) -> None:
    crowd.side.lose()
    crowd.side.connect(knows=False)


def refused(crowd: Crowd) -> None:
    crowd.side.hear(m.Refused(Code.UNKNOWN_CONNECTION, "restarted"))


@pytest.mark.parametrize(
    "act", [described, completed, failed, submitted, asked, room_came, time_passed, sent, lost_and_connected, refused]
)
def test_nobody_is_lost_and_nobody_gets_the_answer_of_another(act: Callable[[Crowd], None]) -> None:
    places, is_within = 0, True
    while is_within:
        places += 1
        crowd = Crowd()
        is_within = struck(lambda crowd=crowd: act(crowd), places, CLIENT)
        if is_within:
            crowd.mend()
        else:
            crowd.side.lose()
        crowd.go_on()
        crowd.check(f"struck at look {places}")
        crowd.side.close()
    assert places > 5
