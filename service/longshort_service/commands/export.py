"""`longshort export`: hands its arguments to the model half, where that is installed."""

from __future__ import annotations

import click


@click.command(
    short_help="Export a PyTorch module of one's own.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export(arguments: tuple[str, ...]) -> None:
    """Export a PyTorch module with forward(x, *states) into a model repository (needs the train extra).

    \b
    Examples:
      longshort export --help
      longshort export my_models:Wave --weights wave.pt --out models --name wave
    """  # noqa: D301  click reads the backspace
    from longshort_model.export_command import export as command  # noqa: PLC0415  may import torch

    command.main(list(arguments), prog_name="longshort export", standalone_mode=False)
