"""Small models whose answers are known without onnxruntime: what the tests of the service run on purpose."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
from longshort_service.signature import Channel, Feedback, MissingValue, Signature, State
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_service.engine import Engine

# For this value the adder's graph asks for a table's millionth row: onnxruntime raises in mid-run.
FATAL = -666.0


def make_mortal(engine: Engine) -> None:
    """Have an engine be dead when a run of it has failed: FATAL alone is only the fault of who sent it."""
    engine.is_alive = lambda: False  # type: ignore[method-assign]


def write_adder(
    path: Path,
    *,
    name: str = "adder",
    missing: MissingValue = MissingValue.REPEAT_LAST,
    bias: float = 0.0,
    state_family: str = "",
) -> Signature:
    """Write a model that answers with the sum of all values so far, and `bias`; exact for small integers.

    It takes no `sequence_lens`, keeps its state on axis 0, overflows to infinity beyond 3.4e38, and fails the
    whole run on FATAL.
    """
    floats = TensorProto.FLOAT
    constants = {
        "axis": np.array(1, np.int64),
        "axes": np.array([1], np.int64),
        "last": np.array(-1, np.int64),
        "end": np.array([2**31], np.int64),
        "fatal": np.array(FATAL, np.float32),
        "far": np.array(1_000_000, np.int64),
        "table": np.zeros(1, np.float32),
        "bias": np.array(bias, np.float32),
    }
    nodes = [
        helper.make_node("Equal", ["x", "fatal"], ["is_fatal"]),
        helper.make_node("Cast", ["is_fatal"], ["flag"], to=TensorProto.INT64),
        helper.make_node("Mul", ["flag", "far"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["checked"]),
        # What was added up before goes first, so that the order of the additions is that of single steps.
        helper.make_node("Unsqueeze", ["s0", "axes"], ["start"]),
        helper.make_node("Concat", ["start", "checked"], ["all"], axis=1),
        helper.make_node("CumSum", ["all", "axis"], ["sums"]),
        helper.make_node("Slice", ["sums", "axes", "end", "axes"], ["totals"]),
        helper.make_node("Gather", ["totals", "last"], ["sn"], axis=1),
        helper.make_node("Add", ["totals", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [
            helper.make_tensor_value_info("x", floats, ["batch", "time", 1]),
            helper.make_tensor_value_info("s0", floats, ["batch", 1]),
        ],
        [
            helper.make_tensor_value_info("y", floats, ["batch", "time", 1]),
            helper.make_tensor_value_info("sn", floats, ["batch", 1]),
        ],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    signature = Signature(
        name=name,
        description="adds up",
        features=(Channel("x"),),
        outputs=(Channel("y"),),
        states=(State("s0", "sn", (-1, 1), 0),),
        missing=missing,
        forecast=(Feedback("y", "x"),),
        state_family=state_family,
        fingerprint=hashlib.sha256(model.SerializeToString()).hexdigest(),
    )
    helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return signature


def write_adders(root: Path) -> None:
    """Write a repository of adders: one for each meaning of a missing value."""
    write_adder(root / "adder" / "1" / "model.onnx")
    write_adder(root / "strict" / "1" / "model.onnx", name="strict", missing=MissingValue.REJECT)
    write_adder(root / "passing" / "1" / "model.onnx", name="passing", missing=MissingValue.PASS)
