"""Deaths of processes, as the kernel tells of them: a pidfd tells in milliseconds, and its pid is not used
again meanwhile. Which process a connection is from, the wire says (`Peer.credentials`).
"""

from __future__ import annotations

import os
import select
import signal
import sys

HAS_PIDFD = sys.platform == "linux" and hasattr(os, "pidfd_open")


class Sentinels:
    """Deaths of processes, as one descriptor to poll. Empty and harmless where there are no pidfds."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if HAS_PIDFD else None
        self._worker_by_pidfd: dict[int, int] = {}
        self._pidfd_by_worker: dict[int, int] = {}

    @property
    def fd(self) -> int | None:
        return self._epoll.fileno() if self._epoll else None

    def watch(self, worker: int, pid: int) -> bool:
        """Watch a worker's process. False where its death can't be watched, or it is dead already."""
        if self._epoll is None:
            return False
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        self._worker_by_pidfd[pidfd] = worker
        self._pidfd_by_worker[worker] = pidfd
        self._epoll.register(pidfd, select.EPOLLIN)
        return True

    def kill(self, worker: int) -> bool:
        """End a worker's process for sure; its death is then reported by `dead()`. False: not watched."""
        pidfd = self._pidfd_by_worker.get(worker)
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            pass  # already dead: dead() says so
        return True

    def dead(self) -> list[int]:
        """The workers whose processes have ended since the last call."""
        if self._epoll is None:
            return []
        workers = []
        for pidfd, _ in self._epoll.poll(0):
            workers.append(self._worker_by_pidfd[pidfd])
            self.forget(workers[-1])
        return workers

    def forget(self, worker: int) -> None:
        """Stop watching. Idempotent."""
        pidfd = self._pidfd_by_worker.pop(worker, None)
        if pidfd is not None and self._epoll is not None:
            del self._worker_by_pidfd[pidfd]
            self._epoll.unregister(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        for worker in list(self._pidfd_by_worker):
            self.forget(worker)
        if self._epoll is not None:
            self._epoll.close()
