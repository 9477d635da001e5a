"""Requests of the Open Inference Protocol that cross on their way, and what is kept to know one again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from inside import service
from longshort_service.stores.base import OpenMode
from open_inference import Triton, request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from longshort_service.opener import OpenRequest

    Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.mark.parametrize("straggler", [7.0, 1.0])
def test_request_that_comes_between_a_sequence_and_its_start_is_not_in_its_state(
    run: Run, adders: Path, straggler: float
):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            triton, keeper = Triton(caller), app._edge.keeper
            ensure, has_crossed = keeper.ensure, False

            async def crossed(request: OpenRequest) -> Any:
                nonlocal has_crossed
                opened = await ensure(request)
                if request.mode is OpenMode.CREATE and not has_crossed:
                    has_crossed = True
                    await triton.infer(request_of("adder", [straggler], sequence=1))
                return opened

            keeper.ensure = crossed  # type: ignore[method-assign]
            assert await triton.numbers("adder", [1.0], sequence=1, start=True) == [1]
            assert has_crossed
            assert await triton.numbers("adder", [1.0], sequence=1) == [2]

    run(scenario())


@pytest.mark.parametrize("parameters", [{}, {"sequence": 1, "start": True}])
def test_request_whose_answer_no_message_holds_is_refused_before_it_runs(
    run: Run, adders: Path, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any]
):
    async def scenario() -> None:
        monkeypatch.setattr("longshort_service.handlers.inference_sequences.MAX_ANSWER_BYTES", 40)
        async with service(adders) as (app, caller):
            triton = Triton(caller)
            refusal = await triton.refused(request_of("adder", [1.0] * 11, **parameters))
            assert (refusal, "44 bytes" in refusal.message) == (("INVALID_ARGUMENT", "WRONG_SHAPE"), True)
            assert app.repository.get("adder").arena.num_held == 0
            assert (await triton.numbers("adder", [1.0] * 10, **parameters))[-1] == 10

    run(scenario())


def test_ids_of_requests_take_no_memory_however_long_they_are(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders, sequence_mode="strict") as (app, caller):
            triton = Triton(caller)
            long = "a" * 1_000_000
            for sequence in range(1, 4):
                await triton.infer(request_of("adder", [1.0], long, sequence=sequence, start=True))
            for _ in range(2):
                assert await triton.numbers("adder", [1.0], long + "b", sequence=1) == [2]
            assert await triton.numbers("adder", [1.0], long + "c", sequence=1) == [3]
            kept = app._inference._inference._last_sent
            assert len(kept) == 3
            assert sum(len(repr(entry)) for entry in kept.items()) < 1000

    run(scenario())
