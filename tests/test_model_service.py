"""ModelService over the wire: what models promise, and new ones while the service runs."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from graphs import write_adder
from longshort.v1 import model_pb2, session_pb2
from wire import OPEN, Caller, Stream, key, refusal_of, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


def test_models_are_listed_by_name_and_version(run: Run, server: Any):
    async def scenario() -> None:
        async with Caller(server.address) as caller:
            response = await caller.models.ListModels(model_pb2.ListModelsRequest())
            assert [(model.name, model.version) for model in response.models] == [
                ("deep", 1),
                ("metro", 1),
                ("wide", 1),
            ]
            assert all(model.serving for model in response.models)

    run(scenario())


def test_model_tells_what_it_promises(run: Run, server: Any, adder_server: Any):
    async def scenario() -> None:
        async with Caller(server.address) as caller:
            for version in (0, 1):
                request = model_pb2.GetModelRequest(name="wide", version=version)
                model = (await caller.models.GetModel(request)).model
                assert (model.name, model.version, model.max_steps) == ("wide", 1, 4096)
                assert [channel.name for channel in model.features] == ["x0", "x1", "x2"]
                assert len(model.outputs) == 2
                assert (model.forecasts, model.explains, model.serving) == (False, True, True)
                assert model.missing == model_pb2.MISSING_VALUE_REPEAT_LAST
                assert model.state_bytes == 2 * 8 * 4
                assert model.provider == "CPUExecutionProvider"
                assert json.loads(model.signature)["fingerprint"] == model.fingerprint
        async with Caller(adder_server.address) as caller:
            kinds = {}
            for name in ("adder", "strict", "passing"):
                model = (await caller.models.GetModel(model_pb2.GetModelRequest(name=name))).model
                kinds[name] = model.missing
                assert (model.forecasts, model.explains, model.max_steps) == (True, False, 50)
            assert kinds == {
                "adder": model_pb2.MISSING_VALUE_REPEAT_LAST,
                "strict": model_pb2.MISSING_VALUE_REJECT,
                "passing": model_pb2.MISSING_VALUE_PASS,
            }

    run(scenario())


@pytest.mark.parametrize("request_", [{"name": "nobody"}, {"name": "metro", "version": 9}, {}], ids=str)
def test_unknown_model_is_not_found(run: Run, server: Any, request_: dict[str, Any]):
    async def scenario() -> None:
        async with Caller(server.address) as caller:
            call = caller.models.GetModel(model_pb2.GetModelRequest(**request_))
            assert await refused(call) == ("NOT_FOUND", "MODEL_NOT_FOUND")

    run(scenario())


def test_bytes_that_are_no_protobuf_are_malformed(run: Run, server: Any):
    async def scenario() -> None:
        async with Caller(server.address) as caller:
            for method in ("ListModels", "GetModel", "ReloadModels"):
                call = caller.channel.unary_unary(f"/longshort.v1.ModelService/{method}")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"\xff" * 9)
                assert refusal_of(caught.value) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")

    run(scenario())


@pytest.fixture
def growing(start_server: Any, tmp_path: Path) -> tuple[Any, Path]:
    """Return a service and its repository of one adder, to which a test adds."""
    models = tmp_path / "models"
    write_adder(models / "adder" / "1" / "model.onnx")
    return start_server(models=models), models


async def reload(caller: Caller) -> model_pb2.ReloadModelsResponse:
    response = await caller.models.ReloadModels(model_pb2.ReloadModelsRequest())
    assert isinstance(response, model_pb2.ReloadModelsResponse)
    return response


def versions(response: Any) -> list[tuple[int, bool]]:
    return [(model.version, model.serving) for model in response.models]


def test_new_version_serves_new_sessions_and_old_sessions_stay(run: Run, growing: tuple[Any, Path]):
    server, models = growing

    async def scenario() -> None:
        async with asyncio.timeout(20), Caller(server.address) as caller:
            stream, _ = await caller.open("old", "adder")
            await stream.step([5], 0)
            write_adder(models / "adder" / "2" / "model.onnx", bias=100)
            response = await reload(caller)
            assert (list(response.loaded), list(response.unloaded)) == (["adder/2"], [])
            assert versions(response) == [(1, False), (2, True)]
            assert list((await stream.step([1], 1)).values) == [6]
            await stream.half_close()
            again, opened = await caller.open("old", "adder")
            assert opened.version == 1
            assert list((await again.step([1], 2)).values) == [7]
            newer, opened = await caller.open("new", "adder")
            assert opened.version == 2
            assert list((await newer.step([5], 0)).values) == [105]
            _, opened = await caller.open("chosen", "adder", version=1)
            assert opened.version == 1

    run(scenario())


def test_version_that_is_gone_serves_its_sessions_to_their_end(run: Run, growing: tuple[Any, Path]):
    server, models = growing

    async def scenario() -> None:
        async with asyncio.timeout(20), Caller(server.address) as caller:
            stream, _ = await caller.open("old", "adder")
            write_adder(models / "adder" / "2" / "model.onnx")
            shutil.rmtree(models / "adder" / "1")
            response = await reload(caller)
            assert versions(response) == [(1, False), (2, True)]
            assert list((await stream.step([5], 0)).values) == [5]
            await caller.sessions.Delete(session_pb2.DeleteRequest(session=key("old")))
            response = await reload(caller)
            assert list(response.unloaded) == ["adder/1"]
            assert versions(response) == [(2, True)]
            refusal = await caller.refused_open("s", "adder", version=1)
            assert refusal == ("NOT_FOUND", "MODEL_NOT_FOUND")

    run(scenario())


def test_broken_new_version_is_reported_and_harms_nobody(run: Run, growing: tuple[Any, Path]):
    server, models = growing

    async def scenario() -> None:
        async with asyncio.timeout(20), Caller(server.address) as caller:
            stream, _ = await caller.open("s", "adder")
            await stream.step([5], 0)
            broken = models / "adder" / "2" / "model.onnx"
            broken.parent.mkdir()
            broken.write_bytes((models / "adder" / "1" / "model.onnx").read_bytes()[:-100])
            response = await reload(caller)
            assert list(response.failed) == ["adder/2"]
            assert (list(response.loaded), versions(response)) == ([], [(1, True)])
            assert list((await stream.step([1], 1)).values) == [6]
            assert (await caller.open("t", "adder"))[1].version == 1

    run(scenario())


def test_reload_under_load_disturbs_no_session(run: Run, growing: tuple[Any, Path]):
    server, models = growing

    async def scenario() -> None:
        async with asyncio.timeout(30), Caller(server.address) as caller:
            is_over = asyncio.Event()

            async def load(stream: Stream) -> int:
                step = 0
                while not is_over.is_set() or step < 20:
                    answer = await stream.step([1], step)
                    step += 1
                    assert list(answer.values) == [step]
                return step

            tasks = [asyncio.create_task(load((await caller.open(f"s{k}", "adder"))[0])) for k in range(8)]
            for version in range(2, 5):
                write_adder(models / "adder" / str(version) / "model.onnx")
                assert list((await reload(caller)).loaded) == [f"adder/{version}"]
            is_over.set()
            assert min(await asyncio.gather(*tasks)) >= 20
            _, opened = await caller.open("s0", "", mode=OPEN)
            assert opened.version == 1

    run(scenario())
