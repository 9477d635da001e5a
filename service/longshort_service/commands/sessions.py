"""`longshort sessions`: looking at the sessions of a running service, and managing them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from longshort_service.commands.group import (
    CALLER_MISTAKEN,
    Mistake,
    address_option,
    connected,
    failure_of,
    timeout_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort.results import SessionInfo

# `live` is said of open streams elsewhere, by the metric, which also has `stored` as `spilled`.
PLACES: Final = {"live": "memory", "stored": "store"}
COLUMNS: Final = "{:40} {:16} {:>10} {:>10} {:>8} {:>8} {:>8} {}"


@click.group(short_help="List, read and manage sessions.")
def sessions() -> None:
    """List, read, reset, fork, export, import and delete sessions of a running service."""


def _command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return what makes a function a command of the group, with the options that all of them take."""
    return lambda function: sessions.command(name)(address_option(timeout_option(10.0)(function)))


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="A JSON object a session.")(command)


@_command("list")
@click.option("--model", default="", help="Only this model's.")
@click.option("--prefix", default="", help="Only those whose id begins so.")
@_json_option
def list_sessions(model: str, prefix: str, address: str, timeout_s: float, *, as_json: bool) -> None:
    """List sessions in the order of their ids.

    \b
    Example:
      longshort sessions list --model metro --prefix sensor-
    """  # noqa: D301  click reads the backspace
    with connected(address, timeout_s) as client:
        found = client.sessions(model=model, id_prefix=prefix)
        first = next(found, None)  # an error comes before the table's head
        if not as_json:
            click.echo(
                COLUMNS.format("SESSION", "MODEL", "STEP", "DURABLE", "LAG", "WHERE", "IDLE", "STREAM")
            )
        for session in itertools.chain(() if first is None else (first,), found):
            click.echo(_as_json(session) if as_json else _as_row(session))


@_command("get")
@click.argument("session_id", metavar="ID")
@click.option("--memory", is_flag=True, help="Its states too.")
@_json_option
def get_session(session_id: str, address: str, timeout_s: float, *, memory: bool, as_json: bool) -> None:
    """Describe the session ID. It does not move.

    \b
    Example:
      longshort sessions get sensor-42 --memory --json
    """  # noqa: D301  click reads the backspace
    with connected(address, timeout_s) as client:
        _tell(client.get_session(session_id, include_memory=memory), as_json=as_json)


@_command("reset")
@click.argument("session_id", metavar="ID")
def reset_session(session_id: str, address: str, timeout_s: float) -> None:
    """Put the session ID back to step 0 with its model's initial state. A stream of it ends.

    \b
    Example:
      longshort sessions reset sensor-42
    """  # noqa: D301  click reads the backspace
    with connected(address, timeout_s) as client:
        click.echo(_where(client.reset(session_id)))


@_command("fork")
@click.argument("session_id", metavar="ID")
@click.argument("fork_id", metavar="[NEW_ID]", required=False)
def fork_session(session_id: str, fork_id: str | None, address: str, timeout_s: float) -> None:
    """Copy the session ID, its memories and its step, to NEW_ID (a random UUID without it).

    \b
    Example:
      longshort sessions fork sensor-42 what-if
    """  # noqa: D301  click reads the backspace
    with connected(address, timeout_s) as client:
        click.echo(_where(client.fork(session_id, fork_id)))


@_command("export")
@click.argument("session_id", metavar="ID")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File. [default: standard output]"
)
def export_session(session_id: str, output: Path | None, address: str, timeout_s: float) -> None:
    """Write the session ID as bytes that `import` takes, on any service with the same model file.

    \b
    Example:
      longshort sessions export sensor-42 -o sensor-42.session
    """  # noqa: D301  click reads the backspace
    if output is None and sys.stdout.isatty():
        raise click.UsageError("the record is binary: give --output FILE, or redirect the output")
    with connected(address, timeout_s) as client:
        record = client.export(session_id)
    if output is None:
        sys.stdout.buffer.write(record)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(record)
    except OSError as error:
        raise Mistake(f"{output}: {error.strerror}") from None


@_command("import")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("-s", "--session", "session_id", metavar="ID", help="Its new id. [default: the exported one]")
def import_session(file: Path, session_id: str | None, address: str, timeout_s: float) -> None:
    """Make a session of what `export` wrote to FILE (- is standard input).

    \b
    Example:
      longshort sessions import sensor-42.session --address replica-2:50051
    """  # noqa: D301  click reads the backspace
    try:
        record = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise Mistake(f"{file}: {error.strerror}") from None
    with connected(address, timeout_s) as client:
        click.echo(_where(client.import_(record, session_id)))


@_command("delete")
@click.argument("session_ids", metavar="ID...", nargs=-1, required=True)
def delete_sessions(session_ids: tuple[str, ...], address: str, timeout_s: float) -> None:
    """End the sessions ID... A stream of one ends; its id may be created again.

    All are tried: each that cannot be deleted is told in a line, and the exit code is then 2.

    \b
    Example:
      longshort sessions delete sensor-42 what-if
    """  # noqa: D301  click reads the backspace
    import longshort  # noqa: PLC0415  not needed for --help

    all_deleted = True
    with connected(address, timeout_s) as client:
        for session_id in session_ids:
            try:
                client.delete(session_id)
            except longshort.LongshortError as error:
                failure = failure_of(error, address)
                if not isinstance(failure, Mistake):  # the service itself: the others would fare no better
                    raise failure from None
                click.echo(f"Error: {session_id}: {failure.message}", err=True)
                all_deleted = False
            else:
                click.echo(f"{session_id}: deleted")
    if not all_deleted:
        raise click.exceptions.Exit(CALLER_MISTAKEN)


def _tell(session: SessionInfo, *, as_json: bool) -> None:
    if as_json:
        click.echo(_as_json(session))
        return
    for name, value in _facts(session).items():
        if name != "memory":
            click.echo(f"{name:13} {value}")
    for name, tensor in session.memory.items():
        click.echo(f"{name:13} {tensor.shape} {tensor.dtype}: {tensor.tolist()}")


def _facts(session: SessionInfo) -> dict[str, Any]:
    facts = {field.name: getattr(session, field.name) for field in dataclasses.fields(session)}
    place = PLACES.get(session.location, session.location)
    memory = {name: tensor.tolist() for name, tensor in session.memory.items()}
    return facts | {"lag_steps": _lag_steps(session), "location": place, "memory": memory}


def _lag_steps(session: SessionInfo) -> int:
    """Return how many steps the loss of the server would cost."""
    return session.step - session.durable_step


def _as_json(session: SessionInfo) -> str:
    facts = _facts(session)
    if not facts["memory"]:
        del facts["memory"]
    return json.dumps(facts)


def _as_row(session: SessionInfo) -> str:
    model = f"{session.model}/{session.version}"
    place = PLACES.get(session.location, session.location)
    stream = "open" if session.streaming else "-"
    steps = (session.step, session.durable_step, _lag_steps(session))
    return COLUMNS.format(session.id, model, *steps, place, f"{session.idle_s:.0f}s", stream)


def _where(session: SessionInfo) -> str:
    return f"{session.id}: {session.model}/{session.version} at step {session.step}"
