"""Training: windows from zero state, pinball loss, the best checkpoint by validation.

Owns the loop, its checkpoint file and its progress bar. What a network is and what a data set is, others say.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from longshort_model.network import Network

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_model.dataset import Dataset


class TrainingError(RuntimeError):
    """A run that cannot start, continue or end well; the message says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. docs/training.md says which values were tried and what they gave."""

    hidden: int = 64
    layers: int = 1
    updates: int = 1600
    batch: int = 32  # windows an update
    window: int = 240  # steps from zero state
    peak_rate: float = 1e-2  # of the one-cycle learning rate
    weight_decay: float = 0.01
    clip: float = 1.0  # of the gradient's norm
    averaging: float = 0.98  # of the weights over the updates, exponentially; the average is what is kept
    validate_every: int = 50
    calendar_width: int = 4  # learnt numbers for each hour of the week, where the data has a calendar
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """The best network by validation, its error there in the unit of the data, and how it came about."""

    network: Network
    validation_mae: float
    best_update: int
    updates: int  # done so far; fewer than asked for where it was stopped


def train(
    dataset: Dataset,
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    progress: bool = False,
) -> Trained:
    """Train on the data set's training part and return the best network by its validation part.

    With `checkpoint` the state of the run is written there at each validation; with `resume` a run continues
    from it, to the same result on the same machine as a run that was never stopped. `stop_after` ends the run
    after that many updates, as an interruption does. Raises TrainingError. PyTorch's global generator is left
    as it was.
    """
    run = _Run(dataset, settings)
    if resume:
        if checkpoint is None:
            raise TrainingError("there is no checkpoint to resume from")
        run.load(checkpoint)
    end = settings.updates if stop_after is None else min(stop_after, settings.updates)
    with tqdm(
        total=settings.updates,
        initial=run.update,
        desc=f"train {dataset.name}",
        disable=not progress,
        mininterval=0.5,
    ) as bar:
        while run.update < end:
            loss = run.step()
            bar.update()
            if run.update % settings.validate_every == 0 or run.update == settings.updates:
                run.validate()
                bar.set_postfix(loss=f"{loss:.4f}", best=f"{run.best_mae:.4g}", refresh=False)
                if checkpoint is not None:
                    run.save(checkpoint)
    return run.result()


class _Run:
    """One run. Its state is `update`, the two networks, the optimiser, the schedule and the best so far.

    The windows of an update follow from the seed and its number alone, so that resuming draws them again.
    """

    def __init__(self, dataset: Dataset, settings: Settings) -> None:
        self.dataset, self.settings = dataset, settings
        self.window = min(settings.window, dataset.train_end // 2)
        self.inputs = torch.from_numpy(dataset.inputs())  # [series, time, features]
        self.targets = torch.from_numpy(dataset.values)  # [series, time], NaN where missing
        part = dataset.values[:, : dataset.train_end]
        scale = float(np.nanstd(part)) or 1.0  # a constant series has none
        mean_and_scale = np.array([np.nanmean(part)], np.float32), np.array([scale], np.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = Network(
                settings.hidden,
                mean=mean_and_scale[0],
                scale=mean_and_scale[1],
                layers=settings.layers,
                calendar_width=settings.calendar_width if dataset.has_calendar else 0,
            )
        self.average = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=settings.peak_rate, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, settings.peak_rate, total_steps=settings.updates
        )
        self.update = 0
        self.best_mae, self.best_update = float("inf"), 0
        self.best: dict[str, Tensor] = copy.deepcopy(self.average.state_dict())

    def step(self) -> float:
        """Make one update and return its loss."""
        values, targets = self._windows()
        predictions, _ = self.network(values)
        loss = self.network.loss(predictions, targets)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimiser.step()
        self.schedule.step()
        self.update += 1
        kept = min(self.settings.averaging, self.update / (self.update + 10))  # short at first
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - kept)
        if not np.isfinite(loss.item()):
            raise TrainingError(
                f"the loss is {loss.item()} at update {self.update}: try a lower learning rate"
            )
        return float(loss.item())

    def validate(self) -> None:
        """Score the averaged weights on the validation part, warmed up before it; keep the best."""
        start, end = self.dataset.train_end, self.dataset.validation_end
        with torch.no_grad():
            warm = self.inputs[:, max(0, start - self.window) : end - 1]
            predictions, _ = self.average(warm)
        errors = predictions[:, start - end :, 0] - self.targets[:, start:end]
        mae = float(torch.nanmean(errors.abs()))
        if mae < self.best_mae:
            self.best_mae, self.best_update = mae, self.update
            self.best = copy.deepcopy(self.average.state_dict())

    def result(self) -> Trained:
        network = copy.deepcopy(self.average)
        network.load_state_dict(self.best)
        return Trained(network.eval(), self.best_mae, self.best_update, self.update)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        torch.save(self._state(), part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Take up the state of a stopped run. Raises TrainingError where it is not of this run."""
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except FileNotFoundError as error:
            raise TrainingError(f"{path}: no such checkpoint to resume from") from error
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TrainingError(f"{path}: not a checkpoint, or damaged") from error
        if state.get("settings") != dataclasses.asdict(self.settings) or state["data"] != self._data():
            raise TrainingError(f"{path}: written with other settings or other data; run without --resume")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.update, self.best = state["update"], state["best"]
        self.best_mae, self.best_update = state["best_mae"], state["best_update"]

    def _state(self) -> dict[str, Any]:
        return {
            "settings": dataclasses.asdict(self.settings),
            "data": self._data(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "update": self.update,
            "best": self.best,
            "best_mae": self.best_mae,
            "best_update": self.best_update,
        }

    def _data(self) -> list[float]:
        """Return what tells one data set from another: its sizes, and what it is normalised with."""
        return [*self.inputs.shape, float(self.network.mean[0]), float(self.network.scale[0])]

    def _windows(self) -> tuple[Tensor, Tensor]:
        """Return inputs [batch, window, features] and targets [batch, window], the next values, of this update."""
        rng = np.random.default_rng([self.settings.seed, self.update])
        starts = rng.integers(0, self.dataset.train_end - self.window, self.settings.batch)
        series = torch.from_numpy(rng.integers(0, len(self.inputs), self.settings.batch))[:, None]
        index = torch.from_numpy(starts)[:, None] + torch.arange(self.window)  # [batch, window]
        return self.inputs[series, index], self.targets[series, index + 1]
