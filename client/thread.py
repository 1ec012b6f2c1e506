"""The I/O thread behind `submit`: an engine on one connection after another, and its requests' futures.

A submitting thread checks its request itself, and copies it into its slots; the thread sends everything that
has gathered as one message. While the thread sleeps, whoever submits one sends it himself, which spares the
request a thread's waking; of many in a row, the first.

A request that cannot be placed at once, because there is no connection, no signature, or no room, is the
thread's to place, and the submitting thread waits for that. Done-callbacks run on this thread, so what they
submit leaves as one message too.
"""

from __future__ import annotations

import socket
import threading
import time
from _thread import TIMEOUT_MAX, LockType, RLock, allocate_lock
from collections import deque
from collections.abc import Callable

from ..transport.codec import encode
from ..transport.deadlines import SLEEP_MAX_MS, sleep_ms
from ..transport.errors import BrokerLost, Cancelled, DeadlineExceeded
from ..transport.wire import Full
from ..transport.wire.watch import Watch
from . import ending
from .connection import LOOK_AROUND_MS
from .future import InferFuture
from .link import RETRY_NS, Link, line_of
from .request import Request
from .session import Session, Sessions
from .signature import Signature

SLACK_S = 0.02  # how much later than the thread a caller sees that his time is up; see engine.GRACE_NS
IN_A_ROW_NS = 100_000  # what comes sooner after one that its caller sent is gathered
LIGHT_SLEEP_NS = 1_000_000_000  # so long after one, the thread looks up in time for others like it


class _WatchedLink(Link):
    def __init__(self, sessions: Sessions, bell: Callable[[], None], watch: Watch) -> None:
        super().__init__(sessions, bell)
        self._watch = watch
        self._watched: tuple[int, ...] = ()
        self._writes: int | None = None  # the descriptor that is watched for writing

    def watch(self) -> None:
        assert self.connection is not None
        self._watched = self.connection.wire.watched
        for fd in self._watched:
            self._watch.add(fd, _Ready(lambda: None))

    def watch_writing(self) -> None:
        """Watch for room to write, if that is waited for."""
        assert self.connection is not None
        blocked_on = self.connection.wire.blocked_on
        if blocked_on != self._writes:
            self._watch.want_write(self._watched[0], blocked_on is not None)
            self._writes = blocked_on

    def flush(self) -> None:
        """Write what waited for room."""
        if self._writes is not None and self.connection is not None:
            self.connection.wire.flush()

    def unwatch(self) -> None:
        for fd in self._watched:
            self._watch.remove(fd)
        self._watched = ()
        self._writes = None


class _Ready:
    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def ready(self, readable: bool, writable: bool) -> None:
        self._act()


