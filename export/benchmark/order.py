"""The steps: export the candidates that have changed, evaluate and time all, then rank them.

The record is written after every candidate, so that the next call continues where this one ended.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...transport.errors import InvalidRequest, ModelFailed
from .. import runtime, timing
from ..build import Say
from ..lists import Entry, entries
from ..many import importable
from ..metadata import versions
from ..sources import first_line
from . import latency, record
from .evaluation import Evaluation, evaluation
from .exporters import Exporters
from .ranking import fronts
from .record import Json

LIMIT_S = 600.0
BATCHES = (1, 8)


@dataclass(frozen=True)
class Plan:
    """`where`: a folder or list of candidates; `out`: the folder to write into; `common`: arguments of
    export_to_onnx for all, as JSON values. `evaluate`: a labelled .npz, or module:function. `batches`: rows
    to time; the first one is ranked by. `baseline`: the candidate to which ratios are relative. `jobs`:
    exporting processes at once. `limit_s`: the time limit of one export. `force`: repeat everything."""

    where: Path
    out: Path
    common: Mapping[str, Any] = field(default_factory=dict)
    evaluate: str | None = None
    batches: Sequence[int] = BATCHES
    baseline: str | None = None
    jobs: int = 1
    limit_s: float = LIMIT_S
    force: bool = False


def benchmark(plan: Plan, say: Say = lambda line: None) -> Json:
    """Carry out a plan, and return the record that lies in `out`; docs/export.md describes its fields.

    Raises InvalidRequest for an invalid plan. A candidate's failures are in the record.
    """
    found = entries(plan.where)
    if any(f"{entry.name}.json" == record.NAME for entry in found):
        raise InvalidRequest(f"a candidate cannot be called {Path(record.NAME).stem}: the record is")
    where = runtime.target(plan.common.get("provider", runtime.CPU), plan.common.get("provider_options"))
    with importable(plan.where):
        judge = evaluation(plan.evaluate) if plan.evaluate else None
        made_of = {entry.name: record.fingerprint(entry, plan.common) for entry in found}
        evaluated_by = (
            record.digest([plan.evaluate, record.source_digest(plan.evaluate)]) if plan.evaluate else None
        )
        plan.out.mkdir(parents=True, exist_ok=True)
        before = record.read(plan.out)
        candidates = _exported(plan, found, made_of, before, say)
        whole = {
            "provider": where.provider,
            "provider_options": dict(where.options),
            "versions": versions(),
            "evaluate": plan.evaluate,
            "batches": list(plan.batches),
            "baseline": before.get("baseline"),
            "candidates": candidates,
        }
        record.write(plan.out, whole)
        _Stage(plan, where, judge, evaluated_by, say).measure(whole)
    rank(candidates)
    record.write(plan.out, whole)
    return whole


# ---- exporting ----------------------------------------------------------------------------------


def _exported(
    plan: Plan, found: Sequence[Entry], made_of: Mapping[str, str], before: Json, say: Say
) -> list[Json]:
    """A record for every candidate, in the list's order. Those that have not changed keep theirs."""
    earlier = {candidate["name"]: candidate for candidate in before["candidates"]}
    kept: dict[str, Json] = {}
    for entry in found:
        known = earlier.get(entry.name)
        if known is None or plan.force or known["fingerprint"] != made_of[entry.name]:
            continue
        if known["export_error"] is None and record.is_whole(plan.out, known):
            kept[entry.name] = known
    names = [entry.name for entry in found if entry.name not in kept]
    if kept:
        say(f"{len(kept)} of {len(found)} have not changed, and are not exported again")
    fresh = dict(kept)
    with (plan.out / "benchmark.log").open("ab") as log:
        exporters = Exporters(plan.where, plan.out, plan.common, plan.jobs, plan.limit_s, log)
        for index, ended in enumerate(exporters.run(names), 1):
            error, files = ended.error, list[Json]()
            if error is None:
                try:
                    files = record.published(plan.out, ended.name)
                except (OSError, ValueError, KeyError, TypeError) as failure:
                    error = f"its export left no readable record: {first_line(failure)}"
            fresh[ended.name] = {
                "name": ended.name,
                "fingerprint": made_of[ended.name],
                "export_s": round(ended.took_s, 3),
                "export_error": error,
                "files": files,
            }
            said = "exported" if error is None else f"failed: {error}"
            say(f"[{index}/{len(names)}] {ended.name}: {said} ({ended.took_s:.1f} s)")
            done = [fresh[entry.name] for entry in found if entry.name in fresh]
            record.write(plan.out, {**before, "candidates": done})
    return [fresh[entry.name] for entry in found]


# ---- evaluating and timing ----------------------------------------------------------------------


