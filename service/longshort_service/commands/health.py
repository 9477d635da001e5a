"""`longshort health`: the question that a container's HEALTHCHECK asks."""

from __future__ import annotations

import contextlib
from typing import Final

import click

from longshort_service.commands.group import (
    SERVICE_FAILED,
    Address,
    Failure,
    Mistake,
    default_address,
    timeout_option,
)

STORE: Final = "longshort.store"


@click.command(short_help="Ask a service for its health.")
@click.argument("address", type=Address(), default=default_address, metavar="[HOST:PORT]")
@click.option(
    "--service",
    "name",
    metavar="NAME",
    default="",
    help="longshort.store: is it there? longshort.live: is a restart of no use? [default: the service as a whole]",
)
@timeout_option(3.0)
def health(address: str, name: str, timeout_s: float) -> None:
    """Ask the service at HOST:PORT for its health; exit 0 where it says SERVING, 1 otherwise.

    Without HOST:PORT it is 127.0.0.1:50051, or the port in LONGSHORT_GRPC_PORT. Asks by grpc.health.v1.
    A service that goes on without its session store says SERVING, degraded.

    \b
    Examples:
      longshort health
      longshort health --service longshort.store
      longshort health replica-2:50051 --timeout 1 || echo "not serving"
    """  # noqa: D301  click reads the backspace
    import grpc  # noqa: PLC0415  not needed for --help
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

    answers = health_pb2.HealthCheckResponse
    try:
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            status = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=timeout_s).status
            is_degraded = False
            if not name and status == answers.SERVING:
                with contextlib.suppress(grpc.RpcError):  # another's service has no such name
                    store = stub.Check(health_pb2.HealthCheckRequest(service=STORE), timeout=timeout_s)
                    is_degraded = store.status == answers.NOT_SERVING
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            raise Mistake(f"{address}: there is no service {name!r} to ask for") from None
        raise Failure(f"{address}: {error.code().name}: {error.details()}") from None
    degraded = ", degraded: the session store is away" if is_degraded else ""
    click.echo(answers.ServingStatus.Name(status) + degraded)
    if status != answers.SERVING:
        raise click.exceptions.Exit(SERVICE_FAILED)
