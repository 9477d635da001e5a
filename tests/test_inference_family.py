"""Open Inference tensors of every dtype, rank and pair of axes reach the rows of the models and come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from family import Member, members
from inside import service
from longshort_service import errors
from longshort_service.handlers import inference_tensors
from longshort_service.inference import inference_pb2 as pb
from longshort_service.ports import Port
from longshort_service.signature import Channel, Signature
from open_inference import Triton, arrays_of, request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from numpy.typing import NDArray

    Run = Callable[[Coroutine[Any, Any, None]], None]

FAMILY = list(members())
SERVED = FAMILY[::9]


def values_of(member: Member, num_rows: int, num_steps: int) -> NDArray[Any]:
    """Return whole numbers `[rows, steps, *shape]`."""
    random = np.random.default_rng(3)
    return random.integers(-3, 4, (num_rows, num_steps, *member.shape)).astype(member.dtype)


def to_graph(member: Member, values: NDArray[Any]) -> NDArray[Any]:
    """Return `[rows, steps, *shape]` with the graph's axes; without one of time there is one step."""
    if member.time_axis is None:
        return np.moveaxis(values[:, 0], 0, member.batch_axis)
    return np.moveaxis(values, (0, 1), (member.batch_axis, member.time_axis))


def steps_of(member: Member) -> int:
    return 1 if member.time_axis is None else 4


@pytest.mark.parametrize("member", FAMILY, ids=lambda member: member.name)
def test_tensors_become_rows_and_rows_tensors(member: Member):
    signature = member.signature()
    values = values_of(member, 3, steps_of(member))
    tensor = to_graph(member, values)
    request = request_of(member.name, {"x": tensor})
    rows = inference_tensors.rows(inference_tensors.inputs(request), signature)
    assert rows.shape == (3, values.shape[1], signature.value_row.width)
    (unpacked,) = signature.value_row.unpack(rows)
    np.testing.assert_array_equal(unpacked, values)
    response = pb.ModelInferResponse()
    inference_tensors.fill(response, rows, signature, ())
    np.testing.assert_array_equal(arrays_of(response)["y"], tensor)
    assert list(response.outputs[0].shape) == list(tensor.shape)


def test_family_is_served_by_sequences_and_without(run: Run, tmp_path: Path):
    for member in SERVED:
        member.write(tmp_path / member.name / "1" / "model.onnx")

    async def scenario() -> None:
        async with service(tmp_path) as (_, caller):
            triton = Triton(caller)
            for member in SERVED:
                values = values_of(member, 3, 8)
                expected = np.stack([member.answer(row) for row in values])
                count = steps_of(member)
                alone = await triton.infer(
                    request_of(member.name, {"x": to_graph(member, values[:, :count])})
                )
                (found,) = arrays_of(alone).values()
                np.testing.assert_array_equal(found, to_graph(member, expected[:, :count]))
                for begin in range(0, 8, count):
                    part = slice(begin, begin + count)
                    response = await triton.infer(
                        request_of(
                            member.name,
                            {"x": to_graph(member, values[1:2, part])},
                            sequence="s",
                            start=begin == 0,
                            end=begin + count == 8,
                        )
                    )
                    (found,) = arrays_of(response).values()
                    np.testing.assert_array_equal(found, to_graph(member, expected[1:2, part]))
                    assert response.parameters["sequence_step"].int64_param == begin + count

    run(scenario())


# -- what is wrong with tensors -----


def signature_of(*inputs: Port, answers: tuple[Port, ...] = (Port("y", (1,)),)) -> Signature:
    num_inputs, num_answers = (sum(port.num_elements for port in ports) for ports in (inputs, answers))
    return Signature(
        name="model",
        features=tuple(Channel(f"x{k}") for k in range(num_inputs)),
        outputs=tuple(Channel(f"y{k}") for k in range(num_answers)),
        states=(),
        inputs=inputs,
        answers=answers,
    )


@pytest.mark.parametrize(
    ("datatype", "field", "dtype"),
    [
        ("FP32", "fp32_contents", "float32"),
        ("FP64", "fp64_contents", "float64"),
        ("INT32", "int_contents", "int32"),
        ("INT64", "int64_contents", "int64"),
    ],
)
def test_typed_contents_are_taken_as_raw_ones_are(datatype: str, field: str, dtype: str):
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 3, 1])
    getattr(tensor.contents, field).extend([1, 2, 3])
    (array,) = inference_tensors.inputs(request).values()
    assert (array.dtype.name, array.ravel().tolist()) == (dtype, [1, 2, 3])
    tensor.shape[1] = 4
    with pytest.raises(errors.WrongShape, match="do not make"):
        inference_tensors.inputs(request)


def typed(request: pb.ModelInferRequest) -> None:
    request.ClearField("raw_input_contents")


