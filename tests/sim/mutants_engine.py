"""Bugs to sow into the client's engine and its drivers: (name, file, text, text in its place); see mutants.py."""

from __future__ import annotations

EIN = "client/engine.py"
THREAD = "client/thread.py"
REQUEST = "client/request.py"
RESUBMIT = "client/resubmit.py"
MEMORY = "client/memory.py"
MAP = "client/map.py"
PACKING = "client/packing.py"
SIGNATURE = "client/signature.py"
ROOM = "client/room.py"
OUTBOX = "client/outbox.py"
ARRIVALS = "broker/arrivals.py"

ENGINE = [
    # ---- answers, and slots
    ("a result's input slots are never freed", EIN, "            if request.inputs:\n                memory.free(*request.inputs)\n", ""),
    ("an abandoned request's slots are never freed", EIN, "            if request.outcome is not None:\n                request.give_back(memory)\n                continue\n", "            if request.outcome is not None:\n                continue\n"),
    ("slots are freed twice", REQUEST, "            memory.free(*offsets)\n", "            memory.free(*offsets, *offsets[-1:])\n"),
    ("slots that a worker holds are freed", EIN, "request = (self.pending.get if message.held else self._give_back)(message.request)", "request = self._give_back(message.request)"),
    ("Released is not heard", EIN, "                for number in message.requests:  # type: ignore[union-attr]\n                    self._give_back(number)\n", "                pass\n"),
    ("a request is settled twice", EIN, "        if request.outcome is None:\n            request.outcome = outcome\n", "        if True:\n            request.outcome = outcome\n"),
    ("the broker is not told that nobody waits", EIN, "            self.outbox.entries.append((m.Cancel([message.request]), None))\n", "            pass\n"),
    ("an answer in frames keeps its slots", EIN, "        request = self._give_back(message.request)\n", "        request = self.pending.pop(message.request, None)\n"),
    ("the parts of an answer are joined backwards", REQUEST, "zip(*parts, strict=True), message.axes or", "zip(*parts[::-1], strict=True), message.axes or"),
    ("an outcome that was taken keeps its results", REQUEST, "            self.outcome = TAKEN\n", "            pass\n"),
    ("what could not be sent keeps its slots", EIN, "            request.message = None\n            self._give_back(message.request)\n", "            request.message = None\n            self.pending.pop(message.request, None)\n"),
    ("what could not be sent never ends", EIN, "                self._let_go(request)\n                self._end(request, error)\n", "                self._let_go(request)\n"),
    # ---- without a broker
    ("a lost connection's requests wait for ever", EIN, "                self._end(request, not_again(lost, request))\n", "                pass\n"),
    ("a request that lost its broker is dropped", EIN, "                    carried.setdefault(request.model, deque()).append(request)\n", "                    pass\n"),
    ("what must not run twice is sent again", RESUBMIT, "signature.idempotent or not request.is_sent:", "True:"),
    ("nothing is sent again", RESUBMIT, "signature.idempotent or not request.is_sent:", "not request.is_sent:"),
    ("what never left is not sent again", RESUBMIT, " or not request.is_sent:", ":"),
    ("what was alone on its connection may always run twice", RESUBMIT, "    return is_alone and isinstance(error, UnknownConnection)\n", "    return is_alone\n"),
    ("what a new broker does not know is never sent again", RESUBMIT, "    return is_alone and isinstance(error, UnknownConnection)\n", "    return False\n"),
    ("a message that was refused is sent again", RESUBMIT, "    if isinstance(error, MessageRefused):\n        return False\n", ""),
    ("what is sent again is what the caller has by now", REQUEST, "elif memory is not None and (array is None or tensor.offset in copied):", "elif memory is not None and array is None:"),
    ("a request is sent again with all its time", REQUEST, "        left_ns = self.until_ns - now_ns\n", "        left_ns = self.until_ns - self.began_ns + 10**9\n"),
    ("a request without a broker never expires", EIN, "                self._dues.add(due_ns, request)\n        fresh.clear()\n", "                if self.session is not None:\n                    self._dues.add(due_ns, request)\n        fresh.clear()\n"),
    ("what was cancelled without a broker is sent again", EIN, "                    if request.outcome is None:\n                        self._start(", "                    if True:\n                        self._start("),
    ("a request is sent again twice", EIN, "                    carried.setdefault(request.model, deque()).append(request)\n", "                    carried.setdefault(request.model, deque()).extend((request, request))\n"),
    ("what has come is asked for again", EIN, "            if request.outcome is not None or _is_our_own(request):\n                request", "            if _is_our_own(request):\n                request"),
    ("a broker that came back is said not to have come", RESUBMIT, "    if not has_broker:\n", "    if has_broker:\n"),
    ("lost memory is kept", REQUEST, "        self.given = self.layout = None\n", "        self.layout = None\n"),
    ("a closed client's waiting requests never end", EIN, "            self._end(request, error)\n            request.give_back(None)\n", "            request.give_back(None)\n"),
    ("memory is handed out again before it is given up", EIN, "            session.lost = True  # first of all: what is let go of below must not be handed out again\n", ""),
    ("a session that is over takes new requests", EIN, "        if session is not None and session.lost:  # another", "        if False:  # another"),
    ("who finds the session over waits as a first call does", EIN, "            request.pick_up(None, \"the broker went away\", now_ns)  # it has", "            # it has"),
    ("a first call waits for a broker as long as it likes", EIN, "                    due_ns = min(due_ns, request.began_ns + self._connect_timeout_ns)\n", "                    pass\n"),
    ("a refusal ends those who wait for another broker", EIN, "            if not request.lost:\n                self._end(request, error)\n", "            self._end(request, error)\n"),
    ("every request asks for the signature", EIN, "            elif model not in self._asked:\n", "            else:\n"),
    ("who waits for a model that can't be served is not told", EIN, "        for request in self._waiting.pop(model, ()):\n            self._end(request, error)\n", "        self._waiting.pop(model, ())\n"),
    # ---- a signal's exception between two instructions
    ("an interrupted loss forgets whose memory it was", EIN, "        session = self.session\n        memory = None\n", "        session, self.session = self.session, None\n        memory = None\n"),
    ("an interrupted stream begins anew", EIN, "        stream.count += 1  # first: a signal's exception in between must not have it asked for again\n        stream.answers.append(answer)\n", "        stream.answers.append(answer)\n        stream.count += 1\n"),
    ("what is in no table waits for ever", EIN, "            if request.outcome is None and id(request) not in known:\n", "            if False:\n"),
    # ---- room
    ("what has no room is forgotten", ROOM, "        self.wants.append(request)\n", "        pass\n"),
    ("what has no room waits though nothing will give any", ROOM, "        elif now_ns - memory.stuck_ns >= STUCK_NS:\n", "        elif False:\n"),
    ("who waits for room is told that there is none while some is owed", ROOM, "        elif memory.is_owed:\n", "        elif False:\n"),
    ("room goes to whoever comes next", MEMORY, "            if not self._line:\n                try:", "            if True:\n                try:"),
    ("who came last is first in line", MEMORY, "            self._line.append(want)\n", "            self._line.appendleft(want)\n"),
    ("room that nobody waits for any more is lost", MEMORY, "            self.free(*offsets)\n        elif self._line:\n            self._ring()  # who", "            pass\n        elif self._line:\n            self._ring()  # who"),
    ("who waits for room no longer stands in line", MEMORY, "                self._line.remove(want)\n", "                pass\n"),
    ("nobody is told that there is room", MEMORY, "        for bell in bells:\n            bell()\n", ""),
    # ---- what leaves, and when
    ("what has frames overtakes what was before it", OUTBOX, "                if messages:\n                    envelopes.append((messages, (), requests))\n                    messages, requests, leader = [], [], None\n                envelopes", "                envelopes"),
    ("what was let go is sent all the same", OUTBOX, "                continue  # it was let go before it was sent\n", "                pass\n"),
    ("requests of other rows go in one's columns", OUTBOX, "        or request.rows != leader.rows\n", ""),
    ("requests of other classes go in one's columns", OUTBOX, "        or request.priority != leader.priority\n", ""),
    ("requests of other shapes go in one's columns", OUTBOX, "        if mine.dtype != other.dtype or mine.shape != other.shape:\n            return False\n", ""),
    ("texts go in one's columns", OUTBOX, "        or not signature.is_uniform\n", ""),
    ("a message that takes others along stays so when it is sent again", OUTBOX, "                    messages[-1] = _leading(leader.message)\n", "                    leader.message.more = More([], [], [])\n"),
    # ---- columns, in the broker
    ("a number that is under way comes again in columns", ARRIVALS, "if len(set(numbers)) < count or not connection.requests.keys().isdisjoint(numbers):", "if len(set(numbers)) < count:"),
    ("a number comes twice in columns", ARRIVALS, "if len(set(numbers)) < count or not connection", "if not connection"),
    ("columns pass the bounds of rows", ARRIVALS, "connection.account, model, rows * count, nbytes * count,", "connection.account, model, rows, nbytes * count,"),
    ("columns pass the bounds of bytes", ARRIVALS, "connection.account, model, rows * count, nbytes * count,", "connection.account, model, rows * count, nbytes,"),
    ("only the first in columns is looked at", ARRIVALS, "            model.check_more(message, more, self._books.arenas[event.arena].nbytes)\n", ""),
    ("who has no time left is admitted with those who have", ARRIVALS, "        least_ns = min(left)\n", "        least_ns = left[0]\n"),
    ("the bytes of columns are counted as one request's", "broker/books.py", "        self.held_bytes += first.nbytes * count\n", "        self.held_bytes += first.nbytes\n"),
    ("an arena is held by one request of its columns", "broker/books.py", "        self.arenas[connection.arena].requests += count\n", "        self.arenas[connection.arena].requests += 1\n"),
    ("slots of columns may lie anywhere", "broker/signature.py", "            check_range(max(offsets[index::width]), slot.nbytes, arena_nbytes)\n", "            pass\n"),
    ("columns of any length are taken", "broker/clients.py", "elif client.inline or not message.more.fits(message.width):", "elif client.inline:"),
    ("what is in a shared input is not looked at in columns", "broker/contents.py", "if first is None or self._arenas.read(arena, offset, nbytes) != first:", "if first is None:"),
    ("parts of requests share an item", "broker/requests.py", "is_whole = is_uniform and request.key is None and part.stop - part.start == request.rows", "is_whole = is_uniform and request.key is None"),
    ("requests in two arenas share an item", "broker/requests.py", "            and self.arena == other.arena\n", ""),
    ("requests of other rows share an item", "broker/requests.py", "            self.rows == other.rows\n            and ", "            "),
    ("requests with slots of other sizes share an item", "broker/requests.py", "            and [(slot.nbytes, slot.shape) for slot in mine] == [(slot.nbytes, slot.shape) for slot in others]\n", ""),
    ("what others wait for shares an item", "broker/requests.py", "is_uniform and request.key is None and part.stop", "is_uniform and part.stop"),
    ("a deadline that the broker forgets is kept too late", EIN, "GRACE_NS = 20_000_000", "GRACE_NS = 60_000_000"),
    ("a result that does not come is waited for", EIN, "            if request.due_ns <= now_ns:\n", "            if False:\n"),
    # ---- sent by the caller, beside the I/O thread
    ("what its caller has sent is sent again", EIN, "        if request.is_sent:\n            self.pending[", "        if False:\n            self.pending["),
    ("what its caller has sent can't be cancelled", EIN, "            if request.outcome is not None:\n                self._let_go(request)\n        elif", "        elif"),
    ("an answer is heard before the request that its caller sent", THREAD, "        self._collect()  # first of all: answers to what was sent beside this thread come after it\n", ""),
    ("of many in a row, callers send each", THREAD, "                    or request.began_ns - self._direct_ns < IN_A_ROW_NS\n", ""),
    ("a message that a signal cut off is followed by others", THREAD, "                self._spoilt = True\n", ""),
    ("the thread oversleeps what a caller sent", THREAD, "            if request.due_ns < self._looks_up_ns or connection.wire.unsent:\n                self._wake()\n", ""),
    ("what was learned of a model is forgotten with each question", EIN, "not known[model].still_holds(message.models[0])", "True"),
    ("what was learned of a model outlives it", EIN, "not known[model].still_holds(message.models[0])", "False"),
    # ---- map
    ("a map asks for the next input while the last one waits", MAP, "if self.refill_at < 0 or (under_way and not _is_placed(under_way[-1])):", "if self.refill_at < 0:"),
    ("all of a window leaves at once", MAP, "min(-(-self._size // SEND_SHARE), self._size - self._count)", "self._size - self._count"),
    # ---- kinds of requests
    ("requests of other shapes are taken for the first's kind", SIGNATURE, "self._kinds.get((inputs.shape,))", "next(iter(self._kinds.values()), None)"),
    ("what is learned does not reach known kinds", SIGNATURE, "            self._learned[key] = learned\n            self._kinds.clear()\n", "            self._learned[key] = learned\n"),
    ("a map hands out results in another order", MAP, "            request = self.under_way.popleft()\n", "            request = self.under_way.popleft() if len(self.under_way) < 2 or self.under_way[1].outcome is None else self.under_way.pop()\n"),
    ("a map asks in another place", MAP, "            under_way.append(request)\n", "            under_way.insert(len(under_way) // 2, request)\n"),
    ("a map's input that had no room is lost", MAP, "                if request.outcome is not None:\n                    self.refill_at = -1  # the first error ends it\n", "                if request.outcome is None:\n                    under_way.pop()\n"),
    ("a map that is over cancels nothing", MAP, "            self._engine.cancel(request)\n", ""),
    # ---- requests that go as rows of one
    ("what lies packed is overtaken by what goes by itself", MAP, "                self._send_packed(packer, now_ns)\n            request = make(entry)\n", "            request = make(entry)\n"),
    ("what is packed does not say so", REQUEST, "            self.message.packed = True\n", "            pass\n"),
    ("requests of other shapes are packed together", PACKING, "        if kind is not self._kind or signature is not self._signature:\n            return False\n", ""),
    ("requests with other shared inputs are packed together", PACKING, " or (axis < 0 and array.tobytes() != laid.tobytes())", ""),
    ("requests of several rows are packed", PACKING, "kind.rows != 1 or ", ""),
    ("packed rows are handed out in another order", MAP, "            self._arrived.extend(replies)\n", "            self._arrived.extend(reversed(replies))\n"),
    ("what was packed goes by itself in another order", MAP, "extendleft(reversed(requests))", "extendleft(requests)"),
    ("what was packed begins anew with all its time", MAP, "            request.until_ns, request.due_ns = whole.until_ns, whole.due_ns\n", ""),
    ("one bad row ends all that it was packed with", MAP, "isinstance(outcome, (Reply, *OF_ONE))", "isinstance(outcome, Reply)"),
    ("after a bad row requests are packed as before", MAP, "        self.packer = None\n        requests", "        requests"),
    ("what must not run twice is packed", "broker/models.py", "            and self.config.idempotent\n            and not (self.streams", "            and not (self.streams"),
    ("identical requests are packed", "broker/models.py", "self.sharing.shares or self.ragged", "self.ragged"),
    ("a worker does not know what is packed", "broker/requests.py", "return m.Item(request.arena, request.inputs, request.outputs, packed=request.packed)", "return m.Item(request.arena, request.inputs, request.outputs)"),
    ("packed requests are run as one where rows may share no run", "gpuworker/runner.py", "        if item.packed:\n            reason", "        if False:\n            reason"),
    ("packed rows are checked as one request", "gpuworker/group.py", "[1] * count if item.packed else [count]", "[count]"),
    ("one packed request is not checked", "gpuworker/runner.py", "(len(items) > 1 or (items[0].packed and group.rows > 1))", "len(items) > 1"),
    ("handles of packed rows are remembered, and checked no more", "gpuworker/runner.py", "        if item.packed:\n            return", "        if False:\n            return"),
    ("packed requests travel in the columns of others", OUTBOX, "        or (request.packed is None) != (leader.packed is None)\n", ""),
    ("in columns it is not said what is packed", OUTBOX, "        message.packed,\n", ""),
]  # fmt: skip
