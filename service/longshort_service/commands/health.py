"""`longshort health`: the question that a container's HEALTHCHECK asks."""

from __future__ import annotations

import click

from longshort_service.commands.group import SERVICE_FAILED, Address, Failure, default_address, timeout_option


@click.command(short_help="Ask a service for its health.")
@click.argument("address", type=Address(), default=default_address, metavar="[HOST:PORT]")
@timeout_option(3.0)
def health(address: str, timeout_s: float) -> None:
    """Ask the service at HOST:PORT for its health; exit 0 where it says SERVING, 1 otherwise.

    Without HOST:PORT it is 127.0.0.1:50051, or the port in LONGSHORT_GRPC_PORT. Asks by grpc.health.v1.

    \b
    Examples:
      longshort health
      longshort health replica-2:50051 --timeout 1 || echo "not serving"
    """  # noqa: D301  click reads the backspace
    import grpc  # noqa: PLC0415  not needed for --help
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

    try:
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s).status
    except grpc.RpcError as error:
        raise Failure(f"{address}: {error.code().name}: {error.details()}") from None
    click.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise click.exceptions.Exit(SERVICE_FAILED)
