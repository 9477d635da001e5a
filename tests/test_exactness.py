"""Predictions over gRPC are bit for bit those of onnxruntime stepping the same file alone, whatever happens around."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from inside import Lull, service
from oracle import OracleModel
from schedules import ACTS, Act, plan, walk
from wire import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAMES = ("metro", "wide", "deep")
SCHEDULES = st.lists(
    st.tuples(st.sampled_from(NAMES), st.lists(ACTS, min_size=2, max_size=9)), min_size=2, max_size=16
)


@pytest.fixture(scope="module")
def oracles(repository: Path) -> dict[str, OracleModel]:
    return {name: OracleModel(repository / name / "1" / "model.onnx") for name in NAMES}


@pytest.fixture(scope="module")
def crowded_server(run: Callable[..., Any], repository: Path) -> Iterator[SimpleNamespace]:
    """A service whose sessions share many runs, rows of unequal length among them."""
    context = service(repository, piece_steps=16, max_batch_rows=6)
    app, _ = run(context.__aenter__())
    lulls = [Lull.before(model.lane) for model in app.repository.models()]
    yield SimpleNamespace(address=f"127.0.0.1:{app.grpc_port}")
    run(context.__aexit__(None, None, None))
    assert sum(lull.num_shared for lull in lulls) > 30
    assert sum(lull.num_padded for lull in lulls) > 10


@pytest.mark.parametrize("which", ["server", "tight_server", "crowded_server"])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking over sockets would take minutes
)
@given(schedule=SCHEDULES, num_connections=st.integers(1, 3))
def test_any_schedule_of_sessions_is_answered_bit_for_bit(
    request: pytest.FixtureRequest,
    run: Callable[..., Any],
    oracles: dict[str, OracleModel],
    which: str,
    *,
    schedule: list[tuple[str, list[Act]]],
    num_connections: int,
):
    """`tight_server` cuts messages short, runs in the engine's thread and spills; `crowded_server` batches."""
    address = request.getfixturevalue(which).address
    plans = [(name, plan(oracles[name], acts)) for name, acts in schedule]

    async def scenario() -> None:
        callers = [Caller(address) for _ in range(num_connections)]
        try:
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                for place, (name, planned) in enumerate(plans):
                    caller = callers[place % num_connections]
                    group.create_task(walk(caller, name, oracles[name], planned))
        finally:
            for caller in callers:
                await caller.channel.close()

    run(scenario())
