"""A batch that has run: the answers to its requests, and the counts.

Most requests are whole, in a lane with others, and have their outputs in their slots: they are answered with
one message a connection, and leave the books together. The others (in parts, with outputs elsewhere, shared,
or over meanwhile) are looked at one by one.

Part of the core: pure, with the time as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..transport import messages as m
from ..transport.errors import Code
from . import events as e
from .books import Books
from .requests import MIXED, Request
from .serving import Batch


def deliver(
    books: Books, batch: Batch, message: m.Done, frames: Sequence[Any], now_ns: int
) -> list[int]:
    """End the requests that are whole. The rows that have run, by class."""
    receipt = batch.receipt(message, now_ns)
    if batch.elements:
        batch.model.padded(batch.elements + message.padding, message.padding)
        books.counters.padded(batch.model.name, batch.elements + message.padding, message.padding)
    elsewhere: dict[int, Any] = {}
    if message.inline_outputs:
        elsewhere = {entry.item: entry.outputs for entry in message.inline_outputs}
    completed: dict[int, m.Completed] = {}
    finished: list[Request] = []
    together: list[Request] = []
    ran = [0, 0, 0, 0]  # rows, by class
    for index, part in enumerate(batch.parts):
        request = part.request
        rows = part.stop - part.start
        request.rows_leased -= rows
        request.rows_done += rows
        ran[request.priority] += rows
        is_plain = rows == request.rows and request.key is None and index not in elsewhere
        if is_plain and not request.ended:
            together.append(request)
        else:
            if index in elsewhere:
                if request.parts is None:
                    request.parts = []
                request.parts.append((part.start, elsewhere[index], frames))
            if request.key is not None and not request.rows_leased:
                whole = rows == request.rows and index not in message.changed
                books.share(request, whole, batch, receipt, now_ns)
            queue_ns = batch.sent_ns - request.arrived_ns
            if rows < request.rows:
                request.add_piece(receipt, queue_ns)
            if not _is_whole(books, batch, request, rows):
                continue
            books.end(request, "ok")
            books.release(request)
            own = receipt
            if request.receipt is not None:
                own, queue_ns = request.receipt, request.queue_ns
            if request.parts is not None or (request.key is not None and rows == request.rows):
                if _answer(books, request, queue_ns, own):
                    finished.append(request)
                continue
            if own is not receipt:
                books.actions.append(e.ToClient(request.conn, m.Completed([request.id], [queue_ns], own)))
                finished.append(request)
                continue
        conn = request.conn
        queue_ns = batch.sent_ns - request.arrived_ns
        reply = completed.get(conn)
        if reply is not None:
            reply.requests.append(request.id)
            reply.queue_ns.append(queue_ns)
        else:
            reply = completed[conn] = m.Completed([request.id], [queue_ns], receipt)
            books.actions.append(e.ToClient(conn, reply))
        finished.append(request)
    if together:
        books.end_together(batch.lane, together)
    books.counters.unaccounted.append((batch, message, finished, now_ns))
    return ran


def _is_whole(books: Books, batch: Batch, request: Request, rows: int) -> bool:
    """Whether the request is done, and all of it is of one revision. Otherwise it is dealt with here."""
    if request.ended:
        books.release_if_free(request)
        return False
    if rows < request.rows and request.revision != batch.revision:
        request.revision = MIXED if request.revision else batch.revision
    if request.rows_done < request.rows:
        return False
    if request.revision == MIXED:
        books.start_over(request)
        return False
    return True


def _answer(books: Books, request: Request, queue_ns: int, receipt: m.BatchReceipt) -> bool:
    """Reply with outputs that lie elsewhere than in slots; False: they are not there, and it failed."""
    result = request.gathered()
    if result is not None:
        answer = m.Answer(request.id, queue_ns, receipt, result[0])
        if len(answer.parts) > 1:
            answer.axes = request.model.batch_axes[len(request.inputs) :]
        books.actions.append(e.ToClient(request.conn, answer, result[1]))
        return True
    books.counters.refuse("missing_frame")
    books.counters.end(request.model.name, request.priority, Code.WORKER_LOST.name.lower())
    failed = m.Failed(request.id, Code.WORKER_LOST, "a worker's answer lacked its tensors")
    books.actions.append(e.ToClient(request.conn, failed))
    return False
