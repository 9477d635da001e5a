"""The demo's clients: a session for each series, warmed up with the past, then all at once a value at a time.

Owns the order of things and the clock. Every prediction comes over gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import longshort
import numpy as np
from longshort_model.dataset import Dataset, metro, parking
from tqdm import tqdm

from longshort_service.demo import latency

if TYPE_CHECKING:
    from numpy.typing import NDArray

WARM_UP_STEPS: Final = 4096  # a message; as many as a service takes by default
FIRST_TIMEOUT_S: Final = 5.0
NUM_OUTPUTS: Final = 3  # median, 10 % and 90 % quantile


class NoModelError(Exception):
    """The service has none of the models that the demo streams through."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """A data set and what came back for it."""

    dataset: Dataset
    predictions: NDArray[np.float32]  # [series, time, (median, low, high)], NaN where none was asked for


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave. The steps are those of the scored part, a value a message."""

    streamed: list[Streamed]
    num_clients: int
    num_steps: int
    seconds: float
    p50_s: float
    p99_s: float


async def stream_everything(address: str, metrics_url: str) -> Run:
    """Stream the data sets that the service has models for, all at once. Deletes its sessions in any case.

    Raises NoModelError, LongshortError or ScrapeError.
    """
    prefix = f"demo-{secrets.token_hex(4)}"  # of this run alone: another run's sessions are not met
    async with longshort.aio.Client(address) as client:
        datasets = await _served(client)
        names = [dataset.name for dataset in datasets]
        num_steps = sum(dataset.values[:, _first(dataset) :].size for dataset in datasets)
        warmed = sum(dataset.values[:, : _first(dataset)].size for dataset in datasets)
        num_clients = sum(len(dataset.series) for dataset in datasets)
        with _bar("warming up", warmed + num_steps) as bar:
            start = _Start(asyncio.Barrier(num_clients + 1), asyncio.Event())
            walkers = [_Walker(client, dataset, prefix, start, bar) for dataset in datasets]
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(walker.walk(k)) for walker in walkers for k in walker.rows()]
                    await start.is_warm.wait()
                    before = latency.buckets(await asyncio.to_thread(latency.scrape, metrics_url), names)
                    began_s = time.perf_counter()
                    bar.set_description("streaming")
                    start.go.set()
                    await asyncio.wait(tasks)
                    seconds = time.perf_counter() - began_s
            except* (longshort.LongshortError, latency.ScrapeError) as errors:
                raise _first_of(errors) from None
            finally:
                await _delete(client, prefix)
        after = latency.buckets(await asyncio.to_thread(latency.scrape, metrics_url), names)
    counted = latency.added(before, after)
    return Run(
        [Streamed(walker.dataset, walker.predictions) for walker in walkers],
        num_clients,
        num_steps,
        seconds,
        latency.quantile(counted, 0.5),
        latency.quantile(counted, 0.99),
    )


@dataclass(frozen=True, slots=True)
class _Start:
    """How all begin together: each says that it is warm, and waits for the word."""

    is_warm: asyncio.Barrier
    go: asyncio.Event


class _Walker:
    """Walks through the series of one data set."""

    def __init__(
        self,
        client: longshort.aio.Client,
        dataset: Dataset,
        prefix: str,
        start: _Start,
        bar: Any,
    ) -> None:
        self.dataset = dataset
        self.predictions = np.full((*dataset.values.shape, NUM_OUTPUTS), np.nan, np.float32)
        self._client, self._prefix = client, prefix
        self._start, self._bar = start, bar

    def rows(self) -> range:
        """Return the indices of the series."""
        return range(len(self.dataset.series))

    async def walk(self, row: int) -> None:
        """Take one series from its first value to its last."""
        values, first = self._values(row), _first(self.dataset)
        session_id = f"{self._prefix}-{self.dataset.name}-{row:02}"
        async with self._client.session(session_id, model=self.dataset.name, mode="create") as session:
            for start in range(0, first, WARM_UP_STEPS):
                part = values[start : min(start + WARM_UP_STEPS, first)]
                await session.warm_up(part)
                self._bar.update(len(part))
            await self._start.is_warm.wait()
            await self._start.go.wait()
            for t in range(first, len(values)):
                self.predictions[row, t] = await session.step(values[t])
                self._bar.update()

    def _values(self, row: int) -> NDArray[np.float32]:
        """Return a series as it is sent: NaN where missing, which the service fills with the last value.

        A session cannot begin with a missing value; before the first known one that one is sent.
        """
        values: NDArray[np.float32] = self.dataset.values[row].copy()  # [time] f32
        begin = int(np.argmax(~np.isnan(values)))
        values[:begin] = values[begin]
        return values


async def _served(client: longshort.aio.Client) -> list[Dataset]:
    """Return the data sets whose model is there, and gives a median and a band for one value."""
    loaded = {model.name: model for model in await client.models(timeout_s=FIRST_TIMEOUT_S) if model.serving}
    datasets = [
        dataset
        for dataset in (metro(), parking())
        if dataset.name in loaded
        and (len(loaded[dataset.name].features), len(loaded[dataset.name].outputs)) == (1, NUM_OUTPUTS)
    ]
    if not datasets:
        raise NoModelError(
            f"the demo needs the model metro or parking; there are: {', '.join(sorted(loaded))}"
        )
    return datasets


def _first(dataset: Dataset) -> int:
    """Return the first row whose prediction is asked for: it is for the first row of the test part."""
    return dataset.validation_end - 1


async def _delete(client: longshort.aio.Client, prefix: str) -> None:
    with contextlib.suppress(longshort.LongshortError):  # the run's own error is the one to tell
        for session in [session async for session in client.sessions(id_prefix=prefix)]:
            await client.delete(session.id)


def _bar(what: str, total: int) -> Any:
    is_terminal = sys.stderr.isatty()
    return tqdm(
        desc=what,
        total=total,
        unit=" values",
        unit_scale=True,
        file=sys.stderr,
        mininterval=0.1 if is_terminal else 10.0,  # a log gets a line now and then
        ncols=None if is_terminal else 90,
    )


def _first_of(errors: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
