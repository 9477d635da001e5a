"""A frame of the same sessions as the last one comes to the same without being looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from frame_tables import ToyStream, frame, outcomes
from longshort_service.session import Answers
from tables import NOW_S, TableModel, finish, rows_of

if TYPE_CHECKING:
    from longshort_service.frame_work import Frame

NAN = float("nan")


def new_stream(handles: tuple[int, ...] = (0, 1, 2)) -> ToyStream:
    """Return a stream of new sessions in rows that follow one another in the order of the handles."""
    stream, model = ToyStream(), TableModel(num_rows=8)
    for handle in handles:
        stream.open(handle, model)
    return stream


def play_again(stream: ToyStream, sent: Frame) -> object:
    """Run a frame the short way."""
    work = stream.reader.begin_again(sent, NOW_S + 2)
    assert work is not None
    (part,) = work.parts
    assert all(session.is_busy and session.last_used_s == NOW_S + 2 for session in stream.table)
    finish(part.job, part.model)
    return outcomes(work)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=["rows in a span", "rows out of order"])
@pytest.mark.parametrize("is_numbered", [True, False])
def test_frame_of_the_same_sessions_comes_to_the_same_either_way(
    order: tuple[int, ...], *, is_numbered: bool
):
    short, long = new_stream(), new_stream()
    for round_number in range(3):
        steps = [round_number] * 3 if is_numbered else None
        sent = frame(order, [10 * round_number + k for k in range(3)], steps=steps)
        expected = long.play(sent)
        assert (play_again(short, sent) if round_number else short.play(sent)) == expected
    records = [[session.record() for session in stream.table] for stream in (short, long)]
    for one, other in zip(*records, strict=True):
        assert (one.step, one.last_message) == (other.step, other.last_message) == (3, other.last_message)
        assert str(one.last_answer) == str(other.last_answer)


def test_job_of_a_frame_that_came_again_takes_its_rows_as_a_span():
    stream = new_stream()
    stream.play(frame([0, 1, 2], [1, 2, 3]))
    work = stream.reader.begin_again(frame([0, 1, 2], [1, 2, 3]), NOW_S)
    assert work is not None
    assert work.parts[0].job.slots.span == slice(0, 3)


SAME = {"handles": [0, 1, 2], "values": [4, 5, 6], "steps": [1, 1, 1]}


@pytest.mark.parametrize(
    "change",
    [
        {"handles": [0, 2, 1]},
        {"handles": [0, 1], "values": [4, 5], "steps": [1, 1]},
        {"counts": [1, 1, 1]},
        {"steps": [1, 0, 1]},
        {"steps": [1, 2, 1]},
        {"steps": [1, 1]},
        {"values": [4, NAN, 6]},
        {"values": [4, 5]},
    ],
    ids=str,
)
def test_frame_that_differs_is_looked_up(change: dict[str, list[float]]):
    stream = new_stream()
    assert stream.reader.begin_again(frame(**SAME), NOW_S) is None  # there was none before it
    stream.play(frame([0, 1, 2], [1, 2, 3]))
    assert stream.reader.begin_again(frame(**(SAME | change)), NOW_S) is None  # type: ignore[arg-type]
    assert not any(session.is_busy for session in stream.table)
    assert stream.reader.begin_again(frame(**SAME), NOW_S) is not None


def test_unnumbered_frame_is_looked_up_where_a_session_may_miss_values():
    stream = new_stream()
    stream.play(frame([0, 1, 2], [1, 2, 3]))
    session = stream.handles.get(1)
    session.model.columns.is_gapless[session.row] = False
    assert stream.reader.begin_again(frame([0, 1, 2], [4, 5, 6]), NOW_S) is None


def test_frame_of_a_session_that_somebody_else_is_moving_is_looked_up():
    stream = new_stream()
    stream.play(frame([0, 1, 2], [1, 2, 3]))
    stream.handles.get(1).begin(rows_of(9), None, Answers.ALL, NOW_S)
    assert stream.reader.begin_again(frame([0, 1, 2], [4, 5, 6]), NOW_S) is None


def test_frame_after_a_handle_has_changed_hands_is_looked_up():
    stream = new_stream()
    stream.play(frame([0, 1, 2], [1, 2, 3]))
    stream.open(7, stream.handles.get(0).model)
    assert stream.reader.begin_again(frame(**SAME), NOW_S) is None


def test_frame_of_several_steps_is_not_remembered():
    stream = new_stream()
    stream.play(frame([0, 1, 2], np.arange(6).tolist(), counts=[2, 2, 2]))
    assert stream.reader.begin_again(frame([0, 1, 2], [1, 2, 3], steps=[2, 2, 2]), NOW_S) is None
