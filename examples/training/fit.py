"""The training loop: progress, early stop, and the same weights for the same seed. Needs torch.

What is held out for the report never comes here: `validation` is for stopping and choosing only.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .datasets import Labelled
from .download import Say
from .networks import DROPOUT, WIDTH, cnn

SAID_EVERY_S = 1.0
ROWS_AT_ONCE = 512  # when judging


@dataclass(frozen=True)
class Settings:
    """What a training is made of; the defaults made the bundled model."""

    epochs: int = 30  # at most, where there is early stop
    rows: int = 32  # of a step
    learning_rate: float = 4e-3  # the highest; it rises to it and falls again (one cycle)
    weight_decay: float = 1e-2
    width: int = WIDTH
    dropout: float = DROPOUT
    patience: int = 8  # epochs without a better validation loss, and training ends
    seed: int = 20
    threads: int = 1  # small networks are slower on more: several times, where cores are shared

    def __str__(self) -> str:
        return (
            f"rate {self.learning_rate:.4f} decay {self.weight_decay:.4f} width {self.width:>2} "
            f"dropout {self.dropout:.2f} rows {self.rows:>3}"
        )


@dataclass(frozen=True)
class Judged:
    """Mean cross-entropy, and the share of rows whose largest logit is their label's."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows: how they did while it went on, how validation rows did after it."""

    number: int  # from 1
    training: Judged
    validation: Judged | None
    took_s: float

    def better_than(self, other: Epoch) -> bool:
        """By validation loss; without validation rows the later one is."""
        if self.validation is None or other.validation is None:
            return self.number > other.number
        return self.validation.loss < other.validation.loss


@dataclass(frozen=True)
class Trained:
    """`model`: a torch module in eval mode with the weights of the epoch `best`."""

    model: Any
    epochs: list[Epoch]
    best: Epoch


def train(
    rows: Labelled,
    classes: int,
    settings: Settings,
    validation: Labelled | None = None,
    watch: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Build a network for `rows` and `fit` it. The same settings on the same machine give the same
    weights, bit for bit."""
    with deterministic(settings.seed, settings.threads):
        shape = rows.images.shape[1:]
        model = cnn((shape[0], shape[1], shape[2]), classes, settings.width, settings.dropout)
        return fit(model, rows, settings, validation, watch)


def fit(
    model: Any,
    rows: Labelled,
    settings: Settings,
    validation: Labelled | None = None,
    watch: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Train a torch module in place; `deterministic` around it is the caller's.

    With `validation`, training ends when its loss has not fallen for `patience` epochs, and the weights
    of its lowest are kept; without, all epochs run and the last weights are. watch: is called after each
    epoch, and what it raises ends the training.
    """
    import torch

    steps = batches(rows, settings)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, epochs=settings.epochs, steps_per_epoch=len(steps)
    )
    epochs: list[Epoch] = []
    best: Epoch | None = None
    weights = None
    for number in range(1, settings.epochs + 1):
        began_s = time.perf_counter()
        trained = one_epoch(model, steps, optimizer, schedule, len(rows))
        judged = None if validation is None else judge(model, validation)
        epoch = Epoch(number, trained, judged, time.perf_counter() - began_s)
        epochs.append(epoch)
        watch(epoch)
        if best is None or epoch.better_than(best):
            best, weights = epoch, copy.deepcopy(model.state_dict())
        elif number - best.number >= settings.patience:
            break
    assert best is not None
    model.load_state_dict(weights)
    return Trained(model.eval(), epochs, best)


def batches(rows: Labelled, settings: Settings) -> Any:
    """A DataLoader that shuffles by the settings' seed and takes each batch out whole."""
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    pairs = TensorDataset(torch.from_numpy(rows.images), torch.from_numpy(rows.labels))
    order = torch.Generator().manual_seed(settings.seed)
    shuffled = BatchSampler(RandomSampler(pairs, generator=order), settings.rows, drop_last=False)
    return DataLoader(pairs, sampler=shuffled, batch_size=None, generator=order)


def one_epoch(model: Any, steps: Any, optimizer: Any, schedule: Any, rows: int) -> Judged:
    """Every step once; how each did before it."""
    import torch

    model.train()
    loss_sum, right = 0.0, 0
    for images, labels in steps:
        optimizer.zero_grad()
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += loss.item() * len(labels)
        right += int((logits.argmax(1) == labels).sum())
    return Judged(loss_sum / rows, right / rows)


def judge(model: Any, rows: Labelled) -> Judged:
    """How `model` does on `rows`, in eval mode, in which it is left."""
    import torch

    model.eval()
    loss_sum, right = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), ROWS_AT_ONCE):
            images = torch.from_numpy(rows.images[start : start + ROWS_AT_ONCE])
            labels = torch.from_numpy(rows.labels[start : start + ROWS_AT_ONCE])
            logits = model(images)
            loss_sum += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
    return Judged(loss_sum / len(rows), right / len(rows))


@contextlib.contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """torch with this seed, and only algorithms that repeat themselves; as it was, afterwards."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch.set_num_threads(before[1])


class Progress:
    """Tells how a training goes: a line for the first and last epoch, and at most one a second between."""

    def __init__(self, settings: Settings, say: Say, every_s: float = SAID_EVERY_S) -> None:
        self._epochs = settings.epochs
        self._say = say
        self._every_s = every_s
        self._spent_s = self._said_s = 0.0

    def __call__(self, epoch: Epoch) -> None:
        self._spent_s += epoch.took_s
        last = epoch.number == self._epochs
        if epoch.number == 1 or last or self._spent_s - self._said_s >= self._every_s:
            self._said_s = self._spent_s
            self._say(self.line(epoch))

    def line(self, epoch: Epoch) -> str:
        """`epoch  3/30  loss 0.1462  accuracy  94.6%  validation 0.1201  95.2%  2 s left at most`."""
        left_s = self._spent_s / epoch.number * (self._epochs - epoch.number)
        done, judged = epoch.training, epoch.validation
        text = f"epoch {epoch.number:>2}/{self._epochs}  loss {done.loss:.4f}  accuracy {done.accuracy:>6.1%}"
        if judged is not None:
            text += f"  validation {judged.loss:.4f} {judged.accuracy:>6.1%}"
        return f"{text}  {left_s:.0f} s left at most" if epoch.number < self._epochs else text
