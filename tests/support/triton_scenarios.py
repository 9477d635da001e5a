"""What users of tritonclient do, one scenario a run: `python triton_scenarios.py NAME ADDRESS [ARGUMENT]`.

Run by build/triton-clients/bin/python, where longshort is not installed; prints what happened as JSON.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from numpy.typing import NDArray

PATIENCE_S = 20


def tensor(values: Any, name: str = "x", datatype: str = "FP32") -> triton.InferInput:
    """Return an input of values `[rows, time, features]`."""
    array = (
        np.asarray(values, triton.triton_to_np_dtype(datatype)) if not hasattr(values, "dtype") else values
    )
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def row(*values: float) -> list[triton.InferInput]:
    """Return the inputs of one row of one feature."""
    return [tensor(np.array(values, np.float32).reshape(1, -1, 1))]


def answers(result: triton.InferResult) -> list[float]:
    """Return the answers of one row of one output."""
    return np.asarray(result.as_numpy("y")).ravel().tolist()


def refusal(error: triton.InferenceServerException | None) -> list[str | None]:
    """Return an error's status and message."""
    assert error is not None
    return [error.status(), error.message()]


def refused(call: Callable[[], object]) -> list[str | None]:
    """Return how a call is refused."""
    try:
        call()
    except triton.InferenceServerException as error:
        return refusal(error)
    raise AssertionError("not refused")


def server_and_models(client: triton.InferenceServerClient, _: str) -> Any:
    """Ask for all that there is to know."""
    client.infer("adder", row(1, 2, 3))
    statistics = client.get_inference_statistics("adder", as_json=True)["model_stats"][0]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "models": [client.is_model_ready(name) for name in ("adder", "nobody")],
        "versions": [client.is_model_ready("adder", number) for number in ("1", "2")],
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("adder", as_json=True),
        "config": client.get_model_config("adder", as_json=True)["config"],
        "index": client.get_model_repository_index(as_json=True)["models"],
        "counted": [statistics["inference_stats"]["success"]["count"], statistics["execution_count"]],
    }


def unary(client: triton.InferenceServerClient, _: str) -> Any:
    """Two sequences at once, one by number and one by text, to their ends."""
    said: dict[str, list[Any]] = {"7": [], "seven": []}
    for step in range(3):
        for sequence_id, told in ((7, said["7"]), ("seven", said["seven"])):
            result = client.infer(
                "adder",
                row(step + 1 if sequence_id == 7 else 10),
                request_id=f"{sequence_id}/{step}",
                sequence_id=sequence_id,
                sequence_start=step == 0,
                sequence_end=step == 2,
                outputs=[triton.InferRequestedOutput("y")],
                priority=1,
                timeout=1_000_000,
            )
            told.append([result.get_response().id, *answers(result)])
    after = refused(lambda: client.infer("adder", row(1), sequence_id=7))
    return {"said": said, "after": after}


def compressed(client: triton.InferenceServerClient, _: str) -> Any:
    """A long row, packed both ways."""
    return [
        answers(client.infer("adder", row(*[1] * 40), compression_algorithm=name))[-1]
        for name in ("gzip", "deflate")
    ]


def asynchronous(client: triton.InferenceServerClient, _: str) -> Any:
    """Calls whose answers come to callbacks, without sequences."""
    found: queue.Queue[Any] = queue.Queue()
    for number in range(20):
        client.async_infer(
            "adder",
            row(number, number),
            callback=lambda result, error: found.put((result, error)),
            request_id=str(number),
        )
    results = [found.get(timeout=PATIENCE_S) for _ in range(20)]
    assert all(error is None for _, error in results)
    return sorted([int(result.get_response().id), *answers(result)] for result, _ in results)


def streaming(client: triton.InferenceServerClient, _: str) -> Any:
    """Many sequences on one stream, sent without waiting."""
    found: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: found.put((result, error)))
    for step in range(10):
        for sequence_id in range(1, 9):
            client.async_stream_infer(
                "adder",
                row(sequence_id),
                request_id=f"{sequence_id}",
                sequence_id=sequence_id if sequence_id % 2 else f"s{sequence_id}",
                sequence_start=step == 0,
                sequence_end=step == 9,
            )
    results = [found.get(timeout=PATIENCE_S) for _ in range(80)]
    client.stop_stream()
    assert all(error is None for _, error in results)
    said: dict[str, list[float]] = {}
    for result, _ in results:
        said.setdefault(result.get_response().id, []).extend(answers(result))
    final = {result.get_response().parameters["triton_final_response"].bool_param for result, _ in results}
    return {"said": said, "final": list(final)}


def stream_errors(client: triton.InferenceServerClient, _: str) -> Any:
    """A refusal in the middle of a stream: in band, and with the header that asks for a status."""
    told: dict[str, list[Any]] = {}
    for name, headers in (("in band", {}), ("status", {"triton_grpc_error": "true"})):
        found: queue.Queue[Any] = queue.Queue()
        client.start_stream(
            callback=lambda result, error, found=found: found.put((result, error)), headers=headers
        )
        client.async_stream_infer("adder", row(1), request_id="a", sequence_id=name, sequence_start=True)
        found_first = found.get(timeout=PATIENCE_S)
        client.async_stream_infer("adder", row(1), request_id="b", sequence_id="nobody")
        found_second = found.get(timeout=PATIENCE_S)
        told[name] = [answers(found_first[0]), refusal(found_second[1])]
        if name == "in band":
            client.async_stream_infer("adder", row(1), request_id="c", sequence_id=name, sequence_end=True)
            told[name].append(answers(found.get(timeout=PATIENCE_S)[0]))
        client.stop_stream(cancel_requests=True)
    return told


