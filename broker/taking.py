"""The head of a lane on a worker, and the parts of a batch: by virtual deadline, in time.

policy.py decides which lane, when, and how much. A part that could not be in time on this worker is set
aside, and goes when nothing else of its lane waits.

Pure: no clock, no sockets.
"""

from __future__ import annotations

from heapq import heappop, heappush

from ..transport.messages import Priority
from .lanes import NOTHING_FIRST, Entry, Lane
from .neighbours import NO_DEADLINES_NS, WINDOW, Neighbours
from .ragged import RaggedLane
from .requests import NEVER_NS, Part
from .serving import Worker
from .timing import TimeModel
from .waiting import Heads

ASIDE_MAX = 128  # parts that are found to be too late in one look


def heads(lane: Lane, worker: Worker | None = None, starts_ns: int = 0) -> Heads | None:
    """The head of the lane on this worker; None when nothing waits, or it does not serve the model.

    A part that could not be in time if it began at `starts_ns` is set aside, and counts only when nothing
    else waits. It is looked at again every time: another worker may be free sooner, or quicker.
    """
    timing = None
    far_ns = rows_max = 0
    if worker is not None:
        timing = worker.timing(lane)
        if timing is None:
            return None
        far_ns = starts_ns + timing.longest_ns
        rows_max = worker.rows_max[lane.model_name]
    if lane.is_empty():
        return None
    lane.due_ns = due_ns = first_ns = NEVER_NS
    lane.first = NOTHING_FIRST
    due_class = first_class = -1
    aside = 0
    if lane.late:
        lane.call_back()
    for priority, heap in enumerate(lane.heaps):
        is_head = True
        while heap:
            head_ns, _, part = heap[0]
            request = part.request
            if request.ended or part.start == part.stop:
                heappop(heap)
                continue
            if is_head:
                is_head = False
                if head_ns < lane.due_ns:
                    lane.due_ns = head_ns
                if lane.first == NOTHING_FIRST:
                    lane.first = priority, head_ns
            if 0 < request.deadline_ns < far_ns and _is_late(part, rows_max, starts_ns, timing):
                heappush(lane.late, heappop(heap))
                aside += 1
                if aside > ASIDE_MAX:
                    break  # the next look goes on here
                continue
            if first_class < 0:
                first_class, first_ns = priority, head_ns
            if head_ns < due_ns:
                due_ns, due_class = head_ns, priority
            break
    if lane.retries and (again := _retry_heads(lane)) is not None:
        return again
    if due_class < 0 and lane.late:
        due_ns = first_ns = lane.late[0][0]
        due_class = first_class = lane.late[0][2].request.priority
    return (due_ns, due_class, first_class, first_ns) if due_class >= 0 else None


def _retry_heads(lane: Lane) -> Heads | None:
    """The heads of the group that goes before everything; None without a live one."""
    first: Heads | None = None
    living: list[list[Part]] = []
    for group in lane.retries:
        live = [part.request for part in group if not part.request.ended]
        if live:
            due_ns = min(request.virtual_ns for request in live)
            priority = min(request.priority for request in live)
            lane.due_ns = min(lane.due_ns, due_ns)
            lane.first = min(lane.first, (priority, due_ns))
            first = first or (due_ns, priority, priority, due_ns)
            living.append(group)
    lane.retries = living
    return first


def _is_late(part: Part, rows_max: int, starts_ns: int, timing: TimeModel | None) -> bool:
    rows = min(part.stop - part.start, rows_max)
    return timing is not None and part.request.deadline_ns < starts_ns + timing.predict_ns(rows)


