"""`longshort serve`: the service itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from longshort_service import config

if TYPE_CHECKING:
    from pathlib import Path


@click.command(short_help="Start the service.")
@config.serve_options
def serve(config_path: Path | None, **flags: Any) -> None:
    """Start the service with the models of REPOSITORY, or with those that ship.

    \b
    Examples:
      longshort serve
      longshort serve models/ --grpc-port 50051 --metrics-port 9464
      LONGSHORT_LOG_FORMAT=json longshort serve --config longshort.toml
    """  # noqa: D301  click reads the backspace
    from longshort_service import serving  # noqa: PLC0415  not needed for --help

    try:
        serving.serve(config.load(flags, os.environ, config_path))
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None