def empty(request: pb.ModelInferRequest, shape: list[int]) -> None:
    request.raw_input_contents[0] = b""
    request.inputs[0].shape[:] = shape


BROKEN: list[tuple[Callable[[pb.ModelInferRequest], Any], str]] = [
    (lambda request: request.raw_input_contents.append(b""), "2 raw contents for 1 inputs"),
    (lambda request: request.inputs[0].contents.fp32_contents.append(1), "raw and typed"),
    (lambda request: setattr(request.inputs[0], "datatype", "BYTES"), "datatype 'BYTES' is none of"),
    (lambda request: setattr(request.inputs[0], "datatype", "FP64"), "8 bytes each"),
    (lambda request: request.inputs[0].shape.append(-1), "is no shape"),
    (lambda request: request.inputs[0].shape.append(2**30), "bytes do not make"),
    (lambda request: request.inputs[0].shape.extend([1] * 70), "is no shape"),
    (lambda request: request.inputs[0].shape.extend([2**31 - 1] * 1_000_000), "is no shape"),
    (lambda request: empty(request, [0, 2**60, 1]), "is no shape"),
    (lambda request: empty(request, [2**30, 2**30, 0, 2**30]), "is no shape"),
    (lambda request: setattr(request.inputs[0], "name", "z"), "takes x"),
    (lambda request: request.inputs[0].shape.append(1), r"x is \[-1, -1, 1\], not"),
    (typed, "fp32_contents do not make"),
    (lambda request: (typed(request), setattr(request.inputs[0], "datatype", "FP16")), "FP16 travels in raw"),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN)
def test_broken_tensor_is_refused(damage: Callable[[pb.ModelInferRequest], Any], words: str):
    request = request_of("model", [1.0])
    damage(request)
    with pytest.raises(errors.WrongShape, match=words):
        inference_tensors.rows(inference_tensors.inputs(request), signature_of(Port("x", (1,))))


def test_input_twice_and_of_another_datatype_are_refused():
    request = request_of("model", [1.0])
    request.MergeFrom(request_of("model", [1.0]))
    with pytest.raises(errors.WrongShape, match="twice"):
        inference_tensors.inputs(request)
    wrong = {"x": np.ones((1, 1, 1))}
    with pytest.raises(errors.WrongShape, match="x is FP32, not FP64"):
        inference_tensors.rows(wrong, signature_of(Port("x", (1,))))


def test_inputs_have_the_same_rows_and_steps():
    signature = signature_of(
        Port("a", (1,)), Port("b", (2,), "int64", 0, None), Port("c", (), "float16", None, 0)
    )
    arrays = {
        "a": np.ones((1, 1, 1), np.float32),
        "b": np.ones((1, 2), np.int64),
        "c": np.ones(1, np.float16),
    }
    rows = inference_tensors.rows(dict(arrays), signature)
    assert rows.shape == (1, 1, signature.value_row.width)
    with pytest.raises(errors.WrongShape, match="b has 2 rows of 1 steps, a has 1 of 1"):
        inference_tensors.rows(arrays | {"b": np.ones((2, 2), np.int64)}, signature)
    with pytest.raises(errors.WrongShape, match="c has 1 rows of 2 steps"):
        inference_tensors.rows(arrays | {"c": np.ones(2, np.float16)}, signature)
    with pytest.raises(errors.WrongShape, match="model takes c"):
        inference_tensors.rows({"a": arrays["a"], "b": arrays["b"]}, signature)


def test_answer_without_an_axis_of_time_is_the_last_step_s():
    signature = signature_of(Port("x", (1,)), answers=(Port("y", (2,), "float32", 0, None),))
    response = pb.ModelInferResponse()
    answers = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    inference_tensors.fill(response, answers, signature, ())
    np.testing.assert_array_equal(arrays_of(response)["y"], [[4, 5], [10, 11]])


def test_output_that_is_asked_for_often_comes_once():
    signature = signature_of(Port("x", (1,)), answers=(Port("y", (1,)), Port("z", (1,))))
    response = pb.ModelInferResponse()
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in "zyzzy"]
    inference_tensors.fill(response, np.zeros((1, 1, 2), np.float32), signature, wanted)
    assert [output.name for output in response.outputs] == ["z", "y"]
    assert len(response.raw_output_contents) == 2


def test_answers_without_an_axis_of_rows_have_none():
    signature = signature_of(Port("x", (1,)), answers=(Port("y", (), "int32", None, None),))
    response = pb.ModelInferResponse()
    rows = signature.answer_row.pack([np.array([[7]], np.int32)])
    inference_tensors.fill(response, rows, signature, ())
    found = arrays_of(response)["y"]
    assert (found.shape, found.dtype.name, int(found)) == ((), "int32", 7)
