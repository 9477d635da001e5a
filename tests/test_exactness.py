"""Predictions over gRPC are bit for bit those of onnxruntime stepping the same file alone, whatever happens around."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import OracleModel
from schedules import ACTS, Act, plan, walk
from wire import Caller

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ("metro", "wide", "deep")
SCHEDULES = st.lists(
    st.tuples(st.sampled_from(NAMES), st.lists(ACTS, min_size=2, max_size=9)), min_size=2, max_size=10
)


@pytest.fixture(scope="module")
def oracles(repository: Path) -> dict[str, OracleModel]:
    return {name: OracleModel(repository / name / "1" / "model.onnx") for name in NAMES}


@pytest.mark.parametrize("which", ["server", "tight_server"])
@settings(
    max_examples=60,
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
    """`tight_server` cuts messages short, batches few rows, runs in the engine's thread and spills all the time."""
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
