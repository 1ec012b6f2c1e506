"""A small search for hyper-parameters (Optuna): which settings give the lowest validation loss.

The first trial is the defaults, so that the search never ends with worse. Trials that are behind the
median of those before them at the same epoch are ended there. Needs torch and optuna.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from .datasets import Dataset
from .download import Say
from .fit import Epoch, Settings, train

COMPLETE_FIRST = 3  # trials before any is ended early: a median of fewer says little
EPOCHS_FIRST = 3  # of each trial
WIDTHS = (8, 12, 16, 24)
ROWS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Trial:
    """`loss` is the lowest validation loss; a pruned trial's is what it had when it was ended."""

    number: int  # from 1
    settings: Settings
    loss: float
    accuracy: float
    epochs: int
    pruned: bool
    took_s: float


@dataclass(frozen=True)
class Found:
    best: Trial
    trials: list[Trial]


def search(data: Dataset, trials: int, base: Settings, say: Say = lambda line: None) -> Found:
    """Train `trials` networks for at most `base.epochs` epochs each; the test rows play no part.

    The sampler's seed is `base.seed`: the same search again tries the same settings. Raises
    ModuleNotFoundError without optuna or torch.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=base.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=COMPLETE_FIRST, n_warmup_steps=EPOCHS_FIRST),
    )
    study.enqueue_trial(
        {name: getattr(base, name) for name in ("learning_rate", "weight_decay", "width", "dropout", "rows")}
    )
    done: list[Trial] = []
    began_s = time.monotonic()

    def objective(trial: Any) -> float:
        settings = suggested(trial, base)
        result = tried(data, settings, trial, len(done) + 1)
        done.append(result)
        left_s = (time.monotonic() - began_s) / len(done) * (trials - len(done))
        say(f"{line(result, trials)}  {left_s:.0f} s left")
        if result.pruned:
            raise optuna.TrialPruned
        return result.loss

    study.optimize(objective, n_trials=trials)
    best = min((trial for trial in done if not trial.pruned), key=lambda trial: trial.loss)
    return Found(best, done)


def suggested(trial: Any, base: Settings) -> Settings:
    """The settings that an optuna trial is to try."""
    return replace(
        base,
        learning_rate=trial.suggest_float("learning_rate", 1e-3, 2e-2, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        width=trial.suggest_categorical("width", WIDTHS),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
        rows=trial.suggest_categorical("rows", ROWS),
    )


class Behind(Exception):
    """The pruner gives this trial up."""


def tried(data: Dataset, settings: Settings, trial: Any, number: int) -> Trial:
    """Train once, reporting every epoch to `trial`, which may end it."""
    reached: list[tuple[float, float]] = []  # loss and accuracy after each epoch
    began_s = time.monotonic()

    def watch(epoch: Epoch) -> None:
        assert epoch.validation is not None  # there are validation rows below
        reached.append((epoch.validation.loss, epoch.validation.accuracy))
        trial.report(epoch.validation.loss, epoch.number)
        if trial.should_prune():
            raise Behind

    pruned = False
    try:
        train(data.train, len(data.classes), settings, data.validation, watch)
    except Behind:
        pruned = True
    loss, accuracy = min(reached)
    return Trial(number, settings, loss, accuracy, len(reached), pruned, time.monotonic() - began_s)


def line(trial: Trial, trials: int) -> str:
    """`trial  3/12  0.0812  97.8%  rate 0.0040 ...  15 epochs`: loss and accuracy are the validation's."""
    how = f"{trial.epochs:>2} epochs{', given up' if trial.pruned else ''}"
    figures = f"{trial.loss:.4f} {trial.accuracy:>6.1%}"
    return f"trial {trial.number:>2}/{trials}  {figures}  {trial.settings}  {how}"
