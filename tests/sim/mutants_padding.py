"""Bugs to sow into what pads: (name, file, text, text in its place); see mutants.py."""

from __future__ import annotations

NEIGHBOURS = "broker/neighbours.py"
TAKING = "broker/taking.py"
RAGGED = "broker/ragged.py"
ELEMENTS = "broker/elements.py"
REGISTRY = "broker/models.py"
EVIDENCE = "evidence/padding.py"
PADDING = "gpuworker/padding.py"
RUNNER = "gpuworker/runner.py"

PADDED = [
    ("padding is what an earlier batch left there", PADDING, "        rows[...] = self._pads.fills[index]\n", ""),
    ("outputs are not cut back", PADDING, "place[axis] = slice(0, self.owns[number][name])", "place[axis] = slice(None)"),
    ("outputs are cut to another's size", PADDING, "place[axis] = slice(0, self.owns[number][name])", "place[axis] = slice(0, self.owns[0][name])"),
    ("a size is not rounded up where the device wants it", PADDING, "        if not self._whole:\n            return longest\n", "        return longest\n"),
    ("the first request's size is everybody's", PADDING, "longest = tuple(map(max, zip(*owns, strict=True)))", "longest = owns[0]"),
    ("requests that can't be padded share a run", RUNNER, "if self._pads is None or (not big and self._pads.sizes_of(item) is not None):", "if True:"),
    ("padding is not counted", RUNNER, "            result.padding += group.padded.padding(group.counts)\n", "            pass\n"),
    ("a content is compared with its padding", "gpuworker/gather.py", "if padded is not None and padded.has(index):", "if False:"),
    ("an output that is not padded as it was is cut all the same", "gpuworker/answers.py", "            group.padded.check(index, shape)\n", "            pass\n"),
    ("padding costs nothing", NEIGHBOURS, "if cost > 0 and cost >= self._worth:", "if False:"),
    ("padding is worth nothing", NEIGHBOURS, "if cost > 0 and cost >= self._worth:", "if cost > 0:"),
    ("a batch has as many elements as it likes", NEIGHBOURS, " or 0 < self._elements_max < elements:", ":"),
    ("what was looked at and not taken is lost", TAKING, "        if id(entry[2]) not in kept:\n", "        if False:\n"),
    ("the rest of a padded request is lost", TAKING, "        lane.split(entries[0], rows)\n", "        entries[0][2].stop = entries[0][2].start + rows\n"),
    ("requests of all sizes share a lane", RAGGED, "bucket.append(to[at] if at < len(to) else size)", "bucket.append(max(to[-1], size))"),
    ("a request that disagrees with itself is padded", RAGGED, "if have != size != NONE or not have:", "if not have:"),
    ("an input that was not tried is padded", RAGGED, "        if any(inputs[index].dtype != ABSENT for index in self._untried):\n            return ()\n", ""),
    ("a padded batch makes its members late", NEIGHBOURS, "return not (0 < self._nearest_ns < ends_ns or 0 < deadline_ns < ends_ns)", "return True"),
    ("a slower padded run is not believed", ELEMENTS, "self.ratio = min(8.0, max(1.0, self.ratio + (off - self.ratio) * weight))", "self.ratio = 1.0"),
    ("runs of one size say everything of the slope", ELEMENTS, "weight = (PRIOR_SPREAD * mean_x) ** 2", "weight = 1e-9"),
    ("any difference of a padded answer is allowed", EVIDENCE, "            if not off <= tolerance_of(spec):\n", "            if False:\n"),
    ("answers that are no numbers are evidence", EVIDENCE, "            self._check_numbers(alone)\n", ""),
    ("a mask is drawn as what is left out", EVIDENCE, "array[...] = 0 if self._fills[name] else 1", "array[...] = 1"),
]  # fmt: skip
