"""A client's sessions, one after another: the current one, and calls that outlive it.

A call that loses its broker goes on in the next session, which the first thread to need it makes. It
waits for a broker as long as its caller waits for it; a call that is new waits no longer than the
connect timeout.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from ..transport.errors import BatchyardError, BrokerLost
from .connection import LOOK_AROUND_MS, Connection
from .resubmit import may_ask_again, nobody_came, not_again
from .session import Session, Settings

RETRY_S = 0.02  # between two attempts at a connection

T = TypeVar("T")


class Sessions:
    """`current` is None before the first call and after the last."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.current: Session | None = None
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._closed = False
        self._bytes_copied_before = 0  # by sessions that are over

    @property
    def bytes_copied(self) -> int:
        """Bytes that were copied into shared memory so far."""
        session = self.current
        memory = session.memory if session is not None else None
        return self._bytes_copied_before + (memory.bytes_copied if memory is not None else 0)

    def open(self) -> Session:
        """The session, made anew if there is none or the broker of the last one went away. Raises
        BrokerLost when the client has been closed."""
        with self._lock:
            if self._closed:
                raise BrokerLost("this client has been closed")
            session = self.current
            if session is None or session.lost:
                if session is not None:
                    self._retire(session)
                session = self.current = Session(self.settings, self._numbers)
            return session

    def _retire(self, session: Session) -> None:
        if session.memory is not None:
            self._bytes_copied_before += session.memory.bytes_copied
        session.close()

    def use(
        self,
        work: Callable[[Session, Connection], T],
        give_up_s: float,
        model: str = "",
        *,
        keep: bool = False,
        lost: str = "",
    ) -> T:
        """Do something on a connection of the calling thread's own, and once more on the next one's
        whenever the broker goes away under it, until `give_up_s` (time.monotonic).

        model: of which a request is made; done once more if the model is idempotent, or if a broker
            that was restarted while we were idle does not know us: it has run nothing of ours.
        keep: `work` keeps the connection, to give it back or discard it later.
        lost: how the caller has lost its broker already.
        """
        # In words: the error itself would keep the lost session, by way of its traceback.
        lost_s = time.monotonic() if lost else 0.0
        while True:
            session = self.current
            if session is None or session.lost:
                session = self.open()
            try:
                connection = session.borrow(give_up_s)
            except BatchyardError as error:
                if not lost:
                    if not (session.lost and isinstance(error, BrokerLost)):
                        raise  # nobody is there, or we are not let in
                    lost, lost_s = str(error), time.monotonic()
                self._pause(lost, lost_s, give_up_s, error)
                continue
            try:
                result = work(session, connection)
            except BrokerLost as error:
                session.discard(connection)
                signature = session.signatures.get(model)
                if not may_ask_again(error, signature, alone=True):
                    raise not_again(error, signature) from error
                if not lost:
                    lost, lost_s = str(error), time.monotonic()
                else:
                    self._pause(lost, lost_s, give_up_s, error)
            except BaseException:
                session.give_back(connection)
                raise
            else:
                if not keep:
                    session.give_back(connection)
                return result

    @staticmethod
    def _pause(lost: str, lost_s: float, give_up_s: float, error: BatchyardError) -> None:
        """Wait a little before the next attempt. Raises BrokerLost when there is no time for one."""
        now_s = time.monotonic()
        if now_s >= give_up_s - LOOK_AROUND_MS / 2e3:
            why = "" if isinstance(error, BrokerLost) else error
            raise nobody_came(lost, now_s - lost_s, why) from error
        time.sleep(min(RETRY_S, give_up_s - now_s))

    def abandon(self) -> Session | None:
        """Forget the session without closing it: its sockets and memory are another process's."""
        self._lock = threading.Lock()
        session, self.current = self.current, None
        return session

    def close(self) -> None:
        """Close the session, and make no other. Calls under way come to their own end. Idempotent."""
        with self._lock:
            self._closed = True
            session, self.current = self.current, None
        if session is not None:
            self._retire(session)
