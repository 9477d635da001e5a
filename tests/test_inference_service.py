"""What the Open Inference Protocol is told of the server, its models and its repository."""

from __future__ import annotations

import asyncio
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from family import Member
from graphs import write_adder
from grpc_health.v1 import health_pb2
from inside import service
from longshort_service.engine import Engine
from longshort_service.handlers import inference_models
from longshort_service.handlers.inference import NOT_OFFERED, SERVICE_NAME
from longshort_service.inference import inference_pb2 as pb
from longshort_service.ports import Port
from longshort_service.signature import Channel, Signature, State
from open_inference import Triton, arrays_of, request_of
from wire import Refusal, refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    Run = Callable[[Coroutine[Any, Any, None]], None]


async def refused(triton: Triton, method: str, request: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await triton.call(method, request, pb.Nothing)
    return refusal_of(raised.value)


def test_server_says_what_it_is_and_whether_it_is_ready(run: Run, adders: Path):
    async def scenario() -> None:
        async with service(adders) as (app, caller):
            triton = Triton(caller)
            assert (await triton.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
            assert (await triton.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready
            response = await triton.call(
                "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse
            )
            assert response.name == "longshort"
            assert {"sequence", "sequence(string_id)", "statistics"} <= set(response.extensions)
            health = await caller.health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            app._why_not_ready = "draining"
            app._edge.is_draining = True
            assert (await triton.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
            ready = await triton.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)
            assert not ready.ready
            model = pb.ModelReadyRequest(name="adder")
            assert not (await triton.call("ModelReady", model, pb.ModelReadyResponse)).ready
            refusal = await triton.refused(request_of("adder", [1.0]))
            assert refusal == ("UNAVAILABLE", "DRAINING")
            app._is_engine_dead = True
            assert not (await triton.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live

    run(scenario())


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("adder", "", True), ("adder", "1", True), ("adder", "2", False), ("nobody", "", False)],
)
def test_model_is_ready_that_is_loaded(run: Run, adders: Path, name: str, version: str, *, ready: bool):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            request = pb.ModelReadyRequest(name=name, version=version)
            response = await Triton(caller).call("ModelReady", request, pb.ModelReadyResponse)
            assert response.ready is ready

    run(scenario())


def test_metadata_names_the_data_and_no_states(run: Run, tmp_path: Path):
    write_adder(tmp_path / "adder" / "1" / "model.onnx")
    write_adder(tmp_path / "adder" / "3" / "model.onnx")

    async def scenario() -> None:
        async with service(tmp_path) as (_, caller):
            triton = Triton(caller)
            request = pb.ModelMetadataRequest(name="adder")
            response = await triton.call("ModelMetadata", request, pb.ModelMetadataResponse)
            assert list(response.versions) == ["1", "3"]
            assert response.platform == "onnxruntime_onnx"
            found = [
                (one.name, one.datatype, list(one.shape)) for one in (*response.inputs, *response.outputs)
            ]
            assert found == [("x", "FP32", [-1, -1, 1]), ("y", "FP32", [-1, -1, 1])]
            request.version = "1"
            response = await triton.call("ModelMetadata", request, pb.ModelMetadataResponse)
            assert list(response.versions) == ["1"]
            request.name = "nobody"
            assert await refused(triton, "ModelMetadata", request) == ("NOT_FOUND", "MODEL_NOT_FOUND")
            config = await triton.call(
                "ModelConfig", pb.ModelConfigRequest(name="adder"), pb.ModelConfigResponse
            )
            assert config.config.parameters["version"].string_value == "3"
            assert config.config.max_batch_size == 2048
            assert config.config.HasField("sequence_batching")
            unknown = pb.ModelStatisticsRequest(name="nobody")
            assert await refused(triton, "ModelStatistics", unknown) == ("NOT_FOUND", "MODEL_NOT_FOUND")
            for name, version, count in (("", "", 2), ("adder", "", 2), ("adder", "3", 1)):
                asked = pb.ModelStatisticsRequest(name=name, version=version)
                statistics = await triton.call("ModelStatistics", asked, pb.ModelStatisticsResponse)
                assert len(statistics.model_stats) == count

    run(scenario())


class _Model:
    """As much of a model as its description needs."""

    def __init__(self, signature: Signature, provider: str = "CPUExecutionProvider") -> None:
        self.name, self.version, self.signature = "model", 2, signature
        self.lane = self
        self.provider = provider


def config_of(signature: Signature, provider: str = "CPUExecutionProvider") -> pb.ModelConfig:
    model: Any = _Model(signature, provider)
    return inference_models.config(model, max_rows=64, max_steps=100, max_sequences=10, session_ttl_s=60.0)


def signature_of(*inputs: Port, states: tuple[State, ...] = ()) -> Signature:
    count = sum(port.num_elements for port in inputs)
    return Signature(
        name="model",
        features=tuple(Channel(f"x{k}") for k in range(count)),
        outputs=(Channel("y"),),
        states=states,
        inputs=inputs,
    )


def test_configuration_is_triton_s():
    state = State("h", "h_out", (2, -1, 3), 1, dtype="float64")
    constant = State("who", "", (-1, 4), 0)
    config = config_of(signature_of(Port("x", (5,), "int64", 0, None), states=(state, constant)))
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [("x", pb.TYPE_INT64, [5])]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
        ("y", pb.TYPE_FP32, [-1, 1])
    ]
    assert config.max_batch_size == 64
    assert config.model_transaction_policy.decoupled is False
    sequences = config.sequence_batching
    assert sequences.max_sequence_idle_microseconds == 60_000_000
    assert sequences.oldest.max_candidate_sequences == 10
    (found,) = sequences.state
    assert (found.input_name, found.output_name, found.data_type, list(found.dims)) == (
        "h",
        "h_out",
        pb.TYPE_FP64,
        [2, 3],
    )
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU


def test_configuration_without_rows_first_has_no_batch_and_without_states_no_sequences():
    config = config_of(signature_of(Port("x", (5,), "float16", 1, 0)), "CUDAExecutionProvider")
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [-1, -1, 5])
    assert list(config.output[0].dims) == [-1, -1, 1]
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU


