"""Latencies as the service itself reports them: histograms of /metrics, and quantiles of what was added."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Collection

FAMILY: Final = "longshort_step_seconds"
STAGE: Final = "total"  # from a message read to its answer handed to gRPC
SCRAPE_TIMEOUT_S: Final = 10.0

# Cumulative counts of observations by upper bound in seconds, +inf included.
Buckets = dict[float, float]


class ScrapeError(Exception):
    """The page could not be had, or is no metrics page."""


def scrape(url: str) -> str:
    """Return the text of a metrics page. Blocks; raises ScrapeError."""
    try:
        with urllib.request.urlopen(url, timeout=SCRAPE_TIMEOUT_S) as response:  # noqa: S310  the user's own URL
            return str(response.read().decode())
    except (OSError, ValueError) as error:
        raise ScrapeError(f"no metrics: {error}") from error


def buckets(text: str, models: Collection[str]) -> Buckets:
    """Return the histogram of the whole way through the service, summed over models. Raises ScrapeError."""
    found: Buckets = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                if (
                    sample.name == f"{FAMILY}_bucket"
                    and labels["stage"] == STAGE
                    and labels["model"] in models
                ):
                    bound = float(labels["le"])
                    found[bound] = found.get(bound, 0.0) + sample.value
    except (ValueError, KeyError) as error:
        raise ScrapeError(f"not a metrics page of longshort: {error}") from error
    if not found:
        raise ScrapeError(f"no {FAMILY} of {', '.join(models)}: not a metrics page of longshort")
    return found


def added(before: Buckets, after: Buckets) -> Buckets:
    """Return what was counted between two scrapes."""
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def quantile(counted: Buckets, share: float) -> float:
    """Return the quantile in seconds as Prometheus' `histogram_quantile` does: linear within a bucket.

    NaN where nothing was counted; the greatest finite bound where the quantile lies above it.
    """
    bounds = sorted(counted)
    total = counted[bounds[-1]] if bounds else 0.0
    if not total:
        return math.nan
    rank, lower, below = share * total, 0.0, 0.0
    for bound in bounds:
        if counted[bound] >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (counted[bound] - below)
        lower, below = bound, counted[bound]
    return lower
