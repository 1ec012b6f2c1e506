"""64 environments and a learner share one policy, whose weights are swapped while they run.

    python examples/programs/policy.py

Every environment is a coroutine that asks for one action at a time; the yard makes batches of them. The
learner tries weights near the best ones, and swaps them in: no step fails or waits for it, and the receipt of
each step says which revision of the policy has chosen, so that an episode can be put to its weights. The
environment is a pole on a cart, in NumPy.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import batchyard
import numpy as np

ENVIRONMENTS = 64
ROUNDS = 30
STEPS_MAX = 200  # of an episode: the pole stood
WEIGHTS = "POLICY_WEIGHTS"  # where the weights lie, for the learner and for the yard's workers

Array = np.ndarray[Any, Any]


@batchyard.model(inputs={"state": "float32[batch, 4]"}, outputs={"action": "int64[batch]"})
class Policy:
    """A linear policy. Every swap makes a new object, which reads the weights anew."""

    def __init__(self) -> None:
        self.weights = np.load(os.environ[WEIGHTS])

    def __call__(self, batch: dict[str, Array]) -> dict[str, Array]:
        return {"action": (batch["state"] @ self.weights > 0).astype(np.int64)}


class Pole:
    """A pole on a cart (Barto, Sutton, Anderson 1983): position, speed, angle, and its speed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.state = rng.uniform(-0.05, 0.05, 4)

    def step(self, action: int) -> bool:
        """Push to the right (1) or left; whether the pole still stands."""
        x, v, angle, spin = self.state
        force = 10.0 if action else -10.0
        pull = (force + 0.05 * spin**2 * np.sin(angle)) / 1.1
        turn = (9.8 * np.sin(angle) - np.cos(angle) * pull) / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
        push = pull - 0.05 * turn * np.cos(angle) / 1.1
        self.state = np.array([x + 0.02 * v, v + 0.02 * push, angle + 0.02 * spin, spin + 0.02 * turn])
        return bool(abs(self.state[0]) < 2.4 and abs(self.state[2]) < 0.21)


async def episode(client: batchyard.AsyncClient, rng: np.random.Generator) -> tuple[int, set[int]]:
    """(steps that the pole stood, the revisions of the policy that chose them)."""
    pole, revisions = Pole(rng), set()
    for step in range(STEPS_MAX):
        reply = await client.request("policy", pole.state.astype(np.float32)[None], priority="high")
        revisions.add(reply.receipt.revision)
        if not pole.step(int(reply.outputs["action"][0])):
            return step + 1, revisions
    return STEPS_MAX, revisions


async def environment(client: batchyard.AsyncClient, seed: int, ended: asyncio.Queue[Any]) -> None:
    """One episode after the other, without an end."""
    rng = np.random.default_rng(seed)
    while True:
        await ended.put(await episode(client, rng))


async def learn(yard: batchyard.Yard, rounds: int, environments: int) -> list[tuple[int, float]]:
    """(revision, its mean episode) of every round. The environments never stop meanwhile."""
    path, rng = Path(os.environ[WEIGHTS]), np.random.default_rng(3)
    ended: asyncio.Queue[tuple[int, set[int]]] = asyncio.Queue()
    best, best_mean, history = np.load(path), 0.0, []
    async with yard.async_client() as client:
        playing = [asyncio.create_task(environment(client, seed, ended)) for seed in range(environments)]
        for _ in range(rounds):
            tried = best + rng.normal(0, 0.5, 4).astype(np.float32)
            np.save(path, tried)
            revision = (await asyncio.to_thread(yard.operator.swap, "policy")).revision
            lengths: list[int] = []
            while len(lengths) < environments:
                steps, revisions = await ended.get()
                if revisions == {revision}:  # not one that the old weights have begun
                    lengths.append(steps)
            history.append((revision, float(np.mean(lengths))))
            if history[-1][1] > best_mean:
                best, best_mean = tried, history[-1][1]
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
    return history


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ[WEIGHTS] = f"{folder}/weights.npy"  # before the workers start: they inherit it
        np.save(os.environ[WEIGHTS], np.zeros(4, np.float32))
        with batchyard.serve({"policy": Policy}, max_batch=ENVIRONMENTS) as yard:
            for revision, mean in asyncio.run(learn(yard, ROUNDS, ENVIRONMENTS)):
                print(f"revision {revision}: the pole stood for {mean:.0f} of {STEPS_MAX} steps")


if __name__ == "__main__":
    main()
