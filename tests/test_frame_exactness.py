"""Sessions in frames are answered bit for bit as onnxruntime stepping the same file alone, whoever else is there."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from frame_walk import KINDS, FrameWalk
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import OracleModel
from schedules import ACTS, Act, plan, walk
from wire import ALL, LAST, NONE, Caller

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ("metro", "wide", "deep")
# Few lengths and mostly one kind of answers, so that rows share jobs.
FRAME_ACTS = st.builds(
    lambda act, kind, count, answers: dataclasses.replace(act, kind=kind, count=count, answers=answers),
    ACTS,
    st.sampled_from(KINDS),
    st.sampled_from([1, 1, 1, 1, 1, 2, 65]),
    st.sampled_from([ALL, ALL, ALL, LAST, NONE]),
)
# At the end they have nothing but plain steps, so that frames of the same sessions follow one another.
PLAIN_ACTS = [Act("values", 1, ALL, True, False, False, seed) for seed in range(6)]  # noqa: FBT003  as they stand
SCHEDULES = st.tuples(
    st.sampled_from(NAMES), st.lists(FRAME_ACTS, min_size=3, max_size=8).map(lambda acts: acts + PLAIN_ACTS)
)


@pytest.fixture(scope="module")
def oracles(repository: Path) -> dict[str, OracleModel]:
    return {name: OracleModel(repository / name / "1" / "model.onnx") for name in NAMES}


@pytest.mark.parametrize("which", ["server", "tight_server"])
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking over sockets would take minutes
)
@given(
    framed=st.lists(st.lists(SCHEDULES, min_size=3, max_size=6), min_size=1, max_size=2),
    others=st.lists(st.tuples(st.sampled_from(NAMES), st.lists(ACTS, min_size=2, max_size=6)), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_frames_are_answered_bit_for_bit(
    request: pytest.FixtureRequest,
    run: Callable[..., Any],
    oracles: dict[str, OracleModel],
    which: str,
    *,
    framed: list[list[tuple[str, list[Act]]]],
    others: list[tuple[str, list[Act]]],
    seed: int,
):
    """One or two frame streams, and beside them sessions on streams of their own and in unary calls."""
    address = request.getfixturevalue(which).address
    plans = [
        [(name, oracles[name], plan(oracles[name], acts)) for name, acts in schedules] for schedules in framed
    ]
    walks = [(name, plan(oracles[name], acts)) for name, acts in others]

    async def scenario() -> None:
        async with Caller(address) as caller, asyncio.timeout(30), asyncio.TaskGroup() as group:
            for place, of_stream in enumerate(plans):
                group.create_task(FrameWalk(caller, seed + place, of_stream).run())
            for name, planned in walks:
                group.create_task(walk(caller, name, oracles[name], planned))

    run(scenario())
