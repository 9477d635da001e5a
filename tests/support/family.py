"""A family of small models of any dtype, rank, axes and number of states, whose answers NumPy gives exactly.

Each adds up what it is given: state k begins at k and grows by k + 1 times the values of each step, whose shape it has.
The answer to a step is its values and the states before it. Values are small whole numbers, so that every dtype holds
all of it exactly.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from longshort_service.ports import Port
from longshort_service.signature import Channel, MissingValue, Signature, State
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SIZES = (2, 3, 2)  # of the axes of one step's values, outermost first


@dataclass(frozen=True)
class Member:
    """One model of the family."""

    dtype: str
    rank: int  # of one step's values
    num_states: int
    batch_axis: int = 0
    time_axis: int | None = 1
    state_axis: int = 0  # where the states have their batch, as far as their rank allows

    @property
    def name(self) -> str:
        time = "no" if self.time_axis is None else str(self.time_axis)
        return (
            f"{self.dtype}-rank{self.rank}-states{self.num_states}"
            f"-batch{self.batch_axis}-time{time}-state{self.state_axis}"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one step's values."""
        return SIZES[: self.rank]

    def port(self, name: str) -> Port:
        return Port(name, self.shape, self.dtype, self.batch_axis, self.time_axis)

    def signature(self) -> Signature:
        count = int(np.prod(self.shape))
        axis = min(self.state_axis, self.rank)
        shape = (*self.shape[:axis], -1, *self.shape[axis:])
        return Signature(
            name=self.name,
            features=tuple(Channel(f"x{k}") for k in range(count)),
            outputs=tuple(Channel(f"y{k}") for k in range(count)),
            states=tuple(
                State(f"state{k}", f"state{k}_out", shape, axis, initial=float(k), dtype=self.dtype)
                for k in range(self.num_states)
            ),
            missing=MissingValue.REJECT,
            inputs=(self.port("x"),),
            answers=(self.port("y"),),
            fingerprint=hashlib.sha256(self.name.encode()).hexdigest(),
        )

    def answer(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the answers `[time, *shape]` to all values of a session `[time, *shape]`."""
        before = np.cumsum(values, axis=0, dtype=values.dtype) - values
        return values + sum((k + (k + 1) * before for k in range(self.num_states)), np.zeros_like(values))

    def write(self, path: Path, *, is_signed: bool = True) -> Path:
        """Write it to a file."""
        signature = self.signature()
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        dims: list[Any] = list(self.shape)
        axes = {self.batch_axis: "batch"}
        if self.time_axis is not None:
            axes[self.time_axis] = "time"
        for axis in sorted(axes):
            dims.insert(axis, axes[axis])
        nodes, constants = self._nodes(signature)
        states = [
            (state.input, state.output, ["batch" if size == -1 else size for size in state.shape])
            for state in signature.states
        ]
        graph = helper.make_graph(
            nodes,
            "family",
            [
                helper.make_tensor_value_info("x", kind, dims),
                *(helper.make_tensor_value_info(given, kind, shape) for given, _, shape in states),
            ],
            [
                helper.make_tensor_value_info("y", kind, dims),
                *(helper.make_tensor_value_info(gone, kind, shape) for _, gone, shape in states),
            ],
            [numpy_helper.from_array(array, key) for key, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if is_signed:
            helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        return path

    def _nodes(self, signature: Signature) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
        """Return the nodes: batch and time go to the front, and back in the end."""
        has_time = self.time_axis is not None
        lead = [self.batch_axis, *([self.time_axis] if self.time_axis is not None else [])]
        rank = self.rank + len(lead)
        forth = [*lead, *(axis for axis in range(rank) if axis not in lead)]
        back = np.argsort(forth).tolist()
        wide, narrow = (
            (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in ("float32", "float16"))
            if self.dtype == "float16"
            else (None, None)
        )
        work = "float32" if wide else self.dtype
        constants: dict[str, NDArray[Any]] = {
            "time": np.array(1, np.int64),
            "times": np.array([1], np.int64),
            **{f"factor{k}": np.array(k + 1, work) for k in range(self.num_states)},
        }
        nodes = []

        def add(op: str, inputs: list[str], output: str, **attributes: Any) -> None:
            nodes.append(helper.make_node(op, inputs, [output], **attributes))

        def cast(name: str, target: str, kind: int | None) -> None:
            add("Identity", [name], target) if kind is None else add("Cast", [name], target, to=kind)

        cast("x", "x_work", wide)
        add("Transpose", ["x_work"], "rows", perm=forth)
        if has_time:
            add("CumSum", ["rows", "time"], "before", exclusive=1)
            add("ReduceSum", ["rows", "times"], "sum", keepdims=0)
        else:
            add("Identity", ["rows"], "sum")
        total = "rows"
        for k, state in enumerate(signature.states):
            axis = state.batch_axis
            to_front = [axis, *(a for a in range(self.rank + 1) if a != axis)]
            cast(state.input, f"given{k}", wide)
            add("Transpose", [f"given{k}"], f"front{k}", perm=to_front)
            now = f"front{k}"
            if has_time:
                add("Unsqueeze", [f"front{k}", "times"], f"lifted{k}")
                add("Mul", ["before", f"factor{k}"], f"grown_before{k}")
                add("Add", [f"lifted{k}", f"grown_before{k}"], f"now{k}")
                now = f"now{k}"
            add("Add", [total, now], f"total{k}")
            total = f"total{k}"
            add("Mul", ["sum", f"factor{k}"], f"grown{k}")
            add("Add", [f"front{k}", f"grown{k}"], f"moved{k}")
            add("Transpose", [f"moved{k}"], f"back{k}", perm=np.argsort(to_front).tolist())
            cast(f"back{k}", state.output, narrow)
        add("Transpose", [total], "y_work", perm=back)
        cast("y_work", "y", narrow)
        used = {name for node in nodes for name in node.input}
        return nodes, {key: array for key, array in constants.items() if key in used}


def members() -> Iterator[Member]:
    """Yield the whole family: every dtype, rank and pair of axes, with numbers and axes of states in turn."""
    turns = itertools.cycle(itertools.product((0, 1, 3), (0, 1, 2)))
    for dtype in ("float16", "float32", "float64", "int32", "int64"):
        for rank in range(4):
            for num_axes in (1, 2):
                for axes in itertools.permutations(range(rank + num_axes), num_axes):
                    num_states, state_axis = next(turns)
                    time_axis = axes[1] if num_axes == 2 else None
                    yield Member(dtype, rank, num_states, axes[0], time_axis, state_axis)
