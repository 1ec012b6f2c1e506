"""What can go wrong in a run, and how it is made to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchyard.broker.events import ModelUnwanted, ModelWanted

from .clock import MS
from .stranger import Stranger

if TYPE_CHECKING:
    from .world import World

# What can befall a run while there is traffic: how often, at most.
BLOWS = {
    "reset_client": 3,
    "reset_worker": 2,
    "kill_worker": 3,
    "stop_worker": 2,
    "hang_worker": 1,
    "crash_broker": 2,
    "stop_broker": 2,
    "kill_client": 2,
    "stop_client": 2,
    "leap": 2,
    "stranger": 3,
    "swap_model": 4,
    "unload_model": 1,
}
# What may go wrong in passing: with which probability, where a run has it at all.
CHANCES = {"slow_run": 0.2, "slow_load": 0.3, "load_fails": 0.3, "poison": 0.12, "killer": 0.04, "change": 0.1, "odd": 0.08}
DEVICES_SHARE = 0.2  # of all runs: devices that are lost
DEVICE_CHANCE = 0.1  # there, of one batch
FILES = sorted(Path(__file__).parent.glob("*.py"))  # that exist, for models to be
FAULT_SHARE = 0.35  # of all kinds, in one run
CALM_SHARE = 0.1  # of all runs: no fault at all


def blow(world: World, kind: str) -> None:
    """One fault befalls somebody."""
    if not world.running:
        return  # a leap has brought it past the end
    rng = world.rng
    world.count(kind)
    world.trace("fault", kind)
    workers = list(world.workers.values())
    clients = [client for client in world.clients if client.alive]
    broker = world.broker
    if kind == "leap":
        leap_ns = rng.choice((20, 300, 8_000, 200_000)) * MS
        world.clock.leap(leap_ns)
        for client in clients:
            for ticket in client.tickets:
                ticket.due_ns += leap_ns
    elif kind == "crash_broker" and broker is not None:
        world.broker = None
        broker.crash()
        world.clock.after(rng.randrange(1, 80) * MS, world.start_broker)
    elif kind == "stop_broker" and broker is not None:
        broker.stopped_until_ns = world.clock.now_ns + rng.randrange(1, 120) * MS
    elif kind == "stranger" and broker is not None:
        Stranger(world, f"stranger {world.faults[kind]}")
    elif kind == "swap_model" and broker is not None:
        swap(world, rng.choice(sorted(world.config.models)))
    elif kind == "unload_model" and broker is not None:
        unload(world, rng.choice(sorted(world.config.models)))
    elif kind in ("reset_client", "reset_worker") and broker is not None:
        links = (broker.clients if kind == "reset_client" else broker.workers).links()
        if links:
            rng.choice(links).reset()
    elif kind == "kill_worker" and workers:
        world.kill(rng.choice(workers).pid)
    elif kind == "stop_worker" and workers:
        rng.choice(workers).stopped_until_ns = world.clock.now_ns + rng.choice((3, 40, 7_000)) * MS
    elif kind == "hang_worker" and workers:
        rng.choice(workers).hangs_next = True
    elif kind == "stop_client" and clients:
        rng.choice(clients).stop(rng.choice((2, 30, 300)) * MS)
    elif kind == "kill_client" and clients:
        rng.choice(clients).die()
        world.clock.after(rng.randrange(30) * MS, world.start_client)


def swap(world: World, name: str) -> None:
    """An operator has another file for a model."""
    assert world.broker is not None
    model = world.broker.core.models.get(name)
    if model is not None:
        config = replace(model.config, path=world.rng.choice(FILES))
        world.broker.order(lambda admin: ModelWanted(admin, config, True))


def unload(world: World, name: str) -> None:
    """A model goes, and after a while it comes back."""
    assert world.broker is not None
    config = world.config.models[name]

    def load() -> None:
        broker = world.broker
        if broker is None or broker.core.models.get(name) is not None or not world.running:
            return
        broker.order(lambda admin: ModelWanted(admin, config, False))

    world.broker.order(lambda admin: ModelUnwanted(admin, name))
    world.clock.after(world.rng.randrange(60) * MS, load)
