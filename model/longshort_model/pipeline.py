"""From a data set to a model version: train, evaluate the file as served, export with the scores in it.

Owns the order of these steps, what the signature says, and the settings of the two models that ship.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Final

from longshort_service.signature import Channel, Feedback, MissingValue, Signature

from longshort_model.export import export, version_folder
from longshort_model.graph import sign
from longshort_model.network import QUANTILES
from longshort_model.replay import Replay
from longshort_model.report import draw, evaluate, write_json
from longshort_model.synthetic import lstm_states
from longshort_model.training import Settings, train

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_model.dataset import Dataset

DESCRIPTIONS: Final = {
    "metro": "The next hour's vehicles on the I-94 westbound between Minneapolis and St Paul.",
    "metro-calendar": "The next hour's vehicles on the same road. Hour (0 to 23) and weekday (0 is Monday) are those "
    "of the hour in which the vehicles were counted, local time.",
    "parking": "The share of places taken in a car park of Birmingham half an hour ahead, 08:00 to 16:30.",
}
CALENDAR: Final = (Channel("hour", "h"), Channel("weekday", "days since Monday"))
SCORES: Final = ("mae", "rmse", "mase", "coverage")  # of the report, that a model file carries
SHIPPED: Final = {"metro": Settings(), "metro-calendar": Settings(), "parking": Settings()}


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A model version that was written, and its report."""

    folder: Path
    report: dict[str, Any]


def make(
    dataset: Dataset,
    settings: Settings,
    repository: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    state_family: str = "",
    reports: Path | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Made:
    """Train, evaluate the exported graph as served, and write it to the repository with its scores.

    `state_family` is the signature's: the caller knows which networks can go on with each other's memories.
    With `reports` the folder gets `<name>.json` and `<name>.png`. Raises TrainingError or ExportError.
    """
    name = name or dataset.name
    version_folder(repository, name, version)  # refuses before the training, not after it
    began = time.monotonic()
    trained = train(dataset, settings, checkpoint=checkpoint, resume=resume, progress=progress)
    train_s = time.monotonic() - began
    unscored = dataclasses.replace(signature_of(dataset, settings, name), state_family=state_family)
    _, model, _ = sign(trained.network.weights(), unscored)
    report, predictions = evaluate(dataset, Replay(model))
    signature = dataclasses.replace(
        unscored, scores={score: report[score] for score in SCORES if report[score] is not None}
    )
    folder = export(trained.network, signature, repository, version)
    report |= {
        "train_s": train_s,
        "validation_mae": trained.validation_mae,
        "best_update": trained.best_update,
        "settings": dataclasses.asdict(settings),
        "folder": str(folder),
    }
    if reports is not None:
        write_json(reports / f"{signature.name}.json", report)
        draw(reports / f"{signature.name}.png", dataset, predictions, report)
    return Made(folder, report)


def signature_of(dataset: Dataset, settings: Settings, name: str) -> Signature:
    """Return what a model trained on this data set promises, without scores."""
    point = Channel("median", dataset.unit)
    bounds = (Channel(f"q{100 * q:.0f}", dataset.unit, q) for q in QUANTILES[1:])
    return Signature(
        name=name,
        description=DESCRIPTIONS.get(dataset.name, f"The next value of {dataset.feature}."),
        features=(Channel(dataset.feature, dataset.unit), *(CALENDAR if dataset.has_calendar else ())),
        outputs=(point, *bounds),
        states=lstm_states(settings.layers, settings.hidden),
        sequence_lens="sequence_lens",
        missing=MissingValue.REPEAT_LAST,
        forecast=(Feedback(point.name, dataset.feature),),
        step_s=dataset.step_s,
        trained_on=dataset.source,
    )


def describe(made: Made) -> str:
    """Return a model's scores beside the baselines' in a few lines."""
    report = made.report
    unit = f", in {report['unit']}" if report["unit"] else ""
    band = f"{report['coverage']:.1%} of them in the band (80% is meant)"
    lines = [
        f"{made.folder}, trained in {report['train_s']:.0f} s",
        f"  mean absolute error on the {report['num_scored']} values of the test part{unit}; {band}:",
        f"    {'this model':13} {report['mae']:.4g}",
    ]
    lines += [
        f"    {name.replace('_', ' '):13} {errors['mae']:.4g}" for name, errors in report["baselines"].items()
    ]
    if "linear_ar" not in report["baselines"]:
        lines.append(f"    {'linear ar':13} -  (too few rows to fit one)")
    return "\n".join(lines)
