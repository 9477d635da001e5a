"""Plans of many sessions taken through one frame stream, and what each must be answered."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from frame_wire import FORECAST_PART, VALUES_PART, Frames, opening, refusals_of
from longshort.v1 import sequence_pb2
from schedules import MOVES
from wire import OPEN

if TYPE_CHECKING:
    from oracle import OracleModel
    from schedules import Planned
    from wire import Caller

# What a frame stream does of what may be planned; the rest is for calls of other kinds.
KINDS = (*MOVES, "replay", "refusal", "forecast", "half_close", "cancel", "supersede")
_WAIT = {"SESSIONS_EXHAUSTED", "QUEUE_FULL"}

_numbers = itertools.count()


@dataclass
class _Follower:
    """One session, under whichever handle it has now."""

    model: str
    num_outputs: int
    left: list[Planned]
    session_id: str
    handle: int = -1
    step: int = 0


class FrameWalk:
    """One frame stream on its way through the plans of its sessions, in frames of random sessions."""

    def __init__(
        self, caller: Caller, seed: int, plans: list[tuple[str, OracleModel, list[Planned]]]
    ) -> None:
        self._caller = caller
        self._random = random.Random(seed)
        self._handles = itertools.count(self._random.choice([0, 7, 4000]))
        self._followers = [
            _Follower(name, len(model.signature.outputs), list(planned), f"frame-walk-{next(_numbers)}")
            for name, model, planned in plans
        ]

    async def run(self) -> None:
        """Do everything that is planned, that of each session in order."""
        frames = Frames(self._caller)
        chosen: list[_Follower] = []
        while waiting := [each for each in self._followers if each.left]:
            if not chosen or not all(each.left for each in chosen) or self._random.random() < 0.3:
                chosen = self._random.sample(waiting, self._random.randint(1, len(waiting)))
            for each in chosen:
                while each.handle < 0 and each.left and each.left[0].act.kind == "supersede":
                    each.left.pop(0)  # there is nobody to take it from
                if each.left and each.left[0].act.kind == "supersede":
                    await self._take_away(each)
            if chosen := [each for each in chosen if each.left]:
                await self._frame(frames, chosen)
        if self._random.random() < 0.5:
            await frames.half_close()
        else:
            frames.call.cancel()

    async def _take_away(self, each: _Follower) -> None:
        """Open a session elsewhere."""
        stream, opened = await self._caller.open(each.session_id, "", mode=OPEN)
        assert opened.step == each.step
        await stream.half_close()

    async def _frame(self, frames: Frames, chosen: list[_Follower]) -> None:
        """Send the next of each session that fits into one frame: those whose answers are of one kind."""
        answers = chosen[0].left[0].act.answers
        rows, forecasts, request = [], [], sequence_pb2.StreamFramesRequest(answers=answers)
        for each in chosen:
            act = each.left[0].act
            if each.handle < 0 or act.kind in ("half_close", "cancel"):
                self._reopen(request, each)
            if act.kind in ("half_close", "cancel"):
                each.left.pop(0)
            elif act.kind == "forecast":
                forecasts.append(each)
                request.forecasts.add(handle=each.handle, horizon=act.count)
            elif act.answers == answers:
                rows.append(each)
        is_numbered = self._random.random() < 0.7 or any(each.left[0].act.kind not in MOVES for each in rows)
        has_counts = any(len(each.left[0].rows) != 1 for each in rows) or self._random.random() < 0.2
        for each in rows:
            entry = each.left[0]
            request.handles.append(each.handle)
            request.values.extend(entry.rows.ravel().tolist())
            if has_counts:
                request.counts.append(len(entry.rows))
            if is_numbered:
                request.steps.append(entry.step + (entry.act.kind == "refusal"))
        await frames.send(request.SerializeToString())
        response = await frames.receive()
        assert [each.handle for each in response.opened] == [each.handle for each in request.opens]
        self._check_rows(response, rows)
        self._check_forecasts(response, forecasts)
        if any(error.error.reason in _WAIT for error in response.errors):
            await asyncio.sleep(0.005)

    def _reopen(self, request: sequence_pb2.StreamFramesRequest, each: _Follower) -> None:
        """Give a session another handle; the former is given back, or loses it."""
        if each.handle >= 0 and self._random.random() < 0.5:
            request.closes.append(each.handle)
        each.handle = next(self._handles)
        request.opens.append(opening(each.handle, each.session_id, each.model))

    def _check_rows(self, response: sequence_pb2.StreamFramesResponse, rows: list[_Follower]) -> None:
        answered = self._answered(response, rows)
        refused = refusals_of(response, VALUES_PART)
        assert list(response.handles) == [each.handle for each in rows if each.handle in answered]
        for each in rows:
            entry = each.left[0]
            if each.handle in refused:
                refusal = refused[each.handle]
                if entry.act.kind == "supersede":
                    assert refusal.reason == "SESSION_MOVED"
                    each.handle = -1
                elif refusal.reason in _WAIT:
                    continue
                else:
                    assert (entry.act.kind, refusal.reason) == ("refusal", "STEP_GAP")
                    assert refusal.metadata == {"expected_step": str(entry.step)}
            else:
                step, values, is_replay = answered[each.handle]
                assert entry.expected is not None, (entry.act, response)
                assert values.tobytes() == entry.expected.tobytes(), (each.model, entry.act)
                assert step == entry.step + len(entry.rows)
                assert is_replay is (entry.act.kind == "replay")
                each.step = step
            each.left.pop(0)

    @staticmethod
    def _answered(
        response: sequence_pb2.StreamFramesResponse, rows: list[_Follower]
    ) -> dict[int, tuple[int, Any, bool]]:
        """Return step, values and whether it was a replay of each answered row, by handle."""
        widths = {each.handle: each.num_outputs for each in rows}
        counts = list(response.counts) or [1] * len(response.handles)
        values, begin = np.array(response.values, np.float32), 0
        answered = {}
        for handle, count, step in zip(response.handles, counts, response.steps, strict=True):
            end = begin + count * widths[handle]
            answered[handle] = (step, values[begin:end], handle in response.replayed)
            begin = end
        assert begin == len(values)
        return answered

    @staticmethod
    def _check_forecasts(response: sequence_pb2.StreamFramesResponse, forecasts: list[_Follower]) -> None:
        answered = {each.handle: each for each in response.forecasts}
        refused = refusals_of(response, FORECAST_PART)
        for each in forecasts:
            entry = each.left[0]
            if each.handle in refused:
                assert refused[each.handle].reason in _WAIT
                continue
            answer = answered[each.handle]
            assert entry.expected is not None
            assert answer.step == entry.step
            assert np.array(answer.values, np.float32).tobytes() == entry.expected.tobytes()
            each.left.pop(0)
