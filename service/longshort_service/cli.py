"""The command line: one command each for what the service, its client and the offline half can do.

Commands import what they run when they are called, so that `longshort --help` is quick and serving needs no torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from longshort_service import config

if TYPE_CHECKING:
    from pathlib import Path


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Serve recurrent models: sessions that remember, batched together at every step."""


@main.command()
@config.serve_options
def serve(config_path: Path | None, **flags: Any) -> None:
    """Start the service with the models of REPOSITORY, or with those that ship.

    \b
    Examples:
      longshort serve
      longshort serve models/ --grpc-port 50051 --metrics-port 9464
      LONGSHORT_LOG_FORMAT=json longshort serve --config longshort.toml
    """
    from longshort_service import serving  # noqa: PLC0415  not needed for --help

    try:
        serving.serve(config.load(flags, os.environ, config_path))
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None
