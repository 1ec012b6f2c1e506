"""Bugs to sow: one exact replacement in one file each. The text must occur exactly once, so that a
mutant that the code has outgrown fails loudly instead of testing nothing."""

from __future__ import annotations

from typing import NamedTuple

from .mutants_engine import ENGINE
from .mutants_padding import PADDED
from .mutants_rows import ROWS


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


BOOKS = "broker/books.py"
DELIVERY = "broker/delivery.py"
REQUESTS = "broker/requests.py"
SIGNATURE = "broker/signature.py"
SERVING = "broker/serving.py"
TAKING = "broker/taking.py"
CORE = "broker/core.py"
ARRIVALS = "broker/arrivals.py"
LANES = "broker/lanes.py"
POLICY = "broker/policy.py"
ADMISSION = "broker/admission.py"
FORECAST = "broker/forecast.py"
REGISTRY = "broker/models.py"
WAITING = "broker/waiting.py"
LEASES = "broker/leases.py"
IDENTICAL = "broker/sharing.py"
TIMING = "broker/timing.py"
ARENAS = "broker/arenas.py"
MODEL = "gpuworker/warmup.py"
CHANGES = "broker/rollout.py"
FRONT = "broker/clients.py"
BACK = "broker/workers.py"
LOOP = "broker/loop.py"
SESSION = "gpuworker/worker.py"
LOADER = "gpuworker/loader.py"
WATCHDOG = "gpuworker/watchdog.py"
CANARY = "gpuworker/comparison.py"
RUNNER = "gpuworker/runner.py"
GATHER = "gpuworker/gather.py"
DEADLINES = "transport/deadlines.py"
MEMFD = "transport/segments/memfd.py"
ZMTP = "transport/wire/zmtp.py"
STREAM = "transport/wire/stream.py"
LISTENER = "transport/wire/stream_listener.py"
LIBZMQ = "transport/wire/libzmq_listener.py"

_OK = '            self._end(request, "ok")\n'

