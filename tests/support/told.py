"""Two small models that are told more than their values: one a constant of each session, one what will be known."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from longshort_service.ports import Port
from longshort_service.signature import Channel, Feedback, MissingValue, Signature, State
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def write_speaker(path: Path, *, version: int = 1, state_family: str = "") -> Signature:
    """Write a model that answers with the sum of all values so far plus the first number of the session's constant.

    The constant `who` is two float64 numbers, the state `s0` one float32.
    """
    floats, doubles = TensorProto.FLOAT, TensorProto.DOUBLE
    constants = {
        "axis": np.array(1, np.int64),
        "axes": np.array([1], np.int64),
        "last": np.array(-1, np.int64),
    }
    constants |= {"first": np.array([0], np.int64)}
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["sums"]),
        helper.make_node("Unsqueeze", ["s0", "axes"], ["start"]),
        helper.make_node("Add", ["sums", "start"], ["totals"]),
        helper.make_node("Gather", ["totals", "last"], ["sn"], axis=1),
        helper.make_node("Gather", ["who", "first"], ["shown"], axis=1),
        helper.make_node("Cast", ["shown"], ["shown_single"], to=floats),
        helper.make_node("Unsqueeze", ["shown_single", "axes"], ["lifted"]),
        helper.make_node("Add", ["totals", "lifted"], ["y"]),
    ]
    signature = Signature(
        name="speaker",
        features=(Channel("x"),),
        outputs=(Channel("y"),),
        states=(State("s0", "sn", (-1, 1), 0), State("who", "", (-1, 2), 0, dtype="float64")),
        inputs=(Port("x", (1,)),),
        state_family=state_family,
        fingerprint=hashlib.sha256(f"speaker {version}".encode()).hexdigest(),
    )
    return _write(
        path,
        signature,
        nodes,
        constants,
        [("x", floats, ["batch", "time", 1]), ("s0", floats, ["batch", 1]), ("who", doubles, ["batch", 2])],
        [("y", floats, ["batch", "time", 1]), ("sn", floats, ["batch", 1])],
    )


def write_calendar(path: Path) -> Signature:
    """Write a model of three features: demand, which it predicts; hour, an int64, and rain, which it is told.

    Its state is the sum of all rain; a step's answer is half its demand, plus its hour, plus all rain so far.
    """
    floats, longs = TensorProto.FLOAT, TensorProto.INT64
    constants = {
        "axis": np.array(1, np.int64),
        "last": np.array(-1, np.int64),
        "half": np.array(0.5, np.float32),
    }
    constants |= {"axes": np.array([1], np.int64), "ends": np.array([2], np.int64)}
    nodes = [
        helper.make_node("CumSum", ["rain", "axis"], ["falls"]),
        helper.make_node("Unsqueeze", ["s0", "axes"], ["start"]),
        helper.make_node("Add", ["falls", "start"], ["wet"]),
        helper.make_node("Gather", ["wet", "last"], ["sn"], axis=1),
        helper.make_node("Cast", ["hour"], ["hour_single"], to=floats),
        helper.make_node("Unsqueeze", ["hour_single", "ends"], ["hours"]),
        helper.make_node("Mul", ["demand", "half"], ["less"]),
        helper.make_node("Add", ["less", "hours"], ["timed"]),
        helper.make_node("Add", ["timed", "wet"], ["y"]),
    ]
    signature = Signature(
        name="calendar",
        features=(Channel("demand"), Channel("hour"), Channel("rain")),
        outputs=(Channel("next"),),
        states=(State("s0", "sn", (-1, 1), 0),),
        missing=MissingValue.REJECT,
        inputs=(Port("demand", (1,)), Port("hour", (), "int64"), Port("rain", (1,))),
        forecast=(Feedback("next", "demand"),),
        fingerprint=hashlib.sha256(b"calendar").hexdigest(),
    )
    return _write(
        path,
        signature,
        nodes,
        constants,
        [
            ("demand", floats, ["batch", "time", 1]),
            ("hour", longs, ["batch", "time"]),
            ("rain", floats, ["batch", "time", 1]),
            ("s0", floats, ["batch", 1]),
        ],
        [("y", floats, ["batch", "time", 1]), ("sn", floats, ["batch", 1])],
    )


def calendar_answers(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return what the calendar model says to rows of demand, hour and rain."""
    wet = np.cumsum([row[2] for row in rows], dtype=np.float32)
    return [float(0.5 * demand + hour + sum_) for (demand, hour, _), sum_ in zip(rows, wet, strict=True)]


def calendar_forecast(
    history: Sequence[Sequence[float]], known: Sequence[Sequence[float]], horizon: int
) -> list[float]:
    """Return what it predicts after a history, where hour and rain of the steps ahead are known."""
    rows, predictions = [list(row) for row in history], []
    predictions.append(calendar_answers(rows)[-1])
    for hour, rain in list(known)[: horizon - 1]:
        rows.append([predictions[-1], hour, rain])
        predictions.append(calendar_answers(rows)[-1])
    return predictions


def _write(  # noqa: PLR0917  what a graph is made of
    path: Path,
    signature: Signature,
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    inputs: list[tuple[str, int, list[str | int]]],
    outputs: list[tuple[str, int, list[str | int]]],
) -> Signature:
    graph = helper.make_graph(
        nodes,
        signature.name,
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return signature
