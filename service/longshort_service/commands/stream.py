"""`longshort stream`: numbers in on standard input, predictions out on standard output, as they come."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Final

import click

from longshort_service.commands.group import (
    Mistake,
    address_option,
    connected,
    failure_of,
    timeout_option,
)
from longshort_service.commands.initial import initial_option, read_initial
from longshort_service.commands.value_lines import BadLineError, LineReader, available_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import longshort
    import numpy as np
    from longshort.opening import Durability, Mode, ModelChange
    from longshort.results import ModelInfo
    from numpy.typing import NDArray

# Lines that are there together go as one message, and its answers come together: short enough to be prompt.
# Never as several: what is refused has then been refused whole, and none of it is sent a second time.
MOST_ROWS: Final = 256
# Whether anything listens at the address is known sooner than a restart of the service may take later.
FIRST_TIMEOUT_S: Final = 5.0


@click.command(short_help="Values in, predictions out, line by line.")
@click.option("-m", "--model", help="The model. Needed to create the session.")
@click.option(
    "-s",
    "--session",
    "session_id",
    metavar="ID",
    help="The session, 1 to 256 characters of printable ASCII without space. [default: a new one]",
)
@click.option("--version", type=click.IntRange(min=1), help="The model's version. [default: the highest]")
@click.option(
    "--mode",
    type=click.Choice(["open_or_create", "open", "create"]),
    default="open_or_create",
    show_default=True,
    help="Whether the session may, or must, be there already.",
)
@click.option(
    "--durability",
    type=click.Choice(["none", "behind", "sync"]),
    help="What the session shall have. [default: as the service gives it]",
)
@click.option(
    "--model-change",
    type=click.Choice(["refuse", "move", "reset"]),
    default="refuse",
    show_default=True,
    help="For a session that is on another model or version: refuse it, move its state, or begin anew.",
)
@initial_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "json"]),
    default="csv",
    show_default=True,
    help="csv: the outputs in order. json: an object a line with step and outputs by name.",
)
@address_option
@timeout_option(60.0)
def stream(
    *,
    model: str | None,
    session_id: str | None,
    version: int | None,
    mode: Mode,
    durability: Durability | None,
    model_change: ModelChange,
    initial: tuple[str, ...],
    form: str,
    address: str,
    timeout_s: float,
) -> None:
    """Send values from standard input through a session, and write a prediction for each as it comes.

    A line is a row of comma-separated numbers, one a feature; an empty cell or `nan` is a missing value.
    Blank lines and lines that begin with # are left out. A first line without a number is a header: the
    features' columns are then found by name, others may stand beside them, and the output gets a header too.
    The session lives on at the service when the input ends.

    \b
    Examples:
      printf '1195\\n776\\n581\\n' | longshort stream --model metro --session sensor-42
      longshort stream -m metro -s sensor-42 --format json < metro_traffic.csv
      tail -f counts.log | longshort stream -m metro -s sensor-42 | tee predictions.csv
    """  # noqa: D301  click reads the backspace
    if sys.stdin is None:
        raise Mistake("standard input is closed")
    begins_in = read_initial(initial)
    with connected(address, timeout_s) as client:
        if model is None:
            if session_id is None:
                raise click.UsageError("give --model, or the --session of one that exists")
            model = _model_of(client, session_id, mode, min(FIRST_TIMEOUT_S, timeout_s))
        described = client.model(model, version or 0, timeout_s=min(FIRST_TIMEOUT_S, timeout_s))
        with client.session(
            session_id,
            model=model,
            version=version,
            mode=mode,
            durability=durability,
            model_change=model_change,
            initial=begins_in or None,
        ) as session:
            if session_id is None:
                click.echo(f"session {session.id}", err=True)
            if session.version != described.version:
                described = client.model(model, session.version)
            _Pipe(client, session, described, form, address).run(sys.stdin.fileno())


def _model_of(client: longshort.Client, session_id: str, mode: Mode, timeout_s: float) -> str:
    """Return the model of a session that is there. Raises Mistake where it is not, LongshortError."""
    from longshort import errors  # noqa: PLC0415  loaded by now

    try:
        return client.get_session(session_id, timeout_s=timeout_s).model
    except errors.SessionNotFound as error:
        way_out = "" if mode == "open" else "; to create it, give --model"
        raise Mistake(f"{error}{way_out}") from None


class _Pipe:
    """From lines to values to predictions to lines, for one session."""

    def __init__(
        self,
        client: longshort.Client,
        session: longshort.Session,
        model: ModelInfo,
        form: str,
        address: str,
    ) -> None:
        self._client = client
        self._session = session
        self._address = address
        self._first_step = session.position
        self._outputs = [channel.name for channel in model.outputs]
        self._lines = LineReader([channel.name for channel in model.features])
        self._format: Callable[[int, Sequence[str]], str] = self._as_json if form == "json" else self._as_csv
        self._wants_header = form == "csv"

    def run(self, descriptor: int) -> None:
        """Go on until the input ends. Raises Mistake with the number of the line that would not do."""
        try:
            for lines in available_lines(descriptor):
                count = min(MOST_ROWS, self._session.max_steps)
                for start in range(0, len(lines), count):
                    self._pass_on(lines[start : start + count])
        except BadLineError as error:
            raise self._refusal(error) from None

    def _pass_on(self, lines: list[bytes]) -> None:
        rows: list[tuple[int, list[float]]] = []  # with the number of their line
        bad_line = None
        for line in lines:
            try:
                row = self._lines.read(line)
            except BadLineError as error:  # what came before it is applied first
                bad_line = error
                break
            if row is not None:
                rows.append((self._lines.num_lines, row))
        if self._lines.has_header and self._wants_header:
            click.echo(",".join(self._outputs))
            self._wants_header = False
        if rows:
            self._answer(rows)
        if bad_line is not None:
            raise bad_line

    def _answer(self, rows: list[tuple[int, list[float]]]) -> None:
        from longshort import errors  # noqa: PLC0415  loaded by now

        before = self._session.position
        try:
            answers = self._session.steps([row for _, row in rows])
        except errors.InvalidRequest as error:
            # Refused whole: find the line that is to blame, applying those before it.
            if len(rows) > 1 and self._session.position == before:
                for numbered in rows:
                    self._answer([numbered])
                return
            line = rows[self._session.position - before][0]
            raise self._refusal(f"line {line}: {error}") from None
        except (errors.SessionEnded, errors.NotFound) as error:
            raise failure_of(error, self._address, self._state("was", " when it was lost")) from None
        except errors.LongshortError as error:
            raise failure_of(error, self._address, self._state()) from None
        self._write(before, answers)

    def _write(self, step: int, answers: NDArray[np.float32]) -> None:
        texts = ([str(number) for number in row] for row in answers)  # the shortest that reads back the same
        sys.stdout.write("".join(self._format(step + k, row) for k, row in enumerate(texts)))
        sys.stdout.flush()

    def _as_csv(self, _step: int, row: Sequence[str]) -> str:
        return ",".join(row) + "\n"

    def _as_json(self, step: int, row: Sequence[str]) -> str:
        pairs = (f"{json.dumps(name)}: {number}" for name, number in zip(self._outputs, row, strict=True))
        return f'{{"step": {step}, {", ".join(pairs)}}}\n'

    def _refusal(self, message: object) -> Mistake:
        """Return what to raise for a line that will not do. A session made for nothing else goes again."""
        if self._session.created and self._session.position == 0 and not self._session.in_doubt:
            from longshort import errors  # noqa: PLC0415  loaded by now

            session_id = self._session.id
            self._session.close()
            with contextlib.suppress(errors.LongshortError):  # the line is what matters
                # Another program may have taken it over meanwhile, and moved it.
                if self._client.get_session(session_id, timeout_s=FIRST_TIMEOUT_S).step == 0:
                    self._client.delete(session_id, timeout_s=FIRST_TIMEOUT_S)
                    return Mistake(f"{message}; no value was applied, session {session_id} was not kept")
        return Mistake(f"{message}{self._state()}")

    def _state(self, tense: str = "is", when: str = "") -> str:
        """Return what is to be known for going on after an error."""
        session = self._session
        count = session.position - self._first_step
        doubt = "; the next lines may have been applied too" if session.in_doubt else ""
        applied = f"{count} value was" if count == 1 else f"{count} values were"
        stands = f"session {session.id} {tense} at step {session.position}{when}"
        return f"; {applied} applied before it, {stands}{doubt}"