class _Stage:
    """Loads files a group at a time, evaluates each, and times the group beside the baseline."""

    def __init__(
        self,
        plan: Plan,
        where: runtime.Target,
        judge: Evaluation | None,
        evaluated_by: str | None,
        say: Say,
    ) -> None:
        self._plan = plan
        self._where = where
        self._judge = judge
        self._evaluated_by = evaluated_by
        self._say = say
        self._budget_s = float(plan.common.get("measure_s", timing.BUDGET_S))

    def measure(self, whole: Json) -> None:
        """Fill in the accuracy and latencies of every file, unless they are known."""
        files = [part for candidate in whole["candidates"] for part in candidate["files"]]
        if self._judge is None:
            for part in files:
                part["accuracy"] = part["evaluated_by"] = None
        baseline = self._baseline(whole, files)
        if baseline is None:
            return
        whole["baseline"] = {"file": baseline["file"], "sha256": baseline["sha256"]}
        timed_by = record.digest(
            [
                baseline["sha256"],
                asdict(self._where),
                self._plan.batches,
                self._budget_s,
                whole["versions"].get("onnxruntime"),
            ]
        )
        waiting = [part for part in files if self._plan.force or not self._is_known(part, timed_by)]
        # Once more beside whatever is timed now, for its time in milliseconds to be of the same day.
        if waiting and baseline not in waiting:
            waiting.insert(0, baseline)
        grouped = latency.groups([part["bytes"] for part in waiting])
        for number, indices in enumerate(grouped, 1):
            group = [waiting[index] for index in indices]
            self._say(f"measuring {len(group)} files (group {number} of {len(grouped)})")
            self._group(baseline, group, timed_by)
            gc.collect()  # sessions hold as much memory as their files, and more
            record.write(self._plan.out, whole)
        times = {part["batch"]: part["p50_ms"] for part in baseline["latencies"]}
        for part in files:
            for one in part.get("latencies") or ():
                one["ms"] = one["ratio"] * times[one["batch"]]

    def _is_known(self, part: Json, timed_by: str) -> bool:
        if part.get("error") is not None or part.get("timed_by") != timed_by:
            return False
        return self._judge is None or part.get("evaluated_by") == self._evaluated_by

    def _baseline(self, whole: Json, files: Sequence[Json]) -> Json | None:
        """The baseline: the requested one, the last record's, or the first file that runs."""
        named = self._plan.baseline
        if named is not None:
            chosen = [part for part in files if named in (part["file"], Path(part["file"]).stem)]
            if not chosen:
                raise InvalidRequest(f"the baseline {named!r} is none of the exported candidates")
            files = chosen
        elif whole["baseline"] is not None:
            files = [*(part for part in files if part["sha256"] == whole["baseline"]["sha256"]), *files]
        for part in files:
            try:
                session = self._session(part)
                for batch in self._plan.batches:
                    latency.run_of(session, batch)
            except (InvalidRequest, ModelFailed) as failure:
                if named is not None:
                    raise ModelFailed(f"the baseline {named!r} cannot be run: {failure}") from failure
                part["error"] = first_line(failure)
                continue
            return part
        return None

    def _session(self, part: Json) -> Any:
        return runtime.session(str(self._plan.out / part["file"]), self._where)

    def _group(self, baseline: Json, group: Sequence[Json], timed_by: str) -> None:
        ready: list[tuple[Json, Any]] = []
        for part in group:
            part.update(accuracy=None, evaluated_by=None, latencies=[], timed_by=None, error=None)
            try:
                session = self._session(part)
                for batch in self._plan.batches:
                    latency.run_of(session, batch)  # it must be able to
                ready.append((part, session))
                if self._judge is not None:
                    part["accuracy"] = self._judge(session)
                    part["evaluated_by"] = self._evaluated_by
            except (InvalidRequest, ModelFailed) as failure:
                part["error"] = first_line(failure)
        base = self._session(baseline)
        for batch in self._plan.batches:
            runs = [latency.run_of(session, batch) for _, session in ready]
            found = latency.interleaved(latency.run_of(base, batch), runs, batch, self._budget_s)
            for (part, _), one in zip(ready, found, strict=True):
                part["latencies"].append(asdict(one))
        for part, _ in ready:
            part["timed_by"] = timed_by


# ---- ranking ------------------------------------------------------------------------------------


def rank(candidates: Sequence[Json]) -> None:
    """Set each file's `front`, by accuracy and latency, or by latency and size without an evaluation."""
    files = [part for candidate in candidates for part in candidate["files"]]
    is_evaluated = any(part.get("accuracy") is not None for part in files)
    unknown = float("nan")

    def costs(part: Json) -> tuple[float, float]:
        latencies = part.get("latencies")
        if part.get("error") is not None or not latencies:
            return unknown, unknown
        if not is_evaluated:
            return latencies[0]["ratio"], part["bytes"]
        return latencies[0]["ratio"], unknown if part["accuracy"] is None else -part["accuracy"]

    for part, front in zip(files, fronts([costs(part) for part in files]), strict=True):
        part["front"] = front


def ranked(whole: Json) -> Iterator[tuple[str, Json]]:
    """(candidate, file): the Pareto front first, and within a front the most accurate first. Files without
    figures come last."""
    rows = [(candidate["name"], part) for candidate in whole["candidates"] for part in candidate["files"]]

    def place(row: tuple[str, Json]) -> tuple[float, float, float]:
        part = row[1]
        if part.get("front") is None:
            return float("inf"), 0.0, 0.0
        return part["front"], -(part["accuracy"] or 0.0), part["latencies"][0]["ratio"]

    return iter(sorted(rows, key=place))