class IoThread:
    """Runs from `start()`, with the first `submit`, to `close_by()`, or `leave()`."""

    def __init__(self, sessions: Sessions) -> None:
        self.ended: Exception | None = None
        self._sessions = sessions
        self._session: Session | None = None  # of the link, for who submits; None: there is no connection
        # From other threads: (request, the session that it has been placed in, or None). One that has been
        # cancelled comes a second time.
        self._inbox: deque[tuple[Request, Session | None]] = deque()
        # Callers who wait until their request has been placed, or has ended.
        self._callers: list[tuple[Request, InferFuture, LockType]] = []
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._watch = Watch()
        self._watch.add(self._wake_read.fileno(), _Ready(self._swallow))
        self._link = _WatchedLink(sessions, self._wake, self._watch)
        self._sleeping = False
        self._lock = RLock()  # for the next two; held while a request is sent by its caller
        self._lent = False  # the thread waits, and uses neither engine nor connection
        self._spoilt = False  # a signal's exception struck there: who knows what was written
        self._looks_up_ns = 0  # when the thread ends its sleep by itself
        self._direct_ns = 0  # when a caller last sent his request
        self._is_in_callback = False  # the thread is in a future's done-callbacks
        self._closing = False
        self._is_last = False  # the client is gone: the sessions are ours to close
        self._thread = threading.Thread(target=self._run, name="batchyard-io", daemon=True)

    def start(self) -> None:
        """Once."""
        try:
            ending.start(self._thread)
        except BaseException:  # a signal's, perhaps, and the thread runs: nobody else would ever end it
            self.stop()
            raise

    @property
    def busy(self) -> bool:
        """Whether any request of this thread has not given its slots back."""
        return bool(self._link.engine.pending)

    # ---- any thread ---------------------------------------------------------------------------

    def submit(self, request: Request) -> InferFuture:
        """Send a request on its way; its future ends its span. Raises what is wrong with the call, or why it
        could not be placed in time."""
        future = request.waiter = InferFuture(request, self.cancel, self.held_up)
        session = self._session
        signature = session.signatures.get(request.model) if session is not None else None
        if session is not None and signature is None and threading.current_thread() is not self._thread:
            signature = self._ask(request, session)
        if session is not None and signature is not None and not session.is_over:
            number = next(self._sessions.numbers)
            if request.place(signature, session.memory, number, request.began_ns):
                if (
                    not self._lent
                    or request.began_ns - self._direct_ns < IN_A_ROW_NS
                    or request.frames
                    or not self._send_here(request, session)
                ):
                    self._put((request, session))
                return future
        if threading.current_thread() is self._thread:
            self._submit_here(request)
        else:
            self._wait_until_placed(request, future)
        return future

    def _send_here(self, request: Request, session: Session) -> bool:
        """Send a placed request on the calling thread. False: the I/O thread has to."""
        with self._lock:
            if not self._lent:
                return False
            self._lent = False  # also for a signal's handler, on this very thread
            try:
                connection = self._link.connection
                if connection is None or session is not self._session or not connection.wire.sends_beside:
                    return False
                connection.wire.send((encode((request.message,)),))
                request.is_sent = True
                self._inbox.append((request, session))
            except Full:
                return False
            except BaseException:
                self._spoilt = True
                self._wake()
                raise
            finally:
                self._lent = True
            self._direct_ns = request.began_ns
            if request.due_ns < self._looks_up_ns or connection.wire.unsent:
                self._wake()
        return True

    def _ask(self, request: Request, session: Session) -> Signature | None:
        """Ask for a signature on a line of the calling thread: this thread may be in a callback."""
        line = line_of(self._sessions)
        try:
            left_s = (request.due_ns - time.monotonic_ns()) / 1e9
            Signature(line.describe(request.model, left_s)[0])
        finally:
            line.leave()
        return session.signatures.get(request.model)

    def _submit_here(self, request: Request) -> None:
        """From a done-callback, for which nobody else would place it: it waits in the engine."""
        engine = self._link.engine
        if engine.session is None:
            raise BrokerLost("there is no broker now, and a callback on the I/O thread can't wait for one")
        request.keep()
        engine.submit(request, time.monotonic_ns())
        if isinstance(request.outcome, Exception):
            raise request.outcome

    def _wait_until_placed(self, request: Request, future: InferFuture) -> None:
        placed = allocate_lock()
        placed.acquire()
        self._callers.append((request, future, placed))
        try:
            self._put((request, None))
            left_s = (request.due_ns - time.monotonic_ns()) / 1e9 + SLACK_S
            if not placed.acquire(timeout=min(max(0.0, left_s), TIMEOUT_MAX)):
                raise self.held_up(request)
        except BaseException:
            self.cancel(request)
            raise
        if request.message is None and future.done():
            error = future.exception(0)
            if error is not None:
                raise error

    def cancel(self, request: Request) -> None:
        """Cancel a request: nobody waits for it any more."""
        request.waiter = None
        self._put((request, None))

    def held_up(self, request: Request) -> DeadlineExceeded:
        """The error of a caller whose patience ended before the I/O thread reported anything."""
        waited_s = (time.monotonic_ns() - request.began_ns) / 1e9
        cause = "the client's I/O thread had no time to answer"
        if self._is_in_callback:
            cause = "a done-callback of this client has not returned, and requests share its thread"
        return DeadlineExceeded(f"no answer within {waited_s:.3g} s: {cause}")

    def _put(self, entry: tuple[Request, Session | None]) -> None:
        self._inbox.append(entry)
        try:
            if self._sleeping:
                self._sleeping = False
                self._wake()
        except BaseException:  # a signal's, perhaps between the two: whoever comes next would not wake it
            self._wake()
            raise
        if self.ended is not None:
            self._end_inbox(self.ended)

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"\0")
        except OSError:
            pass  # the thread has ended already, or has more than enough to be woken by

    def look(self) -> None:
        """Wake the thread: another session may have begun."""
        self._wake()

    def stop(self) -> None:
        """Tell the thread to end every request with Cancelled, and itself. Waits for nothing."""
        self._closing = True
        self._wake()

    def close_by(self, give_up_s: float) -> None:
        """`stop`, and return when that is done, or at `give_up_s` (time.monotonic): a callback may run for
        as long as it likes."""
        self.stop()
        if threading.current_thread() is not self._thread and not ending.is_finalizing():
            self._thread.join(max(0.0, give_up_s - time.monotonic()))

    def leave(self) -> None:
        """`stop`, and have the thread close the sessions at its end. For a destructor: that may run on any
        thread, and this one, too, with any lock held."""
        self._is_last = True
        self.stop()
        if self.ended is not None:
            self._sessions.close()

    # ---- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        error: Exception = Cancelled("the client was closed")
        try:
            while not self._closing:
                self._round()
        except BaseException as bug:  # also a callback's sys.exit(): or every future would wait for ever
            error = BrokerLost(f"the I/O thread failed: {type(bug).__name__}: {bug}")
            if self._link.session is not None:
                self._link.session.give_up()
        self._end(error)

    def _round(self) -> None:
        """Do what there is to be done, and sleep until there is more."""
        link, engine = self._link, self._link.engine
        self._collect()  # first of all: answers to what was sent beside this thread come after it
        if self._spoilt:
            self._spoilt = False
            if link.connection is not None:
                link.lose(BrokerLost("a signal's exception struck in the middle of a message"))
        while link.connection is not None and link.receive(0):
            self._settle()
            self._collect()
            if link.connection is not None:
                link.send()
        self._collect()
        session = link.session
        if link.connection is not None and session is not None and session.lost:
            link.lose(BrokerLost("the broker went away"))  # another call of this client has seen it
        elif session is not None and session.is_over and not engine.is_busy:
            link.close()  # see Sessions.renew
        now_ns = time.monotonic_ns()
        due_ns = engine.next_due_ns()
        if due_ns is not None and due_ns <= now_ns:
            engine.expire(now_ns)
        if link.connection is None:
            self._reconnect(now_ns)
        else:
            link.send()
            if engine.room and session is not None:
                session.recover_slots()
            link.watch_writing()
        if not self._settle() and (link.connection is not None or not engine.wants_connection):
            self._sleep()

    def _reconnect(self, now_ns: int) -> None:
        link = self._link
        self._session = None
        if not link.engine.wants_connection:
            link.drop_greeting()
        elif now_ns < link.retry_ns:
            self._sleep(RETRY_NS // 1_000_000)
        elif link.connect(min(LOOK_AROUND_MS, sleep_ms(link.engine.next_due_ns(), now_ns))):
            link.watch()
            self._session = link.session
            link.send()

    def _sleep(self, at_most_ms: int = SLEEP_MAX_MS) -> None:
        self._sleeping = True
        connection = self._link.connection
        if not self._inbox and not self._closing and (connection is None or not connection.wire.unread):
            now_ns = time.monotonic_ns()
            sleeps_ms = min(at_most_ms, sleep_ms(self._link.engine.next_due_ns(), now_ns))
            if now_ns - self._direct_ns < LIGHT_SLEEP_NS:
                sleeps_ms = min(sleeps_ms, LIGHT_SLEEP_NS // 1_000_000)
            self._looks_up_ns = now_ns + sleeps_ms * 1_000_000
            self._lent = True
            self._watch.wait(sleeps_ms)
            with self._lock:
                self._lent = False
            self._link.flush()
        self._sleeping = False

    def _swallow(self) -> None:
        try:
            self._wake_read.recv(4096)
        except BlockingIOError:
            pass

    def _collect(self) -> None:
        """Hand what other threads have left to the engine."""
        inbox, engine = self._inbox, self._link.engine
        if not inbox:
            return
        now_ns = time.monotonic_ns()
        while inbox:
            request, session = inbox.popleft()
            if session is not None:
                if request.waiter is None and request.outcome is None:
                    request.outcome = Cancelled("the caller cancelled it")
                engine.adopt(request, session, now_ns)
            elif request.waiter is None:
                engine.cancel(request)
            else:
                engine.submit(request, now_ns)

    def _settle(self) -> bool:
        """End the futures of what has ended. Whether there was any."""
        if self._callers:
            self._tell_callers()
        for stream in self._link.engine.take_streams():
            stream.bell()
        outcomes = self._link.engine.take_outcomes()
        try:
            for request in outcomes:
                future = request.waiter
                if future is not None:
                    self._is_in_callback = future.has_callbacks
                    future.settle(request.take())
        finally:
            self._is_in_callback = False
        if self._callers:
            self._tell_callers()
        return bool(outcomes)

    def _tell_callers(self) -> None:
        for entry in list(self._callers):
            request, future, placed = entry
            if request.message is not None or future.done():
                self._callers.remove(entry)
                placed.release()

    def _end(self, error: Exception) -> None:
        """The thread is over, and so is everything under way."""
        self.ended = error
        self._session = None
        self._end_inbox(error)
        self._link.engine.end(error)
        try:
            self._settle()
        finally:
            self._link.close()
            self._watch.close()
            self._wake_read.close()
            self._wake_write.close()
            if self._is_last:
                self._sessions.close()

    def _end_inbox(self, error: Exception) -> None:
        while self._inbox:
            try:
                request, _ = self._inbox.popleft()
            except IndexError:
                break  # another thread was faster
            future = request.waiter
            if request.outcome is None:
                request.outcome = error
            if future is not None:
                future.settle(request.take())
        self._tell_callers()