def test_repository_is_looked_at_again_by_a_load_and_an_unload(run: Run, tmp_path: Path):
    write_adder(tmp_path / "adder" / "1" / "model.onnx")

    async def scenario() -> None:
        async with service(tmp_path, may_log_errors=True, repository_watch_s=0.0) as (_, caller):
            triton = Triton(caller)

            async def index() -> list[tuple[str, str, str]]:
                response = await triton.call(
                    "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse
                )
                return [(model.name, model.version, model.state) for model in response.models]

            async def load(name: str, what: str = "Load") -> None:
                request = getattr(pb, f"RepositoryModel{what}Request")(model_name=name)
                await triton.call(f"RepositoryModel{what}", request, pb.Nothing)

            assert await index() == [("adder", "1", "READY")]
            second = pb.RepositoryModelLoadRequest(model_name="second")
            assert await refused(triton, "RepositoryModelLoad", second) == ("NOT_FOUND", "MODEL_NOT_FOUND")
            await asyncio.to_thread(write_adder, tmp_path / "second" / "4" / "model.onnx", name="second")
            await load("second")
            assert await index() == [("adder", "1", "READY"), ("second", "4", "READY")]
            await load("second")  # there already
            broken = tmp_path / "broken" / "1" / "model.onnx"
            await asyncio.to_thread(broken.parent.mkdir, parents=True)
            await asyncio.to_thread(broken.write_bytes, b"no model")
            refusal = await refused(
                triton, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="broken")
            )
            assert refusal == ("NOT_FOUND", "MODEL_NOT_FOUND")
            assert "broken/1" in refusal.message
            second.parameters["config"].string_param = "{}"
            assert await refused(triton, "RepositoryModelLoad", second) == ("UNIMPLEMENTED", "NOT_OFFERED")
            stays = pb.RepositoryModelUnloadRequest(model_name="second")
            refusal = await refused(triton, "RepositoryModelUnload", stays)
            assert (refusal, "folder" in refusal.message) == (("UNIMPLEMENTED", "NOT_OFFERED"), True)
            await asyncio.to_thread(shutil.rmtree, tmp_path / "second")
            await load("second", "Unload")
            assert await index() == [("adder", "1", "READY")]
            assert await refused(triton, "RepositoryModelUnload", stays) == ("NOT_FOUND", "MODEL_NOT_FOUND")

    run(scenario())


@pytest.mark.parametrize("method", NOT_OFFERED)
def test_what_has_no_meaning_here_is_not_offered_and_the_words_say_why(run: Run, adders: Path, method: str):
    async def scenario() -> None:
        async with service(adders) as (_, caller):
            refusal = await refused(Triton(caller), method, pb.ServerLiveResponse(live=True))
            assert (refusal, refusal.message) == (("UNIMPLEMENTED", "NOT_OFFERED"), NOT_OFFERED[method])

    run(scenario())


def test_every_method_of_the_protocol_has_its_handler(run: Run, adders: Path):
    methods = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert len(methods) == 20

    async def scenario() -> None:
        async with service(adders) as (app, _):
            streaming = app._inference.routes(app._streams)
            unary = app._inference.generic_handler()
            for name in methods:
                path = f"/{SERVICE_NAME}/{name}"
                assert (path in streaming) == (name == "ModelStreamInfer")
                details: Any = SimpleNamespace(method=path, invocation_metadata=())
                assert (unary.service(details) is None) == (path in streaming), name

    run(scenario())


def test_sequence_begins_in_the_states_that_its_start_gives(run: Run, tmp_path: Path):
    member = Member("float32", 1, 2, state_axis=1)
    member.write(tmp_path / "models" / member.name / "1" / "model.onnx")
    engine = Engine(
        tmp_path / "models" / member.name / "1" / "model.onnx", provider="cpu", intra_op_num_threads=1
    )
    assert [state.row_shape() for state in engine.signature.states] == [(2,), (2,)]

    async def scenario() -> None:
        async with service(tmp_path / "models") as (_, caller):
            triton = Triton(caller)
            x = np.array([[[1, 2]]], np.float32)
            given = {
                "x": x,
                "state0": np.array([10, 20], np.float32),
                "state1": np.array([[1], [1]], np.float32),
            }

            async def answer(inputs: dict[str, Any], **parameters: Any) -> list[float]:
                (array,) = arrays_of(
                    await triton.infer(request_of(member.name, inputs, **parameters))
                ).values()
                return [float(number) for number in array.ravel()]

            assert await answer(given) == [12, 23]
            assert await answer(given, sequence=1, start=True) == [12, 23]
            assert await answer({"x": x}, sequence=1) == [15, 29]
            late = request_of(member.name, given, sequence=1)
            assert await triton.refused(late) == ("INVALID_ARGUMENT", "WRONG_SHAPE")
            for wrong in ({"state9": given["state0"]}, {"state0": np.ones(3, np.float32)}):
                request = request_of(member.name, {"x": x} | wrong, sequence=1, start=True)
                assert await triton.refused(request) == ("INVALID_ARGUMENT", "WRONG_SHAPE")
                assert await triton.refused(request_of(member.name, {"x": x} | wrong)) == (
                    "INVALID_ARGUMENT",
                    "WRONG_SHAPE",
                )
            assert await answer({"x": x}, sequence=1) == [18, 35]

    run(scenario())