def refusals(client: triton.InferenceServerClient, _: str) -> Any:
    """What a client gets wrong, and what is not offered."""
    two_rows = [tensor(np.ones((2, 1, 1), np.float32))]
    return {
        "unknown model": refused(lambda: client.infer("nobody", row(1))),
        "wrong width": refused(lambda: client.infer("adder", [tensor(np.ones((1, 1, 2), np.float32))])),
        "two rows": refused(lambda: client.infer("adder", two_rows, sequence_id=1, sequence_start=True)),
        "log": refused(client.get_log_settings),
        "trace": refused(client.get_trace_settings),
        "memory": refused(client.get_system_shared_memory_status),
        "cuda": refused(client.get_cuda_shared_memory_status),
        "load": refused(lambda: client.load_model("nobody")),
        "config": refused(lambda: client.load_model("adder", config="{}")),
        "unload": refused(lambda: client.unload_model("adder")),
        "loaded": client.load_model("adder"),
    }


def start(client: triton.InferenceServerClient, argument: str) -> Any:
    """Start a sequence and leave it."""
    return answers(client.infer("adder", row(1, 2), sequence_id=argument, sequence_start=True))


def go_on(client: triton.InferenceServerClient, argument: str) -> Any:
    """Go on with a sequence and leave it."""
    return answers(client.infer("adder", row(4), sequence_id=argument))


def send_again(client: triton.InferenceServerClient, argument: str) -> Any:
    """Send a sequence's second request twice, as after a lost answer, `by` its step number or its id."""
    by, sequence_id = argument.split("/")
    once = (
        {"parameters": {"sequence_step": 1}}
        if by == "step"
        else {"request_id": "second"}
        if by == "id"
        else {}
    )
    client.infer("adder", row(1), sequence_id=sequence_id, sequence_start=True)
    return [answers(client.infer("adder", row(2), sequence_id=sequence_id, **once)) for _ in range(2)]


def send_once_more(client: triton.InferenceServerClient, argument: str) -> Any:
    """Send that second request once more, by its step number."""
    result = client.infer("adder", row(2), sequence_id=argument, parameters={"sequence_step": 1})
    return [answers(result), result.get_response().parameters["sequence_replayed"].bool_param]


def many(client: triton.InferenceServerClient, path: str) -> Any:
    """Step the sequences of a file: `values [sequences, steps, ...]`, constants of each; write the answers there."""
    with np.load(path) as file:
        held = dict(file)
    model = str(held["model"])
    (wanted,) = client.get_model_metadata(model).inputs
    shape = [1 if size == -1 else size for size in wanted.shape]
    found: list[list[NDArray[Any]]] = [[] for _ in held["values"]]
    num_steps = held["values"].shape[1]
    for step in range(num_steps):
        for number, values in enumerate(held["values"]):
            inputs = [tensor(values[step].reshape(shape), wanted.name, wanted.datatype)]
            if step == 0 and "constants" in held:
                inputs.append(tensor(held["constants"][number], str(held["constant"]), "FP32"))
            result = client.infer(
                model,
                inputs,
                sequence_id=number + 1,
                sequence_start=step == 0,
                sequence_end=step == num_steps - 1,
            )
            outputs = [result.as_numpy(output.name).ravel() for output in result.get_response().outputs]
            found[number].append(np.concatenate(outputs))
    np.savez(path, answers=np.asarray(found))
    return shape


async def aio(address: str) -> Any:
    """The asyncio client: unary sequences side by side, then a stream of several."""
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()

        async def sequence(number: int) -> list[float]:
            said = []
            for step in range(4):
                result = await client.infer(
                    "adder", row(number), sequence_id=number, sequence_start=step == 0, sequence_end=step == 3
                )
                said += answers(result)
            return said

        unary_said = await asyncio.gather(*(sequence(number) for number in range(1, 6)))

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for step in range(4):
                for number in range(1, 4):
                    yield {
                        "model_name": "adder",
                        "inputs": row(number),
                        "request_id": str(number),
                        "sequence_id": f"aio-{number}",
                        "sequence_start": step == 0,
                        "sequence_end": step == 3,
                    }

        stream_said: dict[str, list[float]] = {}
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            stream_said.setdefault(result.get_response().id, []).extend(answers(result))
        return {"unary": unary_said, "stream": stream_said}


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        *(server_and_models, unary, compressed, asynchronous, streaming, stream_errors, refusals),
        *(start, go_on, send_again, send_once_more, many),
    )
}


def main() -> None:
    """Run one scenario."""
    name, address, argument = (*sys.argv[1:], "")[:3]
    if name == "aio":
        told = asyncio.run(aio(address))
    else:
        with triton.InferenceServerClient(address) as client:
            told = SCENARIOS[name](client, argument)
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
