"""`longshort demo`: the bundled series streamed through a service over gRPC, scored as served."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from pathlib import Path

import click

from longshort_service.commands.group import Address, Failure, Mistake, failure_of

WITHOUT_EXTRA = "in a checkout: pip install ./client '.[demo]'"


@click.command(short_help="See it work: streams, scores, latencies.")
@click.argument("repository", type=click.Path(path_type=Path), required=False)
@click.option(
    "--address", type=Address(), metavar="HOST:PORT", help="Use this running service; starts none of its own."
)
@click.option("--metrics", "metrics_url", metavar="URL", help="With --address: that service's /metrics.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=50051, show_default=True)
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=9464, show_default=True)
@click.option("--serve/--no-serve", "goes_on", default=False, help="Go on serving afterwards, until Ctrl-C.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build"),
    show_default=True,
    help="Where demo.json, the pictures and the service's log go.",
)
def demo(
    *,
    repository: Path | None,
    address: str | None,
    metrics_url: str | None,
    grpc_port: int,
    metrics_port: int,
    out: Path,
    goes_on: bool,
) -> None:
    """Stream a road's traffic and 28 car parks through the service, one session each, and score the answers.

    Starts `longshort serve REPOSITORY` (without it: the shipped models), warms 29 sessions up with the past,
    sends the held-out part one value at a time from all of them at once, and prints what came back beside
    forecasts without a memory. Each run has sessions of its own and deletes them.

    \b
    Examples:
      longshort demo
      longshort demo models --serve
      longshort demo --address 10.0.0.7:50051 --metrics http://10.0.0.7:9464/metrics
    """  # noqa: D301  click reads the backspace
    if (address is None) != (metrics_url is None):
        raise click.UsageError("--address and --metrics go together: latencies are read from /metrics")
    if address is not None and (repository is not None or goes_on):
        raise click.UsageError("with --address no service is started: leave out REPOSITORY and --serve")
    missing = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        raise Mistake(f"{' and '.join(missing)} missing; {WITHOUT_EXTRA}")
    from longshort_service.demo.local_service import local_service  # noqa: PLC0415  not needed for --help

    with contextlib.ExitStack() as stack:
        if address is None or metrics_url is None:
            service = stack.enter_context(
                local_service(repository, grpc_port, metrics_port, out / "service.log")
            )
            address, metrics_url = service.address, service.metrics_url
            click.echo(f"serving on {address}, metrics on {metrics_url}, log in {service.log}")
        try:
            _show(address, metrics_url, out)
        except Mistake as error:  # models of the user's own, say: these can be served without the demo's
            if not goes_on:
                raise
            click.echo(f"no demo: {error.message}")
        if goes_on:
            click.echo(f"still serving on {address}; Ctrl-C ends it")
            service.wait()


def _show(address: str, metrics_url: str, out: Path) -> None:
    import longshort  # noqa: PLC0415  not needed for --help

    from longshort_service.demo import results, streaming  # noqa: PLC0415
    from longshort_service.demo.latency import ScrapeError  # noqa: PLC0415

    try:
        run = asyncio.run(streaming.stream_everything(address, metrics_url))
    except streaming.NoModelError as error:
        raise Mistake(f"{error}; `longshort demo` alone runs with the shipped ones") from None
    except longshort.LongshortError as error:
        raise failure_of(error, address) from None
    except ScrapeError as error:
        raise Failure(f"{metrics_url}: {error}") from None
    click.echo(results.save(run, out))
