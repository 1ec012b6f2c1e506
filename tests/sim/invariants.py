"""Invariants of the broker's core between any two events. They walk everything."""

from __future__ import annotations

import itertools

from batchyard.broker.core import Core
from batchyard.broker.policy import CREDIT
from batchyard.broker.sharing import Sharing


def check(core: Core) -> None:
    """Raise AssertionError with the invariant that does not hold."""
    live = {id(r): r for c in core.connections.values() for r in c.requests.values()}
    covered: dict[int, list[tuple[int, int]]] = {key: [] for key in live}
    _check_waiting(core, covered)
    leased, held_by_arena = _check_leases(core, covered)
    for key, request in live.items():
        assert not request.ended, f"ended request {request.id} is still listed"
        assert request.rows_leased == leased.get(key, 0), f"request {request.id}: leased rows miscounted"
        ranges = sorted(covered[key])
        rows = sum(stop - start for start, stop in ranges)
        due = request.rows - request.rows_done if request.leader is None else 0
        assert rows == due, f"request {request.id}: rows lost or doubled"
        if request.leader is not None:
            assert request.run is not None
            assert request in request.run.followers, f"request {request.id} is not waited for"
            run = request.run
            has_leader = request.leader.rows_leased or id(request.leader) in live or run.is_answered
            assert has_leader, f"{request.id} waits for no leader"
        for (_, stop), (start, _) in itertools.pairwise(ranges):
            assert stop <= start, f"request {request.id}: rows {start}..{stop} are in two places"
    _check_totals(core, held_by_arena)
    for model in core.models.values():
        check_results(model.sharing)


def _check_waiting(core: Core, covered: dict[int, list[tuple[int, int]]]) -> None:
    for model in core.models.values():
        waiting = [0, 0, 0, 0]
        for lane in model.lanes.values():
            for part in lane.waiting():
                waiting[part.request.priority] += part.stop - part.start
        assert model.waiting == waiting, f"{model.name} counts {model.waiting} waiting rows, not {waiting}"
        users = sum(lane.users for lane in model.lanes.values())
        assert model.users == users, f"{model.name} counts {model.users} users, not {users}"
        for lane in model.lanes.values():
            parts = lane.waiting()
            rows = sum(part.stop - part.start for part in parts)
            assert lane.rows == rows, f"a lane of {model.name} counts {lane.rows} rows and holds {rows}"
            seen = not parts or lane in core.policy.lanes
            assert seen, f"a lane of {model.name} holds work and is not looked at"
            for part in parts:
                covered[id(part.request)].append((part.start, part.stop))


def _check_leases(
    core: Core, covered: dict[int, list[tuple[int, int]]]
) -> tuple[dict[int, int], dict[int, dict[int, int]]]:
    """(request -> rows that are leased, arena -> request that is leased -> its bytes)."""
    leased: dict[int, int] = {}
    held: dict[int, dict[int, int]] = {}
    count = 0
    for worker in core.workers.values():
        assert bool(worker.overdue_ns) <= bool(worker.leases), f"worker {worker.id} is watched for nothing"
        assert len(worker.leases) <= CREDIT, f"worker {worker.id} holds {len(worker.leases)} batches"
        for number, batch in worker.leases.items():
            count += 1
            assert core.batches[number] is batch
            assert batch.worker is worker
            assert batch.rows == sum(part.stop - part.start for part in batch.parts)
            model = batch.model
            fits = batch.rows <= worker.rows_max[model.name] or batch.lane.is_alone
            assert batch.revision != model.revision or fits
            for part in batch.parts:
                key = id(part.request)
                leased[key] = leased.get(key, 0) + part.stop - part.start
                held.setdefault(part.request.arena, {})[key] = part.request.nbytes
                if not part.request.ended:
                    covered[key].append((part.start, part.stop))
    assert count == len(core.batches), "a batch is leased to no worker"
    return leased, held


def _check_totals(core: Core, held_by_arena: dict[int, dict[int, int]]) -> None:
    requests = [r for c in core.connections.values() for r in c.requests.values()]
    assert core.admission.rows == sum(r.rows for r in requests)
    assert core.admission.nbytes == sum(r.nbytes for r in requests)
    for account in {id(c.account): c.account for c in core.connections.values()}.values():
        own = [r for c in core.connections.values() if c.account is account for r in c.requests.values()]
        assert account.rows == sum(r.rows for r in own)
        assert account.nbytes == sum(r.nbytes for r in own)
    held_bytes = 0
    for number, arena in core.arenas.items():
        users = {id(r): r.nbytes for r in requests if r.arena == number} | held_by_arena.get(number, {})
        held_bytes += sum(users.values())
        assert arena.requests == len(users), f"arena {number}: {arena.requests} counted, {len(users)} use it"
    counted = core.books.held_bytes
    assert counted == held_bytes, f"{counted} bytes counted as held, not {held_bytes}"
    for number in held_by_arena:
        assert number in core.arenas, f"arena {number} was closed under a lease"


def check_results(sharing: Sharing) -> None:
    assert sharing.kept_bytes == sum(kept.nbytes for kept in sharing._results.values())
    assert sharing.kept_bytes <= sharing._bytes_max
    assert all(run.leader.key == key for key, run in sharing._runs.items())
