"""Bugs to sow where it is decided which rows share a run: (name, file, text, what is put in its place)."""

from __future__ import annotations

BOOKS = "broker/books.py"
SIGNATURE = "broker/signature.py"
TAKING = "broker/taking.py"
CORE = "broker/core.py"
LANES = "broker/lanes.py"
REGISTRY = "broker/models.py"
SESSION = "gpuworker/worker.py"
RUNNER = "gpuworker/runner.py"
ANSWERS = "gpuworker/answers.py"
HANDLES = "gpuworker/handles.py"
REQUEST = "client/request.py"
AXES = "evidence/axes.py"
DRAWING = "evidence/drawing.py"
JUDGE = "evidence/judge.py"

ROWS = [
    # ---- requests that run alone
    ("requests that run alone share a run", TAKING, "    if lane.is_alone:\n        rows_max, lower_max = 1, 0\n    elif", "    if"),
    ("halves of a failed batch are cut where all runs alone", LANES, "                if self.is_alone and not taken:\n                    room = rows\n", ""),
    ("inputs that disagree in size share a run", SIGNATURE, "            if axis >= 0 and (axis >= len(tensor.shape) or tensor.shape[axis] != rows):\n                return 0\n", ""),
    ("an input that is needed may be left out", SIGNATURE, "if tensor.dtype == ABSENT and want.spec.optional:", "if tensor.dtype == ABSENT:"),
    ("strings may lie outside the arena", SIGNATURE, "                nbytes = tensor.nbytes\n", "                nbytes = 0\n"),
    ("rows on another axis are counted on axis 0", SIGNATURE, "        rows = shape[axis] if axis < len(shape) else 0\n", "        rows = shape[0] if axis < len(shape) else 0\n"),
    ("what a batch shares does not choose the lane", SIGNATURE, "return (shared, *tails)", "return tuple(tails)"),
    # ---- rows that are none after all
    ("what waits goes on sharing runs when rows are disproved", REGISTRY, "                lane.is_alone = True\n", "                pass\n"),
    ("a later revision runs alone for what an earlier one did", REGISTRY, "                lane.signature = (*ALONE, number)\n", "                pass\n"),
    ("rows that are lent are joined with others when they are none", CORE, "        for parts in (*leased, *(lane", "        for parts in (*(), *(lane"),
    ("rows that wait are joined with others when they are none", CORE, "        for parts in (*leased, *(lane.waiting() for lane in model.lanes.values())):\n", "        for parts in leased:\n"),
    ("a request that starts over still waits for one that is like it", BOOKS, "        request.key = None  # nobody waits for its result any more\n", ""),
    ("workers that have not seen the same share runs all the same", CORE, "            if model.outputs and model.batchable != message.batchable and not model.disproved:\n", "            if False:\n"),
    ("a worker keeps it to itself that rows are none", SESSION, "            self._send([m.RunsAlone(message.model, message.revision, reason[:4000])])\n", ""),
    ("an answer that the broker would refuse is sent", SESSION, "codec.worker_to_broker.refusal(done) if result.frames else \"\"", "\"\""),
    ("outputs without the batch's rows are dealt out", ANSWERS, "if axis >= 0 and (axis >= len(shape) or shape[axis] != group.size):", "if False:"),
    # ---- inputs that a batch shares
    ("shared inputs are not compared before a run", RUNNER, " or following != kind", ""),
    ("a shared input is read again after it was compared", "gpuworker/gather.py", "        if len(items) > 1:\n            view[: layout.row_nbytes] = group.common[group.shared.index(index)]\n            return\n", ""),
    # ---- requests of one shape, in columns
    ("of requests of one shape the last is not looked at", HANDLES, "    memory.range(number, max(offsets), nbytes)\n", ""),
    ("requests of two shapes are gathered as one", HANDLES, "if other.dtype != dtype or other.shape != shape:", "if other.dtype != dtype:"),
    ("slots of two sizes are written as one", HANDLES, "                if each.nbytes != nbytes or each.shape != slot.shape:\n", "                if False:\n"),
    ("what the first request has is taken for shared", HANDLES, "values[0].tobytes() if (values == values[0]).all() else None", "values[0].tobytes()"),
    ("rows of one shape are scattered in another order", ANSWERS, "group.columns.write(index, _by_request(group, layout, data))", "group.columns.write(index, _by_request(group, layout, data)[::-1])"),
    ("behind the rows of one shape lies what an earlier batch left", "gpuworker/gather.py", "            blocks[:, rows:] = blocks[:, rows - 1 : rows]\n", "            pass\n"),
    # ---- slots and frames
    ("a slot of another size is written", ANSWERS, "if layout is None or slot.nbytes != layout.nbytes(rows):", "if layout is None:"),
    ("a large slot of another size is written", "gpuworker/group.py", "item.outputs[index].nbytes != layout.nbytes(whole)", "False"),
    ("an output that a run does not write is taken from its buffer", ANSWERS, "if layout is None or written is None or not written[index]:", "if layout is None:"),
    ("a part writes past its request's rows", RUNNER, "if item.rows and not 0 <= item.start <= self._all_rows(item) - item.rows:", "if False:"),
    ("parts of an answer are joined on axis 0", REQUEST, "np.concatenate(column, axis)", "np.concatenate(column)"),
    # ---- evidence
    ("any difference between rows is allowed", JUDGE, "            if not off <= allowed:\n", "            if False:\n"),
    ("many rows are not tried", JUDGE, "        self._compare_many(count)\n", ""),
    ("larger values are not tried", DRAWING, "        other._scale = OTHER_SCALE\n", ""),
    ("the first batches are not run by each request", RUNNER, "        if is_checked:\n            self._check_pieces(group, addresses, values)\n", ""),
    ("what each request gives by itself is not compared", "gpuworker/spotchecks.py", "            if not off <= tolerance_of(spec):\n                raise NotRows(\n                    f\"rows of {len(requests", "            if False:\n                raise NotRows(\n                    f\"rows of {len(requests"),
    ("a split request is not compared with the whole one", "gpuworker/spotchecks.py", "            if not off <= tolerance_of(spec):\n                raise NotRows(\n                    f\"rows of a request", "            if False:\n                raise NotRows(\n                    f\"rows of a request"),
    ("unusual rows are not tried", JUDGE, "        self._compare_unusual()\n", ""),
    ("every batch is run twice", "gpuworker/spotchecks.py", "        return self._batches % EVERY == 0\n", "        return True\n"),
    ("equal rows are evidence", JUDGE, "        if not _rows_differ(self._feeds, self._drawing):\n", "        if False:\n"),
    ("an index that met its table by luck costs a model its batches", JUDGE, "                refusal = refusal or f\"{proposal.why}, but {error}\"\n                continue\n", "                refusal = refusal or f\"{proposal.why}, but {error}\"\n                break\n"),
    ("a name that stands twice in an input counts rows", AXES, "any(shape.count(name) > 1 for shape in shapes) or ", ""),
    ("an output that has no rows is divided", AXES, "    if SHARED in gives:\n", "    if False:\n"),
    ("numbers are drawn that their type has not", DRAWING, "        top = min(top, entry.top, 2 if _TYPE.search(spec.name) else entry.top)\n", ""),
]  # fmt: skip
