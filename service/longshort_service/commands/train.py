"""`longshort train`: hands its arguments to the model half, where that is installed."""

from __future__ import annotations

import click


@click.command(
    short_help="Train a model and export it.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """Train a model on a bundled data set or a CSV file, and export it (needs the train extra).

    \b
    Examples:
      longshort train --help
      longshort train --data metro --out models
      longshort train --data my.csv --column temperature --out models
    """  # noqa: D301  click reads the backspace
    from longshort_model.command import train as command  # noqa: PLC0415  may import torch

    command.main(list(arguments), prog_name="longshort train", standalone_mode=False)
