"""The whole service with states that stay on a device, the device being the CPU: what a GPU would serve, here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from inside import service
from longshort_service.model_loader import ModelLoader
from longshort_service.resident_engine import ResidentEngine
from wire import values_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from longshort_service.model_signature import Resolved

NUM_SESSIONS, NUM_STEPS = 20, 12


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the states of a service that is told to use CUDA stay on the CPU, as on a device."""

    def load(_loader: ModelLoader, file: Path, num_rows: int, resolved: Resolved) -> ResidentEngine:
        return ResidentEngine(
            file,
            provider="cpu",
            intra_op_num_threads=1,
            num_rows=num_rows,
            signature=resolved.signature,
            arrays=resolved.arrays,
        )

    monkeypatch.setattr(ModelLoader, "_load_resident", load)


@pytest.mark.usefixtures("pretended")
def test_service_with_resident_states_answers_as_with_states_in_main_memory(
    adders: Path, run: Callable[..., None]
):
    async def answers(provider: str) -> list[list[float]]:
        settings = {"provider": provider, "inline_run_limit_s": 0.002, "max_sessions": 100}
        async with service(adders, **settings) as (app, caller):
            model = app.repository.get("adder")
            assert (model.lane.resident is not None) == (provider == "cuda")
            streams = [(await caller.open(f"s{k}", "adder"))[0] for k in range(NUM_SESSIONS)]
            given = []
            for step in range(NUM_STEPS):
                for k, stream in enumerate(streams):
                    await stream.send(values=values_of([k + step, k], 2 * step))
                given += [list((await stream.receive()).answer.values) for stream in streams]
            long = await streams[0].step(np.arange(40.0).tolist(), 2 * NUM_STEPS)
            given.append(list(long.values))
            return given

    async def scenario() -> None:
        assert await answers("cuda") == await answers("cpu")

    run(scenario())
