"""Bugs to sow: one exact replacement in one file each. The text must occur exactly once, so that a
mutant that the code has outgrown fails loudly instead of testing nothing."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


CORE = "broker/core.py"
LANES = "broker/lanes.py"
BATCHING = "broker/batching.py"
ADMISSION = "broker/admission.py"
FORECAST = "broker/forecast.py"
REGISTRY = "broker/registry.py"
IDENTICAL = "broker/identical.py"
TIMING = "broker/timing.py"
ARENAS = "broker/arenas.py"
MODEL = "gpuworker/model.py"
CHANGES = "broker/changes.py"
FRONT = "broker/front.py"
BACK = "broker/back.py"
LOOP = "broker/loop.py"
CHANNEL = "client/channel.py"
RESUBMIT = "client/resubmit.py"
WINDOW = "client/window.py"
SESSION = "gpuworker/child.py"
LOADER = "gpuworker/loader.py"
CANARY = "gpuworker/canary.py"
RUNNER = "gpuworker/runner.py"
DEADLINES = "transport/deadlines.py"

_OK = '            self._end(request, "ok")\n'

MUTANTS = [
    # ---- the core: outcomes and slots
    Mutant("a request that is done is never released", CORE, _OK + "            self._release(request)\n", _OK),
    Mutant("a request that is done is released twice", CORE, _OK, _OK + "            self._release(request)\n"),
    Mutant("a cancel is ignored", CORE, 'self._fail(request, Code.CANCELLED, "cancelled by its client")', "pass"),
    Mutant("a deadline is ignored", CORE, "self._fail(request, Code.DEADLINE_EXCEEDED, self._why_late(request))", "pass"),
    Mutant("held slots are called free", CORE, "held = request.rows_leased > 0", "held = False"),
    Mutant("free slots are called held", CORE, "held = request.rows_leased > 0", "held = True"),
    Mutant(
        "a batch that is done answers requests that have ended", CORE,
        "            if request.ended:\n                self._release_if_free(request)\n                continue\n", "",
    ),
    Mutant("what comes back still counts as lent", CORE, "        request.rows_leased -= part.stop - part.start\n", ""),
    Mutant("parts of two revisions are joined", CORE, "            if request.revision == MIXED:\n", "            if False:\n"),
    Mutant("a request that starts over keeps its revisions", CORE, "request.rows_done = request.revision = 0", "request.rows_done = 0"),
    Mutant("what must not run twice starts over", CORE, "        if not request.model.config.idempotent:\n", "        if False:\n"),
    Mutant("a request that starts over keeps its frames", CORE, "        request.parts = None\n", ""),
    Mutant("a request that starts over is not looked at", CORE, "        self.lanes[request.lane] = None\n        request.lane.push_front(", "        request.lane.push_front("),
    Mutant("done rows are not counted", CORE, "            request.rows_done += rows\n", ""),
    Mutant(
        "an ended request is released while another part is lent", CORE,
        "        if not request.rows_leased:\n            connection = self.connections.get(request.conn)",
        "        if True:\n            connection = self.connections.get(request.conn)",
    ),
    Mutant("a held request is not remembered", CORE, "            self.connections[request.conn].held.add(request.id)\n", "            pass\n"),
    Mutant("a client's result is sent twice", CORE, "                completed[conn].requests.append(request.id)\n", "                completed[conn].requests.append(request.id)\n                completed[conn].requests.append(request.id)\n                completed[conn].queue_ns.append(queue_ns)\n"),
    # ---- the core: those who leave
    Mutant("a client that left keeps its arena", CORE, "        arena.connections -= 1\n", ""),
    Mutant("a client that left keeps its place in the queue", CORE, '            self._end(request, "gone")\n', "            pass\n"),
    Mutant("an arena is closed under a lease", CORE, "if not arena.connections and not arena.requests and not arena.pinned", "if not arena.connections and not arena.pinned"),
    Mutant("a dead worker's running batch is forgotten", CORE, "        lane.retry([part])\n", ""),
    Mutant("a dead worker's waiting batch is forgotten", CORE, "            lane.push_front(part)\n            return\n        lane.retry", "            return\n        lane.retry"),
    Mutant("a dead worker's batch is requeued twice", CORE, "        lane.retry([part])\n", "        lane.retry([part])\n        lane.retry([part])\n"),
    Mutant("a requeued batch's lane is not looked at", CORE, "        self.lanes[lane] = None\n        if not was_running:", "        if not was_running:"),
    Mutant("a lost device counts against its request", CORE, "        if running is not None and not worker.leaving:\n", "        if running is not None:\n"),
    Mutant("a worker that leaves is lent more", CORE, "choose(self.lanes, worker, now_ns) if not worker.leaving else None", "choose(self.lanes, worker, now_ns)"),
    Mutant("a request that kills workers is never given up", CORE, "        request.losses += 1\n", ""),
    Mutant("a dead worker still counts as serving", CORE, "            model.workers.pop(worker.id, None)\n", ""),
    # ---- the core: batches
    Mutant("an answer's epoch is not looked at", CORE, "worker.leases.pop(message.batch, None) if message.epoch == self.epoch else None", "worker.leases.pop(message.batch, None)"),
    Mutant("a hung worker is left alone", CORE, "                self._actions.append(e.KillWorker(worker.id))\n", ""),
    Mutant("the lease of a second batch is not watched", CORE, "            self._began(worker, following, now_ns)\n", "            pass\n"),
    Mutant("an idle worker is still watched", CORE, "        worker.overdue_ns = 0\n        worker.busy_until_ns = now_ns\n", "        worker.busy_until_ns = now_ns\n"),
    Mutant("a worker is lent batches without end", CORE, "if len(worker.leases) == 1:", "if worker.leases:"),
    Mutant("bisection runs one half twice", CORE, "for half in (live[middle:], live[:middle]):", "for half in (live[:middle], live[:middle]):"),
    Mutant("a failed batch fails everyone in it", CORE, "if index == message.item or len(batch.parts) == 1:", "if True:"),
    Mutant("a failed half's lane is not looked at", CORE, "        self.lanes[lane] = None\n        if 0 <= message.item", "        if 0 <= message.item"),
    Mutant("a deadline buys a place below the class's floor", CORE, "virtual_ns = max(deadline_ns, (now_ns + virtual_ns) // 2)", "virtual_ns = deadline_ns"),
    Mutant("a lane with work is dropped", CORE, "for lane in [lane for lane in self.lanes if not lane.rows]:", "for lane in [lane for lane in self.lanes if lane.rows < 2]:"),
    # ---- lanes
    Mutant("an ended request still counts as waiting", LANES, "        self._count(request, -request.rows_waiting)\n", ""),
    Mutant("the rest of a split request is lost", LANES, "                heappush(heap, (entry[0], self._sequence, rest))\n", ""),
    Mutant("the rest of a split request begins anew", LANES, "rest = Part(request, part.start + room, part.stop)", "rest = Part(request, part.start, part.stop)"),
    Mutant("a part reads from its request's beginning", LANES, "tensor.offset + self.start * stride)", "tensor.offset)"),
    Mutant("a part writes to its request's beginning", LANES, "Slot(slot.offset + self.start * (slot.nbytes // rows),", "Slot(slot.offset,"),
    Mutant("halves of a failed batch are not counted", LANES, "        self.retries.append(group)\n        for part in group:\n            self._count(part.request, part.stop - part.start)\n", "        self.retries.append(group)\n"),
    Mutant("an ended request is taken from the heap", LANES, "            if part.is_over:\n                continue\n            deadline_ns", "            deadline_ns"),
    Mutant("a sweep throws the living away", LANES, "live = [entry for entry in heap if not entry[2].is_over]", "live = [entry for entry in heap if entry[2].is_over]"),
    # ---- batching
    Mutant("the latest virtual deadline goes first", BATCHING, "if due is None or heads[0] < due[0][0]:", "if due is None or heads[0] > due[0][0]:"),
    Mutant("a worker is lent a model that it has not loaded", BATCHING, "        if not lane.rows or name not in worker.models:\n            continue\n        heads = lane.heads(starts_ns, worker.timings[name])\n", "        heads = lane.heads(starts_ns, worker.timings.get(name))\n"),
    Mutant("what is overdue never gets its share", BATCHING, " and worker.passed < OVERDUE_SHARE - 1:", ":"),
    Mutant("batches that went before what is overdue are not counted", CORE, "worker.passed + 1 if choice[2] >= 0 else 0", "0"),
    Mutant("everything that is older goes before URGENT", BATCHING, "    if first_class < due_class and due_ns", "    if first_class < 0 and due_ns"),
    Mutant("the highest class goes first although nothing is overdue", BATCHING, " and due_ns <= now_ns and", " and"),
    Mutant("lower classes make an urgent request wait", LANES, "most = lower_max if lower_max and", "most = rows_max if lower_max and"),
    Mutant("an idle worker waits for a fuller batch", BATCHING, "    if not worker.leases:\n        return 0\n", "    if not worker.leases:\n        return 0 if lane.rows >= min(2, lane.model.max_batch) else NEVER_NS\n"),
    Mutant("the next batch is bound long before it can run", BATCHING, "    return worker.busy_until_ns - lead_ns\n", "    return 0\n"),
    Mutant("nobody wakes up to lend the next batch", CORE, "            self._lend_due_ns = min(self._lend_due_ns, due_ns)\n", ""),
    Mutant("a batch is larger than the model takes", BATCHING, "    rows_max = worker.rows_max[lane.model.name]\n", "    rows_max = worker.rows_max[lane.model.name] + 1\n"),
    Mutant("a worker is lent what another one takes", BATCHING, "    rows_max = worker.rows_max[lane.model.name]\n", "    rows_max = lane.model.max_batch\n"),
    Mutant("what ran on another worker is lent whole", LANES, "            room = rows_max\n", "            room = 1 << 30\n"),
    Mutant("the rest of what is cut to be run again is lost", LANES, "                self.retries.insert(0, waiting)\n", "                pass\n"),
    Mutant("the worker heard of last says what all take", REGISTRY, "max(self.max_batch if self.workers else 1, self.rows_max(message))", "self.rows_max(message)"),
    Mutant("a worker that loads counts as hung as soon as any", BATCHING, "HUNG_LOADING_NS if batch.worker.loads_on_device else HUNG_MIN_NS", "HUNG_MIN_NS"),
    Mutant("a worker that has loaded is given time for ever", CORE, "        worker.loading.discard((message.model, message.revision))\n", ""),
    Mutant("a worker is killed for what a file claims", REGISTRY, "timing.predict_ns(rows) if timing.is_measured else 0\n", "timing.predict_ns(rows)\n"),
    Mutant("a request is refused for what a file claims", CORE, "timing.predict_ns(rows) / rows if timing.is_measured else 0.0", "timing.predict_ns(rows) / rows"),
    Mutant("what a file claims wins over what was measured", TIMING, "            elif not measured[0] <= rows <= measured[-1]:\n", "            else:\n"),
    Mutant("a claim may make a size look dear without end", TIMING, "min(max(guess, least), max(known, in_proportion * CLAIM_BENT_MAX))", "max(guess, least)"),
    Mutant("a claim may make a size look cheap without end", TIMING, "            least = max(known, in_proportion / CLAIM_FLAT_MAX)\n", "            least = known\n"),
    Mutant("a lease of which nothing is known lasts for ever", BATCHING, "        return HUNG_UNKNOWN_NS\n", "        return 0\n"),
    # ---- admission
    Mutant("rows of ended requests still count", ADMISSION, "        self.rows -= request.rows\n", ""),
    Mutant("a client's bytes are not counted", ADMISSION, "        connection.account.nbytes += request.nbytes\n", ""),
    Mutant("a client's bound on rows is not held", ADMISSION, "            or account.rows + rows > limits.client_rows_max\n", ""),
    Mutant("the yard's bound on rows is one too high", ADMISSION, "self.rows + rows > self._rows_max[priority]\n            or", "self.rows + rows > self._rows_max[priority] + 1\n            or"),
    Mutant("what is too late goes first", LANES, "                elif 0 < part.request.deadline_ns < far_ns and", "                elif False and"),
    Mutant("what is too late is never looked at again", LANES, "        if self._late:\n            self._call_back()\n", ""),
    Mutant("a forecast forgets what is overdue below", "broker/forecast.py", " - (least if below else 0.0))", ")"),
    Mutant("a forecast does not learn from a miss", "broker/forecast.py", "min(CAUTION_MAX, caution * MISSED_FACTOR)", "caution"),
    Mutant("a forecast takes no heed of higher classes", "broker/forecast.py", "1 - self._load_above(priority, now_ns)", "1"),
    Mutant("LOW may fill the whole queue", ADMISSION, "SHARES = (1.0, 0.95, 0.9, 0.8)", "SHARES = (1.0, 1.0, 1.0, 1.0)"),
    Mutant("a hopeless request is admitted", ADMISSION, "            if finish_ns > deadline_ns:\n", "            if finish_ns > deadline_ns * 1000:\n"),
    Mutant("a class counts on all of the workers' time", FORECAST, "        share = max(least, 1 - self._load_above(priority, now_ns) - (least if below else 0.0))\n", "        share = 1.0\n"),
    Mutant("a forecast learns nothing from what was missed", FORECAST, "        if not in_time:\n", "        if False:\n"),
    Mutant("what a class asks in a burst is taken for a habit", FORECAST, "sum(min(asked, served)", "sum(max(asked, served)"),
    # ---- registry
    Mutant("an input may lie outside the arena", REGISTRY, "            if nbytes > arena_nbytes - tensor.offset:\n                check_range(tensor.offset, nbytes, arena_nbytes)  # says what is wrong\n", ""),
    Mutant("lanes that nobody uses pile up", REGISTRY, "            del self.lanes[lane.signature]\n", "            pass\n"),
    Mutant("shapes that differ share a lane", REGISTRY, "tuple(tuple(tensor.shape[1:]) for tensor in inputs)", "((),)"),
    Mutant("a model that loads at last is still failed", REGISTRY, "        self.failures.pop(worker, None)\n", ""),
    # ---- models that change
    Mutant("a swap is made when the first worker has it", CHANGES, "        return [self._try_next(change)] if change.waiting else self._switch(change)\n", "        return self._switch(change)\n"),
    Mutant("the old revision is never dropped", CHANGES, "            actions += [unload(worker, name, model.revision) for worker in self._workers.values()]\n", ""),
    Mutant("a trial that is given up stays with its workers", CHANGES, "for worker in tried if worker in self._workers", "for worker in ()"),
    Mutant("a worker that comes amid a trial is not asked", CHANGES, "            change.waiting.append(worker.id)\n", "            pass\n"),
    Mutant("a trial goes on without the worker that died of it", CHANGES, '                actions += self._give_up(name, Code.MODEL_FAILED, "a worker died while it loaded it")\n', "                pass\n"),
    Mutant("a model goes while a worker holds slots of its requests", CHANGES, "        if model.users:\n", "        if any(model.waiting):\n"),
    Mutant("nobody is told that a newer change came", CHANGES, '        actions = self._give_up(name, Code.CANCELLED, "a newer change of the same model came")\n', "        actions: list[e.Action] = []\n"),
    Mutant("a late answer to a former trial counts", CHANGES, "change is None or message.revision != change.revision or", "change is None or"),
    Mutant("a revision is given twice", CHANGES, "        self._revisions[name] = last + 1\n", "        self._revisions.setdefault(name, 0)\n"),
    Mutant("one that takes other tensors is let in", CHANGES, 'model.differs(message) if model is not None and model.inputs else ""', '""'),
    Mutant("a leaving model takes requests", CORE, "        if model is None or model.leaving:\n", "        if model is None:\n"),
    Mutant("a leaving model never goes", CORE, "                self._actions += self._changes.drained(lane.model)\n", "                pass\n"),
    Mutant("the old revision's time counts as the new one's", CORE, "timing is not None and batch.revision == model.revision", "timing is not None"),
    Mutant("a worker that comes back may change what a model takes", CORE, "elif model.inputs and (reason := model.differs(message)):", "elif (reason := \"\"):"),
    # ---- identical work
    Mutant("followers are not answered", CORE, "            answer = m.Answer(follower.id, queue_ns, receipt, outputs)\n            self._actions.append(e.ToClient(follower.conn, answer, frames))\n", ""),
    Mutant("a follower is released twice", CORE, "            self._release(follower)\n", "            self._release(follower)\n            self._release(follower)\n"),
    Mutant("a follower is answered under the leader's number", CORE, "m.Answer(follower.id,", "m.Answer(request.id,"),
    Mutant("a leader's end forgets its followers", CORE, "        successor = run.succeed()\n", "        successor = None\n"),
    Mutant("who has left is still waited for", CORE, "            run.leave(request)\n", "            request.run = None\n"),
    Mutant("a follower that has left may lead", IDENTICAL, "            if request in self.followers:\n                del self.followers[request]\n", "            if self.followers.pop(request, 0) != 1:\n"),
    Mutant("an urgent request waits behind a low one that is like it", CORE, "            request.virtual_ns < leader.virtual_ns\n", "            False\n"),
    Mutant("the lead is taken of what is to run as it is", LANES, "        if any(part in group for group in self.retries):\n            return False  # it is to run as it is\n", ""),
    Mutant("what was withdrawn is run all the same", LANES, "        part.stop = part.start  # what is left of it is skipped\n", ""),
    Mutant("what its client has changed is shared", CORE, "rows == request.rows and index not in message.changed", "rows == request.rows"),
    Mutant("a part is taken for the whole result", CORE, "whole = rows == request.rows and", "whole = request.rows_done == request.rows and"),
    Mutant("what an old revision said is shared", CORE, "replies.gathered(request) if is_true and batch.revision == model.revision else None", "replies.gathered(request) if is_true else None"),
    Mutant("a worker does not compare what it runs", RUNNER, "if digest(parts) != item.digest:", "if False:"),
    Mutant("what others want is run where its client can change it", RUNNER, "private = any(item.digest for item in items)", "private = False"),
    Mutant("a key lacks the shapes", IDENTICAL, "return revision, digest, tuple((tensor.dtype, *tensor.shape) for tensor in inputs)", "return revision, digest, ()"),
    Mutant("a kept result never expires", IDENTICAL, "if kept.expires_ns <= now_ns:", "if False:"),
    Mutant("kept results have no bound", IDENTICAL, "while self.kept_bytes > self._bytes_max:", "while False:"),
    Mutant("small results are kept without end", IDENTICAL, "KEPT_BYTES + KEPT_TENSOR_BYTES * len(frames) + sum", "sum"),
    Mutant("kept results survive another revision", REGISTRY, "        self.identical.forget()\n", ""),
    Mutant("contents are hashed without a bound", FRONT, " and self._hashed_bytes < HASHED_BYTES_MAX", ""),
    Mutant("what a client may shrink is read", ARENAS, 'own = entry.key[0] == "own" or', "own = True or"),
    Mutant("followers count as work", CORE, "        self.counters.spared(request.model.name, \"joined\")\n", "        self.counters.spared(request.model.name, \"joined\")\n        self.admission.queued(request)\n"),
    Mutant("no content is quarantined", CORE, "        self._actions.append(e.Quarantine(model.name, request.arena, request.inputs))\n", ""),
    Mutant("what is quarantined is run", CORE, "        if left_ns:\n", "        if False:\n"),
    Mutant("a quarantine never ends", IDENTICAL, "            if self._quarantined[oldest] > now_ns:\n                break\n", "            break\n"),
    Mutant("the followers of what kills live on", CORE, "for victim in (*followers, request):", "for victim in (request,):"),
    Mutant("two parts of one request are taken for neighbours", CORE, "any(part.request is not request for part in batch.parts)", "len(batch.parts) > 1"),
    # ---- buckets
    Mutant("padding is what an earlier batch left", RUNNER, "                buffer.array[nbytes : buffer.row_nbytes * size] = 0\n", ""),
    Mutant("a batch is padded beyond the next size", RUNNER, "buckets[bisect_left(buckets, rows)]", "buckets[min(bisect_left(buckets, rows) + 1, len(buckets) - 1)]"),
    Mutant("padding is handed out with the results", RUNNER, "cut = len(items) > 1 or rows != size", "cut = len(items) > 1"),
    Mutant("a padded run reads where its input lies", RUNNER, "own = private or size != rows", "own = private"),
    Mutant("padding is taken for cheaper always", TIMING, "return (split_ns, full) if split_ns < padded_ns else (padded_ns, rows)", "return padded_ns, rows"),
    Mutant("padding is never taken for cheaper", TIMING, "return (split_ns, full) if split_ns < padded_ns else (padded_ns, rows)", "return split_ns, full"),
    Mutant("a batch is formed as if any size were run", BATCHING, "        rows_max = timing.worth_taking(min(rows_max, lane.rows))\n", "        pass\n"),
    Mutant("a size that takes much memory is not warmed", MODEL, " and rows not in must:", ":"),
    # ---- the client's channel
    Mutant("a result's input slots are never freed", CHANNEL, "            for offset in pending.inputs:\n                memory.free(offset)\n            pending.arrays = None\n", "            pending.arrays = None\n"),
    Mutant("an abandoned request's slots are never freed", CHANNEL, "            if pending.settled:\n                self._give_back(pending)\n                continue\n", "            if pending.settled:\n                continue\n"),
    Mutant("slots are freed twice", CHANNEL, "        pending.inputs = []\n        pending.outputs = []\n", "        if self.memory is not None:\n            for offset in pending.outputs:\n                self.memory.free(offset)\n"),
    Mutant("slots that a worker holds are freed", CHANNEL, "            pending = self.pending.get(message.request)\n        else:\n", "            pending = self.pending.get(message.request)\n            if pending is not None:\n                self._give_back(pending)\n        else:\n"),
    Mutant("Released is not heard", CHANNEL, "                if released is not None:\n                    self._give_back(released)\n", ""),
    Mutant("a request is settled twice", CHANNEL, "        if pending.settled:\n            return []\n        pending.settled = True\n        return [(pending, outcome)]", "        return [(pending, outcome)]"),
    Mutant("the broker is not told that nobody waits", CHANNEL, "        return m.Cancel([pending.number])", "        return None"),
    Mutant("an answer in frames keeps its slots", CHANNEL, "            return []\n        self._give_back(pending)\n        try:", "            return []\n        try:"),
    Mutant("the parts of an answer are joined backwards", CHANNEL, "else [np.concatenate(column) for column in zip(*parts, strict=True)]", "else [np.concatenate(column[::-1]) for column in zip(*parts, strict=True)]"),
    Mutant("a lost connection's requests wait for ever", CHANNEL, "        settled = [(pending, error) for pending in list(self.pending.values()) if not pending.settled]\n", "        settled: list = []\n"),
    # ---- the client without its broker
    Mutant("a request that lost its broker is dropped", RESUBMIT, "            self._waiting.setdefault(lost.model, deque()).append(lost)\n", ""),
    Mutant("what must not run twice is sent again", RESUBMIT, "return signature is None or signature.idempotent or (", "return True or ("),
    Mutant("nothing is sent again", RESUBMIT, "return signature is None or signature.idempotent or (", "return signature is None or ("),
    Mutant("a message that was refused is sent again", RESUBMIT, "    if isinstance(error, MessageRefused):\n        return False\n", ""),
    Mutant("what is sent again is what the caller has by now", RESUBMIT, "if memory is not None and (array is None or tensor.offset in copied):", "if memory is not None and array is None:"),
    Mutant("a request is sent again with all its time", RESUBMIT, "left_ns = max(1, self.due_ns - now_ns)", "left_ns = max(1, self.due_ns - self.since_ns + 10**9)"),
    Mutant("a request without a broker never expires", RESUBMIT, "            self._dues.add(due_ns, lost)\n", ""),
    Mutant("what was cancelled without a broker is sent again", RESUBMIT, "            if self._waits(lost):\n                try", "            if True:\n                try"),
    Mutant("what has no room is forgotten", RESUBMIT, "                    if isinstance(error, ArenaExhausted) and channel.pending:\n                        return submitted, ended\n", "                    if isinstance(error, ArenaExhausted) and channel.pending:\n                        break\n"),
    Mutant("what has no room waits for ever", RESUBMIT, "if isinstance(error, ArenaExhausted) and channel.pending:", "if isinstance(error, ArenaExhausted):"),
    Mutant("a request is sent again twice", RESUBMIT, "            lost.end()\n            waiting.popleft()\n", "            lost.end() if len(waiting) > 1 else None\n            waiting.popleft() if lost.waiter is None or submitted[1:] else None\n"),
    Mutant("a broker that came back is said not to have come", RESUBMIT, "        if has_broker:\n", "        if not has_broker:\n"),
    Mutant("lost memory is kept", RESUBMIT, "        self.inputs = {}\n        return waiter", "        return waiter"),
    Mutant("a closed client's waiting requests never end", RESUBMIT, "                    ended.append((lost.waiter, error))\n                lost.end()\n", "                    pass\n                lost.end()\n"),
    # ---- map
    Mutant("a map forgets what lost its broker", WINDOW, "                self.lost += 1\n", ""),
    Mutant("a map hands out results in another order", WINDOW, "self.under_way.popleft()[0].waiter", "(self.under_way.popleft() if len(self.under_way) < 2 or self.under_way[1][0].waiter is None else self.under_way.pop())[0].waiter"),
    Mutant("a map asks again in another place", WINDOW, "                self.under_way[place] = (pending, give_up_s)\n", "                self.under_way[0] = (pending, give_up_s)\n"),
    Mutant("a map's input that had no room is lost", WINDOW, "                self._kept.append(entry)", "                pass"),
    Mutant("a map's result that does not come is waited for", WINDOW, "if self.waits and now_s >= self.under_way[0][1]:", "if False:"),
    Mutant("a map that is over cancels nothing", WINDOW, "return [cancel for cancel in cancels if cancel is not None]", "return []"),
    Mutant("a map runs again what must not", WINDOW, "                if not may_ask_again(error, self._signature):\n", "                if False:\n"),
    Mutant("a map asks again for what has come", WINDOW, "            if entry.waiter is not None:\n                continue\n            first_s", "            first_s"),
    Mutant("a request said twice is run twice", CORE, "            if known.is_asked_by(message):\n                return", "            if known.is_asked_by(message):\n                pass"),
    Mutant("another request under a number is taken for the first", LANES, "== asked", "== asked or True"),
    # ---- the worker
    Mutant("a worker keeps a former broker's arenas", SESSION, "        self._memory.detach_all()\n", ""),
    Mutant("a worker keeps bindings into a former broker's arenas", SESSION, "    def _welcome(self, message: m.WorkerWelcome) -> None:\n        for _, model in self._kept:\n            model.forget_bindings()\n", "    def _welcome(self, message: m.WorkerWelcome) -> None:\n"),
    Mutant("a worker forgets its arenas when it greets again", SESSION, "        self._send([m.Register(self._pid, [self._provider], self._fallen)])\n", "        self._memory.detach_all()\n        self._send([m.Register(self._pid, [self._provider], self._fallen)])\n"),
    Mutant("a worker never unmaps an arena", SESSION, "        self._memory.detach(message.arena)\n", ""),
    Mutant("a worker answers with a former broker's epoch", SESSION, "        self._epoch = message.epoch\n", "        self._epoch = self._epoch or message.epoch\n"),
    Mutant("a worker that is refused does not greet again", SESSION, "            self.register()\n", "            pass\n"),
    Mutant("unloading one revision unloads all", SESSION, "        self._models.pop((message.model, message.revision), None)\n", "        self._models.clear()\n"),
    Mutant("a worker runs a former broker's revisions", SESSION, "        self._models.clear()  # a new broker counts revisions anew\n", ""),
    Mutant("a load is answered to a broker that did not ask", SESSION, "            loading.asked.clear()\n", "            pass\n"),
    Mutant("a file that is known needs no canary", SESSION, "if known == source] if not message.beside else []", "if known == source]"),
    Mutant("a dead broker's trial answers the next one's load", SESSION, "source, (self._epoch, message.beside, message.tolerance) if message.beside else None", "source, None"),
    Mutant("a model that nobody serves is kept", SESSION, "if id(model) in used]", "]"),
    Mutant("a trial that was given up while it loaded is kept", SESSION, "            return  # it was unloaded meanwhile, or its broker is gone\n", "            pass\n"),
    Mutant("the loader's thread keeps the models of its last job", LOADER, "            self._do(*self._jobs.get())\n", "            job = self._jobs.get()\n            self._do(*job)\n"),
    Mutant("a worker that goes to a better provider runs nothing of what it holds", SESSION, "        if not runs_on:\n", "        if True:\n"),
    Mutant("a worker that lost its device runs on", SESSION, "        if not runs_on:\n", "        if False:\n"),
    Mutant("any difference of a canary is allowed", CANARY, "if tolerance is not None and not greatest <= tolerance:  # a tolerance of NaN allows nothing", "if False:"),
    Mutant("a canary's answers may be no numbers", CANARY, "    if np.any(finite & ~np.isfinite(after)):\n", "    if False:\n"),
    Mutant("rows are scattered to the wrong requests", RUNNER, "            rows_before += rows\n", "            rows_before += 1\n"),
    Mutant("rows are gathered over each other", RUNNER, "            at += nbytes\n", ""),
    # ---- the broker's two sides
    Mutant("frames of any size are read", LOOP, "        socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max)\n", ""),
    Mutant("a worker is not told of an arena", BACK, "                    queue.append(m.Attach(item.arena, self._arenas.handle(item.arena)))\n", "                    pass\n"),
    Mutant("workers are not told that an arena is closed", BACK, "                self._outbox.setdefault(peer.worker, []).append(m.Detach(arena))\n", ""),
    Mutant("a worker that is cut off is not killed", BACK, "if not (holds_batches and self.sentinels.kill(peer.worker)):", "if True:"),
    Mutant("a worker whose connection has ended is taken by its descriptor's number", BACK, "        if fd >= 0 and fd not in self._open:\n", "        if False:\n"),
    Mutant("a worker that died before its greeting was read is never buried", BACK, "            if peer is not None and error.errno == zmq.EHOSTUNREACH:\n                self._cut_off(peer, 0)\n", ""),
    Mutant("a dropped client is told half", FRONT, "        elif client.identity not in self.known:\n            return  # dropped; half of what it is owed would be worse than its connection's end\n", ""),
    Mutant("a message goes on after its client was dropped", FRONT, "            if client is not None and identity not in self.known:\n                return  # dropped while its own envelope was handled: it does not read, or is gone\n", ""),
    Mutant("a client over tcp that was dropped is remembered for ever", FRONT, "            self._forget(client)  # if it was dropped on the way\n", ""),
    Mutant("tensors that came as frames are never freed", FRONT, "            self.inline.release(conn, message.request)\n", "            pass\n"),
    Mutant("an ended connection's report is not read before the next greeting", FRONT, "            self._settle_endings()\n", ""),
    Mutant("what is over is due all the same", DEADLINES, "            if not self._is_over(thing):\n                yield thing\n", "            yield thing\n"),
]  # fmt: skip
