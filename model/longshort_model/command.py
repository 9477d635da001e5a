"""The command `train`: from a data set to a model version in a repository.

Owns its options and their checks. Imports PyTorch only when it runs, so that help is quick and needs none.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from longshort_model import dataset as datasets
from longshort_model.csv_file import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
WITHOUT_EXTRA = (
    "training needs PyTorch, onnx, matplotlib and tqdm, which serving does not: "
    "in a checkout: pip install ./client '.[train]'"
)


class Refusal(click.ClickException):
    """A mistake of the caller's, told in one line."""

    exit_code = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data",
    default="metro",
    show_default=True,
    metavar="NAME|FILE",
    help="metro, metro-calendar, parking, or a CSV file (.gz too).",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME",
    help="A column of the CSV file to learn from. Repeat it for several series that one model follows.",
)
@click.option(
    "--time",
    "time_column",
    metavar="NAME",
    help="The column with the times, ISO 8601. By default time, timestamp, datetime or date.",
)
@click.option(
    "--calendar",
    is_flag=True,
    help="Tell the model the hour and the weekday of each value too. metro-calendar is metro with it.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("models"),
    show_default=True,
    help="The model repository to write to.",
)
@click.option("--name", metavar="NAME", help="The model's name. By default the data set's.")
@click.option("--version", type=click.IntRange(min=1), help="The version's number. By default the next one.")
@click.option(
    "--state-family",
    default="",
    metavar="NAME",
    help="Promise that sessions may move, memories and all, between this version and others of that family.",
)
@click.option(
    "--report",
    "reports",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build"),
    show_default=True,
    help="Where the scores (JSON), the picture and the checkpoint go.",
)
@click.option("--hidden", type=click.IntRange(1, 4096), help="The size of each memory. [default: 64]")
@click.option("--layers", type=click.IntRange(1, 16), help="The number of LSTM layers. [default: 1]")
@click.option("--updates", type=click.IntRange(min=1), help="How long to train. [default: 1600]")
@click.option("--window", type=click.IntRange(8, 4096), help="The steps of a training window. [default: 240]")
@click.option("--seed", type=click.IntRange(min=0), help="The seed of everything random. [default: 0]")
@click.option(
    "--resume", is_flag=True, help="Continue a stopped run of the same settings from its checkpoint."
)
@click.option(
    "--shipped", is_flag=True, help="Make the three models that ship; train.json gets the scores of all."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="CPU threads for PyTorch. More gain little on a small model, and lose much on a busy machine.",
)
@click.option("--progress/--no-progress", default=True, help="Show a bar with loss and time left.")
def train(
    data: str,
    columns: Sequence[str],
    time_column: str | None,
    reports: Path,
    *,
    calendar: bool,
    name: str | None,
    resume: bool,
    shipped: bool,
    threads: int,
    progress: bool,
    out: Path,
    version: int | None,
    state_family: str,
    **settings: int | None,
) -> None:
    """Train an LSTM, score it as it will be served, and write it to a model repository.

    Each run writes a new version, which the service serves from its next start or reload. The last quarter of
    the data is kept for the scores and never learnt from.

    \b
    Examples:
      longshort train
      longshort train --data parking --seed 3
      longshort train --data metro-calendar
      longshort train --data my.csv --column temperature --out models --name oven
      longshort train --data meters.csv.gz --column north --column south --hidden 32 --updates 800
      longshort train --data my.csv --column temperature --resume
    """  # noqa: D301  click reads the backspace
    chosen = {what: value for what, value in settings.items() if value is not None}
    if shipped and (
        columns or time_column or name or chosen or resume or state_family or calendar or data != "metro"
    ):
        raise click.UsageError(
            "--shipped makes the models that ship with their own settings; leave the others out"
        )
    if name is not None and not NAME.fullmatch(name):
        raise click.UsageError(
            f"--name {name!r}: letters, digits, '_', '.' and '-', beginning with one of the first two"
        )
    try:
        chosen_data = (
            [datasets.load(one) for one in datasets.BUNDLED]
            if shipped
            else [datasets.load(data, columns, time_column=time_column)]
        )
        if calendar:
            chosen_data = [datasets.with_calendar(one) for one in chosen_data]
    except DatasetError as error:
        _refuse(error)
    if (
        name is not None and data not in datasets.BUNDLED
    ):  # the file's name says less than the one that was given
        chosen_data = [dataclasses.replace(one, name=name) for one in chosen_data]
    for one in chosen_data:
        if one.notice:
            click.echo(f"Warning: {one.notice}", err=True)
    _make_all(
        chosen_data,
        chosen,
        out,
        reports,
        threads=threads,
        shipped=shipped,
        name=name,
        version=version,
        state_family=state_family,
        resume=resume,
        progress=progress,
    )


def _make_all(
    chosen_data: list[datasets.Dataset],
    chosen: dict[str, int],
    out: Path,
    reports: Path,
    *,
    threads: int,
    shipped: bool,
    name: str | None,
    **how: Any,
) -> None:
    if find_spec("matplotlib") is None:  # needed only after the training, which would be lost without it
        _refuse(WITHOUT_EXTRA)
    try:
        import torch  # noqa: PLC0415  not needed for --help

        from longshort_model import pipeline, report, training  # noqa: PLC0415  they import torch and onnx
        from longshort_model.export import ExportError  # noqa: PLC0415
    except ImportError as error:
        _refuse(WITHOUT_EXTRA, error)
    torch.set_num_threads(threads)
    made = {}
    for data in chosen_data:
        model_name = name or data.name
        if not NAME.fullmatch(model_name):
            _refuse(f"{model_name!r} cannot be the model's name; give one with --name")
        settings = pipeline.SHIPPED[data.name] if shipped else training.Settings(**chosen)
        try:
            made[data.name] = pipeline.make(
                data,
                settings,
                out,
                name=model_name,
                reports=reports,
                checkpoint=reports / f"{model_name}.checkpoint",
                **how,
            )
        except (training.TrainingError, ExportError) as error:
            _refuse(error)
        except OSError as error:
            _refuse(f"{error.filename or out}: {error.strerror or error}")
        click.echo(pipeline.describe(made[data.name]))
        click.echo(f"  scores in {reports / model_name}.json, drawn in {reports / model_name}.png")
    click.echo(f"next: longshort serve {shlex.quote(str(out))}")
    if shipped:
        scores = {data_name.replace("-", "_"): m.report for data_name, m in made.items()}
        report.write_json(reports / "train.json", scores)
        report.draw_horizons(
            reports / "horizons.png", [made[name].report for name in ("metro", "metro-calendar")]
        )


def _refuse(message: object, cause: Exception | None = None) -> NoReturn:
    """End with one line."""
    raise Refusal(str(message)) from cause
