"""Collecting the nodes and constants of an ONNX graph.

Owns names, opset and the declared shapes. Knows no network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET: Final = 17  # LSTM-14; every onnxruntime since 1.12 reads it
IR_VERSION: Final = 8  # the one that belongs to opset 17


class Nodes:
    """A graph in the making; a constant of the same name is kept once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.names = 0

    def fresh(self) -> str:
        """Return a tensor name not used before."""
        self.names += 1
        return f"t{self.names}"

    def add(self, operator: str, inputs: list[str], *, outputs: list[str] | None = None, **how: Any) -> str:
        """Add an operator with its attributes and return the name of its first output."""
        names = outputs or [self.fresh()]
        self.nodes.append(helper.make_node(operator, inputs, names, **how))
        return names[0]

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Keep an array under a name and return the name."""
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def matrix(self, name: str) -> str:
        """Return W [1, rows, columns] as [columns, rows]; onnxruntime folds it at loading."""
        square = self.add("Squeeze", [name, self.constant("first_axis", np.array([0]))])
        return self.add("Transpose", [square], perm=[1, 0])

    def split(self, name: str, parts: int, *, axis: int, sizes: list[int] | None = None) -> list[str]:
        """Return the names of the parts of a tensor, equal ones without `sizes`."""
        if parts == 1:
            return [name]
        names = [self.fresh() for _ in range(parts)]
        extra = (
            [] if sizes is None else [self.constant("split." + "_".join(map(str, sizes)), np.array(sizes))]
        )
        self.add("Split", [name, *extra], outputs=names, axis=axis)
        return names

    def model(self, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> onnx.ModelProto:
        """Return the model with these declared f32 inputs and outputs, and `sequence_lens` [batch] i32."""

        def declared(shapes: dict[str, list[Any]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

        lengths = helper.make_tensor_value_info("sequence_lens", TensorProto.INT32, ["batch"])
        graph = helper.make_graph(
            self.nodes,
            "longshort",
            [*declared(inputs), lengths],
            declared(outputs),
            list(self.constants.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="longshort",
        )