def take_rows(
    lane: Lane,
    rows_max: int,
    starts_ns: int = 0,
    timing: TimeModel | None = None,
    begin: int = -1,
    lower_max: int = 0,
    late_rows: int = 0,
) -> list[Part]:
    """Remove and return up to `rows_max` rows of parts; the last may be split. In order of virtual deadline,
    but all of class `begin` first, unless that is -1.

    With a time model: no more than are expected to be done by the nearest of their deadlines, when the batch
    starts at `starts_ns`. Parts that can't be in time any more go only when nothing else waits.
    `lower_max`: lower classes must not make the batch larger than so many rows; 0: they may.
    `late_rows`: a part is too late when so many rows of it would be.
    """
    late_rows = late_rows or rows_max
    if lane.is_alone:
        rows_max, lower_max = 1, 0
    elif isinstance(lane, RaggedLane):
        return _take_neighbours(lane, rows_max, starts_ns, timing, begin, lower_max, late_rows)
    taken: list[Part] = []
    total = 0
    aside = 0
    nearest_ns = 0  # of the deadlines of what is taken; 0: none
    far_ns = starts_ns + timing.longest_ns if timing is not None else 0
    full = [heap for heap in lane.heaps if heap]
    only = full[0] if len(full) == 1 else None  # mostly there is but one class
    while total < rows_max:
        heap = only or _next_heap(lane, begin)
        if heap is None or aside > ASIDE_MAX:
            if taken or not lane.late:
                break
            heap, timing = lane.late, None
        entry = heappop(heap)
        part = entry[2]
        request = part.request
        rows = part.stop - part.start
        if part.is_over:
            continue
        deadline_ns = request.deadline_ns
        # Only where a deadline is nearer than the longest run does it matter how much nearer.
        is_near = 0 < deadline_ns < far_ns
        if is_near and _is_late(part, late_rows, starts_ns, timing):
            heappush(lane.late, entry)
            aside += 1
            continue
        most = lower_max if lower_max and request.priority != Priority.URGENT else rows_max
        room = most - total
        if rows > room and not (lane.is_alone and not taken):
            if taken and (rows <= rows_max or room <= 0):
                heappush(heap, entry)  # it fits into a batch whole: don't cut it in two
                break
            lane.split(entry, room)
            rows = room
        if timing is not None and (is_near or nearest_ns):
            ends_ns = starts_ns + timing.predict_ns(total + rows)
            if taken and 0 < nearest_ns < ends_ns:
                heappush(heap, entry)
                break
            if is_near and ends_ns <= deadline_ns and (not nearest_ns or deadline_ns < nearest_ns):
                nearest_ns = deadline_ns
        taken.append(part)
        total += rows
        lane.taken(part)
    return taken


def _next_heap(lane: Lane, begin: int) -> list[Entry] | None:
    """Where the next part comes from: the class to begin with, else the earliest virtual deadline."""
    if begin >= 0 and lane.heaps[begin]:
        return lane.heaps[begin]
    best: list[Entry] | None = None
    for heap in lane.heaps:
        if heap and (best is None or heap[0][0] < best[0][0]):
            best = heap
    return best


def _take_neighbours(
    lane: RaggedLane,
    rows_max: int,
    starts_ns: int,
    timing: TimeModel | None,
    begin: int,
    lower_max: int,
    late_rows: int,
) -> list[Part]:
    """As `take_rows`; but behind the head come its neighbours in size, not in time."""
    window = max(WINDOW, 2 * rows_max)
    far_ns = starts_ns + timing.longest_ns if timing is not None else 0
    entries: list[Entry] = []
    aside = 0
    while len(entries) < window and aside <= ASIDE_MAX and (heap := _next_heap(lane, begin)) is not None:
        entry = heappop(heap)
        part = entry[2]
        if part.is_over:
            continue
        if 0 < part.request.deadline_ns < far_ns and _is_late(part, late_rows, starts_ns, timing):
            heappush(lane.late, entry)
            aside += 1
        else:
            entries.append(entry)
    if not entries:
        starts_ns = NO_DEADLINES_NS
        while lane.late and len(entries) < window:
            entry = heappop(lane.late)
            if not entry[2].is_over:
                entries.append(entry)
    if not entries:
        return []
    batch = Neighbours(lane, rows_max, starts_ns, timing, lower_max)
    rows = batch.rows_of_head(entries[0][2])
    if rows < entries[0][2].stop - entries[0][2].start:
        lane.split(entries[0], rows)
    parts = batch.of(entries)
    kept = set(map(id, parts))
    for entry in entries[1:]:
        if id(entry[2]) not in kept:
            lane.put_back(entry)
    for part in parts:
        lane.taken(part)
    return parts