MUTANTS = [
    # ---- the core: outcomes and slots
    Mutant("a request that is done is never released", DELIVERY, '            books.end(request, "ok")\n            books.release(request)\n', '            books.end(request, "ok")\n'),
    Mutant("a request that is done is released twice", DELIVERY, '            books.end(request, "ok")\n', '            books.end(request, "ok")\n            books.release(request)\n'),
    Mutant("a cancel is ignored", CORE, 'self.books.fail(request, Code.CANCELLED, "cancelled by its client")', "pass"),
    Mutant("a deadline is ignored", CORE, "ENDED_MAX):\n            self.books.expire(request)\n", "ENDED_MAX):\n            pass\n"),
    Mutant("the lead is taken from the lane of who takes it", BOOKS, "leader.lane.withdraw", "request.lane.withdraw"),
    Mutant("held slots are called free", BOOKS, "held = request.rows_leased > 0", "held = False"),
    Mutant("free slots are called held", BOOKS, "held = request.rows_leased > 0", "held = True"),
    Mutant("a batch that is done answers requests that have ended", DELIVERY, "    if request.ended:\n        books.release_if_free(request)\n        return False\n", ""),
    Mutant("what comes back still counts as lent", BOOKS, "        request.rows_leased -= part.stop - part.start\n", ""),
    Mutant("parts of two revisions are joined", DELIVERY, "    if request.revision == MIXED:\n", "    if False:\n"),
    Mutant("a request that starts over keeps its revisions", BOOKS, "request.rows_done = request.revision = 0", "request.rows_done = 0"),
    Mutant("what must not run twice starts over", BOOKS, "        if not request.model.config.idempotent:\n", "        if False:\n"),
    Mutant("a request that starts over keeps its frames", BOOKS, "        request.parts = None\n", ""),
    Mutant("a request that starts over is not looked at", BOOKS, "        self._policy.add(request.lane)\n        request.lane.push_front(", "        request.lane.push_front("),
    Mutant("done rows are not counted", DELIVERY, "        request.rows_done += rows\n", ""),
    Mutant("an ended request is released while another part is lent", BOOKS, "        if not request.rows_leased:\n            connection = self.connections.get(request.conn)", "        if True:\n            connection = self.connections.get(request.conn)"),
    Mutant("a held request is not remembered", BOOKS, "            self.connections[request.conn].held.add(request.id)\n", "            pass\n"),
    Mutant("a client's result is sent twice", DELIVERY, "            reply.requests.append(request.id)\n", "            reply.requests.append(request.id)\n            reply.requests.append(request.id)\n            reply.queue_ns.append(queue_ns)\n"),
    # ---- the core: those who leave
    Mutant("a client that left keeps its arena", CORE, "            self.arenas[connection.arena].connections -= 1\n", ""),
    Mutant("a client that left keeps its place in the queue", CORE, '        self.books.end(request, "gone")\n', "        pass\n"),
    Mutant("an arena is closed under a lease", BOOKS, "if not arena.connections and not arena.requests and not arena.pinned", "if not arena.connections and not arena.pinned"),
    Mutant("a dead worker's running batch is forgotten", BOOKS, "        lane.retry([part])\n", ""),
    Mutant("a dead worker's waiting batch is forgotten", BOOKS, "            lane.push_front(part)\n            return\n        lane.retry", "            return\n        lane.retry"),
    Mutant("a dead worker's batch is requeued twice", BOOKS, "        lane.retry([part])\n", "        lane.retry([part])\n        lane.retry([part])\n"),
    Mutant("a requeued batch's lane is not looked at", BOOKS, "        self._policy.add(lane)\n        if not was_running:", "        if not was_running:"),
    Mutant("a lost device counts against its request", CORE, "        if running is None or worker.leaving:\n", "        if running is None:\n"),
    Mutant("a worker that leaves is lent more", CORE, "            self._with_credit.pop(worker.id, None)\n            self.counters.workers_left += 1\n", "            self.counters.workers_left += 1\n"),
    Mutant("a request that kills workers is never given up", BOOKS, "        request.losses += 1\n", ""),
    Mutant("a dead worker still counts as serving", CORE, "            model.workers.pop(worker.id, None)\n", ""),
    # ---- the core: batches
    Mutant("an answer's epoch is not looked at", CORE, "worker.leases.pop(message.batch, None) if message.epoch == self.epoch else None", "worker.leases.pop(message.batch, None)"),
    Mutant("a hung worker is left alone", CORE, "        self._act(e.KillWorker(worker.id))\n", ""),
    Mutant("the lease of a second batch is not watched", CORE, "            self._began(worker, following, now_ns)\n", "            pass\n"),
    Mutant("an idle worker is still watched", CORE, "        worker.overdue_ns = 0\n        worker.busy_until_ns = now_ns\n", "        worker.busy_until_ns = now_ns\n"),
    Mutant("a worker is lent batches without end", CORE, "        if len(worker.leases) >= CREDIT or model.streams:  # nothing waits behind a stream\n            del self._with_credit[worker.id]\n", ""),
    Mutant("bisection runs one half twice", CORE, "for half in (live[middle:], live[:middle]):", "for half in (live[:middle], live[:middle]):"),
    Mutant("a failed batch fails everyone in it", CORE, "if index == message.item or len(batch.parts) == 1:", "if True:"),
    Mutant("a failed half's lane is not looked at", CORE, "        self.policy.add(lane)\n        if 0 <= message.item", "        if 0 <= message.item"),
    Mutant("a deadline buys a place below the class's floor", POLICY, "virtual_ns = max(deadline_ns, (now_ns + virtual_ns) // 2)", "virtual_ns = deadline_ns"),
    Mutant("a lane with work is dropped", POLICY, "        if not lane.rows:\n            self.drop(lane)\n", "        if lane.rows < 2:\n            self.drop(lane)\n"),
    Mutant("a lane that is empty is not dropped when it goes", BOOKS, "            if lane in self._policy.lanes:\n                self._policy.drop(lane)\n", ""),
    # ---- lanes
    Mutant("an ended request still counts as waiting", LANES, "        self._count(request, -request.rows_waiting)\n", ""),
    Mutant("the rest of a split request is lost", LANES, "        heappush(self.heaps[part.request.priority], (entry[0], self._sequence, rest))\n", ""),
    Mutant("the rest of a split request begins anew", LANES, "rest = Part(part.request, part.start + rows, part.stop)", "rest = Part(part.request, part.start, part.stop)"),
    Mutant("a part reads from its request's beginning", GATHER, "offset = item.inputs[index].offset + item.start * inner", "offset = item.inputs[index].offset"),
    Mutant("a part writes to its request's beginning", "gpuworker/answers.py", "(at * inner, slot.offset + item.start * inner) if layout.axis >= 0", "(at * inner, slot.offset) if layout.axis >= 0"),
    Mutant("halves of a failed batch are not counted", LANES, "        self.retries.append(group)\n        for part in group:\n            self._count(part.request, part.stop - part.start)\n", "        self.retries.append(group)\n"),
    Mutant("an ended request is taken from the heap", TAKING, "        if part.is_over:\n            continue\n        deadline_ns", "        deadline_ns"),
    Mutant("a sweep throws the living away", LANES, "live = [entry for entry in heap if not entry[2].is_over]", "live = [entry for entry in heap if entry[2].is_over]"),
    # ---- batching
    Mutant("the lane that came first goes first, whatever is due", WAITING, "heappush(self._due, (lane.due_ns, lane.place, lane))", "heappush(self._due, (1 << 62, lane.place, lane))"),
    Mutant("a worker is lent a model that it has not loaded", TAKING, "        if timing is None:\n            return None\n        far_ns", "        if timing is None:\n            return 0, 0, 0, 0\n        far_ns"),
    Mutant("a lane of a model that is not served is in the order", WAITING, "            if lane.model_name in served:\n", "            if True:\n"),
    Mutant("what came since is not brought into the orders", WAITING, "                            order.add(lane)\n            self._given", "                            pass\n            self._given"),
    Mutant("what becomes earlier in a lane is not noticed", LANES, "        if virtual_ns < self.due_ns:\n            self.due_ns = virtual_ns\n            self.is_earlier = True\n", ""),
    Mutant("an urgent request is not noticed in a lane that waits", LANES, "            self.first = priority, virtual_ns\n            self.is_earlier = True\n", "            self.first = priority, virtual_ns\n"),
    Mutant("a key that is too early is believed", WAITING, "            elif key_ns < lane.due_ns:\n                heapreplace(heap, (lane.due_ns, place, lane))\n", ""),
    Mutant("a class that has gone is believed to be there", WAITING, "            elif key < lane.first:\n                heapreplace(heap, (lane.first, place, lane))\n", ""),
    Mutant("a lane whose head is too late is taken all the same", WAITING, "                if heads[0] == key_ns:\n                    break\n", "                break\n"),
    Mutant("a lane that was set aside is lost", WAITING, "        for entry in aside:\n            heappush(heap, entry)\n        return best\n\n    def highest", "        return best\n\n    def highest"),
    Mutant("the first lane found goes, though another is before it", WAITING, "                if best is None or (heads[0], place) < (best_ns, best_place):\n", "                if best is None:\n"),
    Mutant("what lanes leave behind in the heaps is never swept", WAITING, "        if len(self._due) > self._due_most:\n", "        if False:\n"),
    Mutant("a sweep keeps lanes by their former places", WAITING, "        if entry[1] == lane.place and not lane.is_empty():\n", "        if not lane.is_empty():\n"),
    Mutant("a lane that a sweep leaves out is not told", WAITING, "        if entry[1] == lane.place and not lane.is_empty():\n", "        if entry[1] == lane.place and lane.rows:\n"),
    Mutant("sets of models that were served once are kept for ever", WAITING, "            self._orders.clear()\n", "            pass\n"),
    Mutant("what halves of a failed batch are due by is not known", LANES, "        self.due_ns = min(self.due_ns, due_ns)\n", ""),
    Mutant("a snapshot names every shape there is", "broker/gauges.py", "nlargest(LANES_MAX, every, key=lambda lane: lane.rows)", "list(every)"),
    Mutant("what is overdue never gets its share", POLICY, " and worker.overdue_passed_over < OVERDUE_SHARE - 1:", ":"),
    Mutant("batches that went before what is overdue are not counted", POLICY, "worker.overdue_passed_over + 1 if choice[2] >= 0 else 0", "0"),
    Mutant("everything that is older goes before URGENT", POLICY, "        if first is not None and first[0][2] < due_class:\n", "        if False:\n"),
    Mutant("the highest class goes first although nothing is overdue", POLICY, " and due_ns <= now_ns and", " and"),
    Mutant("lower classes make an urgent request wait", TAKING, "most = lower_max if lower_max and", "most = rows_max if lower_max and"),
    Mutant("an idle worker waits for a fuller batch", POLICY, "    if not worker.leases:\n        return 0\n", "    if not worker.leases:\n        return 0 if lane.rows >= min(2, lane.model.max_batch) else NEVER_NS\n"),
    Mutant("the next batch is bound long before it can run", POLICY, "    return worker.busy_until_ns - lead_ns\n", "    return 0\n"),
    Mutant("nobody wakes up to lend the next batch", CORE, "            self._lend_due_ns = min(self._lend_due_ns, choice)\n", ""),
    Mutant("a batch is larger than the model takes", POLICY, "    late_rows = rows_max = worker.rows_max[lane.model_name]\n", "    late_rows = rows_max = worker.rows_max[lane.model_name] + 1\n"),
    Mutant("a worker is lent what another one takes", POLICY, "    late_rows = rows_max = worker.rows_max[lane.model_name]\n", "    late_rows = rows_max = max(worker.rows_max.values(), default=0)\n"),
    Mutant("what ran on another worker is lent whole", LANES, "            room = rows_max\n", "            room = 1 << 30\n"),
    Mutant("the rest of what is cut to be run again is lost", LANES, "                self.retries.insert(0, waiting)\n", "                pass\n"),
    Mutant("the worker heard of last says what all take", REGISTRY, "max(self.max_batch if self.workers else 1, self.rows_max(message))", "self.rows_max(message)"),
    Mutant("a worker that loads counts as hung as soon as any", LEASES, "HUNG_LOADING_NS if worker.loading and worker.loads_on_device else HUNG_MIN_NS", "HUNG_MIN_NS"),
    Mutant("a worker that has loaded is given time for ever", CORE, "        worker.loading.discard((message.model, message.revision))\n", ""),
    Mutant("a worker is killed for what a file claims", SERVING, "timing.run_ns(rows, padded) if timing.is_measured else 0\n", "timing.run_ns(rows, padded)\n"),
    Mutant("a request is refused for what a file claims", CORE, "timing.predict_ns(rows) / rows if timing.is_measured else 0.0", "timing.predict_ns(rows) / rows"),
    Mutant("what a file claims wins over what was measured", TIMING, "            elif not measured[0] <= rows <= measured[-1]:\n", "            else:\n"),
    Mutant("a claim may make a size look dear without end", TIMING, "min(max(guess, least), max(known, in_proportion * CLAIM_BENT_MAX))", "max(guess, least)"),
    Mutant("a claim may make a size look cheap without end", TIMING, "            least = max(known, in_proportion / CLAIM_FLAT_MAX)\n", "            least = known\n"),
    Mutant("a run of which nothing is known is hung at once", LEASES, "        return HUNG_UNKNOWN_NS\n", "        return 0\n"),
    # ---- leases
    Mutant("what may be slow counts as hung", LEASES, "    if not _is_evidence(batch):\n", "    if False:\n"),
    Mutant("a model is steady from the beginning", LEASES, " or not model.steadiness.is_steady or", " or"),
    Mutant("free axes say nothing about how long a run takes", LEASES, "    if not model.has_one_shape or not", "    if not"),
    Mutant("a Python function takes as long as it took", SIGNATURE, " and self.config.function is None\n", "\n"),
    Mutant("what was slow once is killed for it again", LEASES, "    return not any(part.request.was_slow for part in batch.parts)", "    return True"),
    Mutant("a half that was slow once is never tried again", TIMING, "if not self._measured or unhalved + 1 < tried_after:", "if True:"),
    Mutant("a half that is slow is tried again and again", TIMING, "= 0, min(2 * tried_after, TRIED_AFTER_MAX)", "= 0, tried_after"),
    Mutant("large neighbours are taken apart", CORE, "            parts.sort(key=_place)", "            parts.sort(key=lambda part: -part.request.id)"),
    Mutant("a surprise is forgotten at once", TIMING, "            self._runs_left = SURPRISE_RUNS\n            self.is_steady = False\n", "            pass\n"),
    Mutant("who follows is not waited for", LEASES, "    if run is not None and run.leader is request:\n", "    if False:\n"),
    Mutant("a worker's own watch knows nothing of who may follow", LEASES, "        due_ns = max(due_ns, now_ns + min(limit_ns, HUNG_UNKNOWN_NS))\n", "        pass\n"),
    Mutant("nobody looks whether a long run is still waited for", LEASES, "else min(hung_ns(batch, batch.began_ns), now_ns + LOOK_NS)\n", "else hung_ns(batch, batch.began_ns)\n"),
    Mutant("a cancelled request is waited for", LEASES, "                awaited_ns = 0 if request.ended else request.deadline_ns or NEVER_NS\n", "                awaited_ns = request.deadline_ns or NEVER_NS\n"),
    Mutant("run_seconds_max is not heeded", LEASES, "    return min(due_ns, began_ns + limit_ns) if limit_ns else due_ns\n", "    return due_ns\n"),
    Mutant("what is slower than its operator allows runs again and again", LEASES, "    return 0 < limit_ns <= now_ns - batch.began_ns\n", "    return False\n"),
    Mutant("slow is poison", CORE, "        if leases.was_slow(running, now_ns):\n", "        if False:\n"),
    Mutant("an end by the worker's own watch is poison", LEASES, "batch.worker.stopped or 0 < batch.lease_ns <= now_ns - batch.began_ns", "batch.worker.stopped"),
    Mutant("a kill by our hand is not remembered", CORE, "        worker.stopped = True\n", ""),
    Mutant("a run whose broker has died goes on for ever", WATCHDOG, "        return any(event & select.POLLIN for _, event in look.poll(0))\n", "        return False\n"),
    Mutant("a former broker's death ends a run", WATCHDOG, "        former, self._broker = self._broker, -1\n", "        if self._broker >= 0:\n            return\n        former, self._broker = self._broker, -1\n"),
    # ---- admission
    Mutant("rows of ended requests still count", ADMISSION, "        account.nbytes -= nbytes\n        self.rows -= rows\n", "        account.nbytes -= nbytes\n"),
    Mutant("a client's bytes are not counted", ADMISSION, "        connection.account.nbytes += request.nbytes\n", ""),
    Mutant("a client's bound on rows is not held", ADMISSION, "            or account.rows + rows > limits.client_rows_max\n", ""),
    Mutant("the yard's bound on rows is one too high", ADMISSION, "self.rows + rows > self._rows_max[priority]\n            or", "self.rows + rows > self._rows_max[priority] + 1\n            or"),
    Mutant("what is too late goes first", TAKING, "            if 0 < request.deadline_ns < far_ns and", "            if False and"),
    Mutant("what is too late is never looked at again", TAKING, "    if lane.late:\n        lane.call_back()\n", ""),
    Mutant("a forecast forgets what is overdue below", "broker/forecast.py", " - (least if below else 0.0))", ")"),
    Mutant("a forecast does not learn from a miss", "broker/forecast.py", "min(CAUTION_MAX, caution * MISSED_FACTOR)", "caution"),
    Mutant("a forecast takes no heed of higher classes", "broker/forecast.py", "1 - self._load_above(priority, now_ns)", "1"),
    Mutant("LOW may fill the whole queue", ADMISSION, "PERCENT = (100, 95, 90, 80)", "PERCENT = (100, 100, 100, 100)"),
    Mutant("a hopeless request is admitted", ADMISSION, "            if finish_ns > deadline_ns:\n", "            if finish_ns > deadline_ns * 1000:\n"),
    Mutant("a class counts on all of the workers' time", FORECAST, "        share = max(least, 1 - self._load_above(priority, now_ns) - (least if below else 0.0))\n", "        share = 1.0\n"),
    Mutant("a forecast learns nothing from what was missed", FORECAST, "        if not in_time:\n", "        if False:\n"),
    Mutant("what a class asks in a burst is taken for a habit", FORECAST, "sum(min(asked, served)", "sum(max(asked, served)"),
    # ---- registry
    Mutant("an input may lie outside the arena", SIGNATURE, "            if nbytes > arena_nbytes - tensor.offset:\n                check_range(tensor.offset, nbytes, arena_nbytes)  # says what is wrong\n", ""),
    Mutant("lanes that nobody uses pile up", REGISTRY, "            del self.lanes[lane.signature]\n", "            pass\n"),
    Mutant("shapes that differ share a lane", SIGNATURE, "tuple(tuple(tensor.shape[1:]) for tensor in inputs)", "((),)"),
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
    Mutant("one that takes other tensors is let in", CHANGES, "            reason = model.differs(message)\n", "            pass\n"),
    Mutant("a leaving model takes requests", ARRIVALS, "        if model is None or model.leaving:\n", "        if model is None:\n"),
    Mutant("a leaving model never goes", BOOKS, "                self.actions += self._drained(model)\n", "                pass\n"),
    Mutant("the old revision's time counts as the new one's", CORE, "timing is not None and batch.revision == model.revision", "timing is not None"),
    Mutant("a worker that comes back may change what a model takes", CORE, "elif model.outputs and (reason := model.differs(message)):", "elif (reason := \"\"):"),
    # ---- identical work
    Mutant("followers are not answered", BOOKS, "            answer = m.Answer(follower.id, queue_ns, owed.receipt, owed.outputs)\n            self.actions.append(e.ToClient(follower.conn, answer, owed.frames))\n", ""),
    Mutant("a follower is released twice", BOOKS, "            self.release(follower)\n", "            self.release(follower)\n            self.release(follower)\n"),
    Mutant("a follower is answered under the leader's number", BOOKS, "m.Answer(follower.id,", "m.Answer(request.id,"),
    Mutant("a leader's end forgets its followers", BOOKS, "        successor = run.succeed()\n", "        successor = None\n"),
    Mutant("who has left is still waited for", BOOKS, "            run.leave(request)\n", "            request.run = None\n"),
    Mutant("a follower that has left may lead", REQUESTS, "            if request in self.followers:\n                del self.followers[request]\n", "            if self.followers.pop(request, 0) != 1:\n"),
    Mutant("an urgent request waits behind a low one that is like it", BOOKS, "            request.virtual_ns < leader.virtual_ns\n", "            False\n"),
    Mutant("the lead is taken of what is to run as it is", LANES, "        if any(part in group for group in self.retries):\n            return False  # it is to run as it is\n", ""),
    Mutant("what was withdrawn is run all the same", LANES, "        part.stop = part.start  # what is left of it is skipped\n", ""),
    Mutant("what its client has changed is shared", DELIVERY, "rows == request.rows and index not in message.changed", "rows == request.rows"),
    Mutant("a part is taken for the whole result", DELIVERY, "whole = rows == request.rows and", "whole = request.rows_done == request.rows and"),
    Mutant("what an old revision said is shared", BOOKS, "request.gathered() if is_true and batch.revision == model.revision else None", "request.gathered() if is_true else None"),
    Mutant("a worker does not compare what it runs", GATHER, "if digest(parts) != item.digest:", "if False:"),
    Mutant("what others want is run where its client can change it", GATHER, "    private = private or compared\n", "    private = False\n"),
    Mutant("a key lacks the shapes", IDENTICAL, "return revision, digest, tuple((tensor.dtype, *tensor.shape) for tensor in inputs)", "return revision, digest, ()"),
    Mutant("a kept result never expires", IDENTICAL, "if kept.expires_ns <= now_ns:", "if False:"),
    Mutant("kept results have no bound", IDENTICAL, "while self.kept_bytes > self._bytes_max:", "while False:"),
    Mutant("small results are kept without end", IDENTICAL, "KEPT_BYTES + KEPT_TENSOR_BYTES * len(frames) + sum", "sum"),
    Mutant("kept results survive another revision", REGISTRY, "        self.sharing.become(config)\n", ""),
    Mutant("contents are hashed without a bound", FRONT, " and self.contents.read_bytes < READ_BYTES_MAX", ""),
    Mutant("what a client may shrink is read", ARENAS, 'own = entry.key[0] == "own" or', "own = True or"),
    Mutant("followers count as work", BOOKS, '        self.counters.spared(request.model.name, "joined")\n', '        self.counters.spared(request.model.name, "joined")\n        self._admission.queued(request)\n'),
    Mutant("no content is quarantined", BOOKS, "            self.actions.append(e.Quarantine(model.name, request.arena, request.inputs))\n", ""),
    Mutant("what is quarantined is run", BOOKS, "        if left_ns:\n", "        if False:\n"),
    Mutant("a quarantine never ends", IDENTICAL, "            if self._quarantined[oldest] > now_ns:\n                break\n", "            break\n"),
    Mutant("the followers of what kills live on", BOOKS, "for victim in (*followers, request):", "for victim in (request,):"),
    Mutant("two parts of one request are taken for neighbours", SERVING, "all(part.request is request for part in self.parts)", "len(self.parts) == 1"),
    # ---- buckets
    Mutant("padding is what an earlier batch left", GATHER, "            view[end : end + inner] = view[at - inner : at]\n", "            pass\n"),
    Mutant("a batch is padded beyond the next size", RUNNER, "buckets[bisect_left(buckets, rows)]", "buckets[min(bisect_left(buckets, rows) + 1, len(buckets) - 1)]"),
    Mutant("padding is handed out with the results", "gpuworker/answers.py", "sizes = [layout.nbytes(count) for layout, _, _, _ in sources]", "sizes = [layout.nbytes(group.size) for layout, _, _, _ in sources]"),
    Mutant("a padded run reads where its input lies", GATHER, "            and (size == group.rows or layout.axis < 0)\n", ""),
    Mutant("padding is taken for cheaper always", TIMING, "return (split_ns, full) if split_ns < padded_ns else (padded_ns, rows)", "return padded_ns, rows"),
    Mutant("padding is never taken for cheaper", TIMING, "return (split_ns, full) if split_ns < padded_ns else (padded_ns, rows)", "return split_ns, full"),
    Mutant("a batch is formed as if any size were run", POLICY, "        rows_max = timing.worth_taking(min(rows_max, lane.rows))\n", "        pass\n"),
    Mutant("a size that takes much memory is not warmed", MODEL, " and rows not in must:", ":"),
    Mutant("a request said twice is run twice", ARRIVALS, "            if not known.repeats(message):  # else the one outcome answers both\n", "            if True:\n"),
    Mutant("another request under a number is taken for the first", REQUESTS, "== content", "== asked or True"),
    # ---- the worker
    Mutant("a worker keeps a former broker's arenas", SESSION, "        self._memory.detach_all()\n", ""),
    Mutant("a worker keeps bindings into a former broker's arenas", SESSION, "        for _, model in self._kept:\n            model.forget_bindings()\n        self._memory.detach_all()", "        self._memory.detach_all()"),
    Mutant("a worker forgets its arenas when it greets again", SESSION, "        self._send([m.Register(self._pid, [self._provider], self._fallback_reason, self._secret())])\n", "        self._memory.detach_all()\n        self._send([m.Register(self._pid, [self._provider], self._fallback_reason, self._secret())])\n"),
    Mutant("a worker never unmaps an arena", SESSION, "        self._memory.detach(message.arena)\n", ""),
    Mutant("a worker answers with a former broker's epoch", SESSION, "        self._epoch = message.epoch\n", "        self._epoch = self._epoch or message.epoch\n"),
    Mutant("a worker that is refused does not greet again", SESSION, "            self.register()\n", "            pass\n"),
    Mutant("unloading one revision unloads all", SESSION, "        self._models.pop((message.model, message.revision), None)\n", "        self._models.clear()\n"),
    Mutant("a worker runs a former broker's revisions", SESSION, "        self._models.clear()  # a new broker counts revisions anew\n", ""),
    Mutant("a load is answered to a broker that did not ask", SESSION, "            loads.clear()\n", "            pass\n"),
    Mutant("a file that is known needs no canary", SESSION, "[] if trial else [", "["),
    Mutant("a dead broker's trial answers the next one's load", SESSION, "source, (self._epoch, message.baseline_revision, message.tolerance) if trial else None", "source, None"),
    Mutant("a model that nobody serves is kept", SESSION, "if id(model) in used]", "]"),
    Mutant("a trial that was given up while it loaded is kept", SESSION, "            return  # it was unloaded meanwhile, or its broker is gone\n", "            pass\n"),
    Mutant("the loader's thread keeps the models of its last job", LOADER, "            self._do(*self._jobs.get())\n", "            job = self._jobs.get()\n            self._do(*job)\n"),
    Mutant("a worker that goes to a better provider runs nothing of what it holds", SESSION, "        if not runs_on:\n", "        if True:\n"),
    Mutant("a worker that lost its device runs on", SESSION, "        if not runs_on:\n", "        if False:\n"),
    Mutant("any difference of a canary is allowed", CANARY, "if tolerance is not None and not greatest <= tolerance:  # a tolerance of NaN allows nothing", "if False:"),
    Mutant("a canary's answers may be no numbers", CANARY, "    if np.any(finite & ~np.isfinite(after)):\n", "    if False:\n"),
    Mutant("rows are scattered to the wrong requests", "gpuworker/answers.py", "sources, result)\n        at += count\n", "sources, result)\n        at += 1\n"),
    Mutant("rows are gathered over each other", GATHER, "            at += nbytes\n", ""),
    # ---- the broker's two sides
    Mutant("a message of a connection that was closed amid what it said is handled", BACK, "            elif not peer.ended:  # else", "            else:  # else"),
    Mutant("a worker is not told of an arena", BACK, "                    queue.append(m.Attach(item.arena, self._arenas.handle(item.arena)))\n", "                    pass\n"),
    Mutant("workers are not told that an arena is closed", BACK, "                self.outbox.setdefault(worker.worker, []).append(m.Detach(arena))\n", ""),
    Mutant("a worker that is cut off is not killed", BACK, "            if not self.sentinels.kill(action.worker):\n                self._gone(action.worker)\n", "            self._gone(action.worker)\n"),
    Mutant("a worker whose connection has ended stays", BACK, "        worker = self.known.get(peer)\n        if worker is not None:\n            self.events.append(e.WorkerCutOff(worker.worker))\n\n", "\n"),
    Mutant("a worker that can't be told anything stays", BACK, "            worker = self.known.get(peer)\n            if worker is not None:\n                self.events.append(e.WorkerCutOff(worker.worker))\n", "            pass\n"),
    Mutant("a dropped client is told half", FRONT, "        elif client.peer not in self.known:\n            return  # dropped; half of its results would be worse than its connection's end\n", ""),
    Mutant("a question that fails frees the slots of the request with its number", FRONT, "        if action.is_of_question:\n", "        if False:\n"),
    Mutant("a message goes on after its client was dropped", FRONT, "                self._drop(client)\n                return\n", "                self._drop(client)\n"),
    Mutant("a client over tcp that was dropped is remembered for ever", FRONT, "            self._forget(client)  # if it was dropped on the way\n", ""),
    Mutant("tensors that came as frames are never freed", FRONT, "            self.inline.release(conn, message.request)\n", "            pass\n"),
    Mutant("a client whose connection has ended stays", FRONT, "        client = self.known.get(peer)\n        if client is not None:\n            self._drop(client)\n\n", "\n"),
    Mutant("a client that was dropped stays connected", FRONT, "        peer.close()\n", ""),
    Mutant("who has greeted stays a stranger", FRONT, "        self.listener.admit(peer)\n", ""),
    # ---- the wire
    Mutant("what came before a violation is lost", ZMTP, "                if not self._may_come(flags, size) or stop > end:\n                    break\n                if not self._command", "                if not self._may_come(flags, size) or stop > end:\n                    return []\n                if not self._command"),
    Mutant("a frame of any size is taken", ZMTP, "size > self._bounds.frame_bytes or ", ""),
    Mutant("a message of any size is taken", ZMTP, " or size > self._bounds.message_bytes - self._message_bytes", ""),
    Mutant("a command of any size is waited for", ZMTP, "        elif size > COMMAND_BYTES_MAX:\n", "        elif False:\n"),
    Mutant("a message may have any number of parts", ZMTP, "        if len(self._parts) <= self._bounds.parts:  # one", "        if True:  # one"),
    Mutant("a PING is answered every time", ZMTP, "            elif len(self.replies) < PONGS_MAX:\n", "            else:\n"),
    Mutant("a message may come before READY", ZMTP, '            self._refuse("a message before READY")\n', "            self.is_ready = True\n"),
    Mutant("READY may come again", ZMTP, '            self._violate("a second READY")\n', "            pass\n"),
    Mutant("any kind of socket may talk to ours", ZMTP, "        if socket_type not in COMPATIBLE[self._socket_type]:\n", "        if False:\n"),
    Mutant("a flood of small frames is looked at in one go", ZMTP, "EVENTS_MAX = 256", "EVENTS_MAX = 1 << 30"),
    Mutant("the rest of a large frame is read to its beginning", ZMTP, "        self.room = large[here:]\n", "        self.room = large[: len(large) - here]\n"),
    Mutant("messages leave before the other side's READY", STREAM, "            if not self.receiver.is_ready and not self.receiver.violation:\n                return", "            if False:\n                return"),
    Mutant("an outbox has no end", STREAM, "        if len(outbox) >= self._bounds.outbox_messages or kept_bytes > self._bounds.outbox_bytes:\n", "        if False:\n"),
    Mutant("what is left of a large message is not copied", STREAM, '            outbox.append(b"".join(reversed(left)))\n', "            outbox.extend(reversed(left))\n"),
    Mutant("what was written in part is written again", STREAM, "            outbox[0] = memoryview(outbox[0])[count:]\n", "            pass\n"),
    Mutant("descriptors that nobody wants stay open", STREAM, "came[: self.descriptors_max - len(self.descriptors)]", "came"),
    Mutant("memory that goes along is not counted", STREAM, "            self.along_bytes += along_bytes\n", ""),
    Mutant("descriptors go with an earlier message", STREAM, "        if marked is not None and marked is not piece:\n", "        if False:\n"),
    Mutant("a descriptor that was not asked for stays open", LISTENER, "        peer.stream.descriptors.clear()\n", ""),
    Mutant("an end overtakes what was said before it", LISTENER, "            if inbox or stream.receiver.has_more:\n                self._put_in_line(peer)\n            elif stream.end is not None:", "            if stream.end is None and inbox:\n                self._put_in_line(peer)\n            elif stream.end is not None:"),
    Mutant("one peer is read until it has nothing more", LISTENER, "PEER_SHARE = 16", "PEER_SHARE = 1 << 30"),
    Mutant("who can't be let in wakes us for ever", LISTENER, "                    self._turn_away()\n", "                    pass\n"),
    Mutant("nobody waits for room to write", LISTENER, "        wanted = self.stream.blocked\n", "        wanted = False\n"),
    Mutant("strangers stay as long as they like", LISTENER, "now_ns - since_ns >= within_ns or ", ""),
    Mutant("an end that libzmq reports is not told", LIBZMQ, "                    self._endings.append(peer)\n", "                    pass\n"),
    Mutant("a connection is ended by the number of one that has ended", LIBZMQ, "        if not self.ended:  # else its", "        if True:  # else its"),
    Mutant("a memfd that came along may be another than was offered", MEMFD, "        _judge(fd, handle.nbytes, None, inode)\n", "        _judge(fd, handle.nbytes, None, None)\n"),
    Mutant("a memfd that came along may be read only", MEMFD, "        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:\n", "        if False:\n"),
    Mutant("what is over is due all the same", DEADLINES, "            if not self._is_over(thing):\n                yield thing\n", "            yield thing\n"),
    # ---- the loop and its sides
    Mutant("a connection that ends is handled behind the next one's greeting", FRONT, "            if self.events:  # a connection that ended: its arena may be the next one's\n                yield from self._beside()\n", ""),
    Mutant("a client joins before its arena is known", FRONT, "                    yield from self._beside()  # its arena, if that is new\n", ""),
    Mutant("a request whose frames are not there is not answered", FRONT, "                self.outbox.setdefault(client.peer, []).append(refusal(message, error))\n", "                pass\n"),
    Mutant("the loop sleeps over a connection that it has ended", LOOP, "workers.events or clients.events or clients.backlog", "clients.backlog"),
    Mutant("a deadline alone does not end a round", LOOP, "        if is_due or (happened and self._waiting):\n", "        if happened and self._waiting and not is_due:\n"),
    Mutant("batches are lent only when a deadline has passed", LOOP, "        if is_due or (happened and self._waiting):\n", "        if is_due:\n"),
    Mutant("an answer to a PING waits for the next message", LOOP, "        if clients.outbox or clients.listener.unwritten:\n", "        if clients.outbox:\n"),
    Mutant("it polls although every core is wanted", "broker/spinning.py", "        self.spin_ns = 0 if self._wanted > WANTED else self._most_ns\n", ""),
    Mutant("a worker that is cut off while it holds a batch is gone at once", CORE, "        if not holds_batches:\n            self._worker_gone", "        if True:\n            self._worker_gone"),
    Mutant("a worker that is forgotten keeps its connection", BACK, "        known.peer.close()\n", ""),
    Mutant("a lone request is lent to a worker that does not serve it", POLICY, "    if timing is None or lane.retries or lane.late:\n", "    if lane.retries or lane.late:\n"),
    Mutant("a lone request may be larger than a worker takes", POLICY, "        if is_cut or lane.rows > worker.rows_max[lane.model_name]:\n", "        if is_cut:\n"),
    Mutant("requests that end together leave their bytes behind", BOOKS, "            self.held_bytes -= nbytes\n", ""),
    Mutant("a message that was written whole is written again", STREAM, "                        outbox.clear()\n                        break\n", "                        break\n"),
    Mutant("answers to PING are not written", STREAM, "        if receiver.replies or receiver.violation:\n", "        if receiver.violation:\n"),
    Mutant("the loop sleeps over messages that were read and not taken", LISTENER, "        self.has_more = bool(line)\n", "        self.has_more = False\n"),
    # ---- padding
    *(Mutant(*mutant) for mutant in PADDED),
    # ---- the client
    *(Mutant(*mutant) for mutant in ENGINE),
]  # fmt: skip
MUTANTS += [Mutant(*row) for row in ROWS]
