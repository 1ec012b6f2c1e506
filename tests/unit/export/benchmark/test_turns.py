"""Nobody works while another measures, and nobody waits for ever."""

from __future__ import annotations

import threading

from batchyard.export.benchmark.exporters import Turns

THREADS = 6
TIMES = 50
LIMIT_S = 60


def test_whoever_measures_is_alone_and_all_come_to_their_end() -> None:
    turns = Turns()
    lock = threading.Lock()
    working, measured, wrong = set[int](), list[int](), list[str]()

    def candidate(number: int) -> None:
        for _ in range(TIMES):
            with turns.work():
                with lock:
                    working.add(number)
                with lock:
                    working.remove(number)  # at rest
                with turns.measure(), lock:
                    measured.append(number)
                    if working:
                        wrong.append(f"{number} measured beside {working}")
                with lock:
                    working.add(number)
                with lock:
                    working.remove(number)

    threads = [threading.Thread(target=candidate, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert len(measured) == THREADS * TIMES
