"""The truth: a model file stepped by onnxruntime alone, one value at a time, one session at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from longshort_service.signature_json import METADATA_KEY, from_json

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class OracleModel:
    """One model file in onnxruntime, without any code of the service but the reading of its signature."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.signature = from_json(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])

    def run_one(
        self, row: NDArray[np.float32], states: list[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Run one row `[features]`; return its answer `[outputs]` and the new states."""
        feeds = {state.input: array for state, array in zip(self.signature.states, states, strict=True)}
        feeds[self.signature.input] = row[None, None, :]  # [1, 1, features] f32
        if self.signature.sequence_lens is not None:
            feeds[self.signature.sequence_lens] = np.ones(1, np.int32)
        names = [self.signature.output, *(state.output for state in self.signature.states)]
        answer, *new_states = self._session.run(names, feeds)
        return answer[0, 0], new_states

    def run_series(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a series `[time, features]` at once: the bits of one row after the other, in a tenth of the time."""
        feeds = {
            state.input: array
            for state, array in zip(self.signature.states, self.initial_states(), strict=True)
        }
        feeds[self.signature.input] = rows[None]  # [1, time, features] f32
        if self.signature.sequence_lens is not None:
            feeds[self.signature.sequence_lens] = np.full(1, len(rows), np.int32)
        (answers,) = self._session.run([self.signature.output], feeds)
        return answers[0]

    def initial_states(self) -> list[NDArray[np.float32]]:
        """Return the states of a session at step 0, `[..., 1, ...]`."""
        return [
            np.full([1 if size == -1 else size for size in state.shape], state.initial, np.float32)
            for state in self.signature.states
        ]


class OracleSession:
    """What a session must say. Missing values repeat the last one."""

    def __init__(self, model: OracleModel) -> None:
        self.model = model
        self.states = model.initial_states()
        self.step = 0
        self.last_row: NDArray[np.float32] | None = None
        self.last_answer: NDArray[np.float32] | None = None

    def fork(self) -> OracleSession:
        """Return a copy that goes its own way: states are never changed in place."""
        copy = OracleSession(self.model)
        copy.__dict__.update(self.__dict__)
        return copy

    def feed(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Step through rows `[time, features]`; return answers `[time, outputs]`."""
        answers = []
        for given in rows:
            row = given if self.last_row is None else np.where(np.isnan(given), self.last_row, given)
            self.last_answer, self.states = self.model.run_one(row, self.states)
            self.last_row = row
            self.step += 1
            answers.append(self.last_answer)
        return np.array(answers)

    def forecast(self, horizon: int) -> NDArray[np.float32]:
        """Return predictions `[horizon, outputs]`; this session does not move."""
        sources, targets = self.model.signature.feedback_words()
        assert self.last_answer is not None
        answers, copy = [self.last_answer], self.fork()
        while len(answers) < horizon:
            row = np.zeros((1, len(self.model.signature.features)), np.float32)
            row[0, targets] = answers[-1][sources]
            answers.append(copy.feed(row)[0])
        return np.array(answers)

    def memory(self) -> list[NDArray[np.float32]]:
        """Return the states without their batch axis."""
        return [
            array.take(0, axis=state.batch_axis)
            for state, array in zip(self.model.signature.states, self.states, strict=True)
        ]
