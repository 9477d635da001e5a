"""The command line: one command each for what the service, its client and the offline half can do.

Commands import what they run when they are called: `longshort --help` is quick, and serving needs no torch.
"""

from __future__ import annotations

import click

from longshort_service.commands.demo import demo
from longshort_service.commands.describe import describe
from longshort_service.commands.export import export
from longshort_service.commands.group import OneLineGroup
from longshort_service.commands.health import health
from longshort_service.commands.serve import serve
from longshort_service.commands.sessions import sessions
from longshort_service.commands.stream import stream
from longshort_service.commands.train import train


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="longshort-server", prog_name="longshort")
def main() -> None:
    """Serve recurrent models: sessions that remember, batched together at every step."""


for command in (serve, stream, demo, train, export, describe, sessions, health):
    main.add_command(command)
