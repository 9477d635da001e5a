"""What all commands share: one line for every failure, an exit code that says whose it was, the address.

Exit codes: 0; 1 where the service failed; 2 for a mistake of the caller's; 130 after Ctrl-C; 141 where the
reader of our output went away (as a shell says of a program that SIGPIPE ended).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import longshort
    from longshort.errors import LongshortError

SERVICE_FAILED: Final = 1
CALLER_MISTAKEN: Final = 2
INTERRUPTED: Final = 128 + 2
READER_GONE: Final = 128 + 13
DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
PORT_VARIABLE: Final = "LONGSHORT_GRPC_PORT"


class Failure(click.ClickException):
    """The service failed; told in one line."""

    exit_code = SERVICE_FAILED


class Mistake(Failure):
    """What was asked will not do; told in one line."""

    exit_code = CALLER_MISTAKEN


class OneLineGroup(click.Group):
    """A group whose commands end with one line of error, and quietly on Ctrl-C and on a closed pipe."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raises click's Exit in place of what needs no words."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Python flushes stdout once more at its end, and would complain then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(READER_GONE) from None
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise Mistake(f"the output cannot be written: {error.strerror}") from None

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run as a program: ends with SystemExit, unless told `standalone_mode=False` as click has it."""
        run: Any = super().main  # its overloads say less than this passes on
        is_program = extra.pop("standalone_mode", True)
        if not is_program:
            return run(*args, **extra, standalone_mode=False)
        try:
            code = run(*args, **extra, standalone_mode=False)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            click.echo(f"Error: {_one_line(error)}", err=True)
            code = error.exit_code
        except click.Abort:
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message} ({error.ctx.command_path} --help says more)"
    return message


class Address(click.ParamType[str]):
    """Where a service listens, as gRPC takes it: HOST:PORT, or a URI such as unix:/run/longshort.sock."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, or fail where it lacks a port."""
        text = str(value)
        if ":" not in text.strip(":"):
            self.fail(f"{text!r} is no address; give HOST:PORT, such as 127.0.0.1:50051", param, ctx)
        return text


def default_address() -> str:
    """Return where `longshort serve` listens on this machine when it is told nothing else by its flags."""
    return f"127.0.0.1:{os.environ.get(PORT_VARIABLE) or 50051}"


def address_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --address to a command."""
    return click.option(
        "--address",
        type=Address(),
        default=default_address,
        metavar="HOST:PORT",
        help=f"The service. [default: 127.0.0.1:50051, or the port in {PORT_VARIABLE}]",
    )(command)


def timeout_option(default_s: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds --timeout to a command."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help="Longest wait for an answer, reconnecting included.",
    )


@contextlib.contextmanager
def connected(address: str, timeout_s: float) -> Iterator[longshort.Client]:
    """Give a client of the service. Its errors become a Failure or a Mistake."""
    import longshort  # noqa: PLC0415  grpc takes a third of a second that --help need not wait for

    try:
        with longshort.Client(address, timeout_s=timeout_s) as client:
            yield client
    except longshort.LongshortError as error:
        raise failure_of(error, address) from None


def failure_of(error: LongshortError, address: str, more: str = "") -> Failure:
    """Return what to raise for a client's error, `more` appended to its message."""
    from longshort import errors  # noqa: PLC0415  as above

    message = str(error)
    if isinstance(error, errors.Unavailable) and error.reason == "NO_SERVER":
        # The client's further advice is for programs.
        message = error.message.partition("; its values")[0] or f"no service answers at {address}"
    services = errors.Unavailable | errors.DeadlineExceeded | errors.ResourceExhausted | errors.ServerFault
    is_services = isinstance(error, services | errors.SessionLost)
    return (Failure if is_services else Mistake)(message + more)
