"""Which session a handle of a frame stream names, and what is said of one that names none."""

from __future__ import annotations

import numpy as np
import pytest
from frame_tables import ToyStream
from longshort_service import errors
from longshort_service.handles import MAX_HANDLES, HandleTable
from tables import TableModel, signature_of

MOVED = errors.SessionMoved("it was opened elsewhere", cause="opened", client_id="other")


def handles_of(*handles: int) -> np.ndarray:
    return np.array(handles, np.uint32)


def test_handles_name_sessions_of_several_models():
    stream, narrow, wide = ToyStream(), TableModel(), TableModel(signature=signature_of(features=3))
    sessions = {3: stream.open(3, narrow), 0: stream.open(0, wide), 2000: stream.open(2000, narrow)}
    assert stream.handles.models == [narrow, wide]
    assert {handle: stream.handles.get(handle) for handle in sessions} == sessions
    assert set(stream.handles) == set(sessions.values())
    found = stream.handles.find(handles_of(2000, 0, 3))
    assert found.is_known.all()
    assert found.rows.tolist() == [sessions[handle].row for handle in (2000, 0, 3)]
    assert found.models.tolist() == [0, 1, 0]
    slots = stream.handles.slots(found, np.array([0, 2]))
    assert slots.rows.tolist() == [sessions[2000].row, sessions[3].row]
    assert slots.generations.tolist() == [sessions[2000].generation, sessions[3].generation]


def test_no_handle_is_open_before_the_first_opening():
    handles: HandleTable[TableModel] = HandleTable()
    found = handles.find(handles_of(0, MAX_HANDLES, 2**32 - 1))
    assert not found.is_known.any()
    assert (found.rows < 0).all()
    assert list(handles) == []
    for handle in (0, MAX_HANDLES, 2**32 - 1):
        assert handles.close(handle) is None
        with pytest.raises(errors.UnknownHandle) as caught:
            handles.get(handle)
        assert caught.value.metadata == {"handle": str(handle)}


def test_greatest_handle_is_taken():
    stream = ToyStream()
    session = stream.open(MAX_HANDLES - 1, TableModel())
    assert stream.handles.get(MAX_HANDLES - 1) is session
    assert stream.handles.find(handles_of(MAX_HANDLES - 1, MAX_HANDLES)).is_known.tolist() == [True, False]


def test_closed_handle_is_unknown_and_can_be_given_again():
    stream, model = ToyStream(), TableModel()
    first = stream.open(1, model)
    assert stream.handles.close(1) is first
    assert stream.handles.close(1) is None
    assert not stream.handles.find(handles_of(1)).is_known.any()
    with pytest.raises(errors.UnknownHandle):
        stream.handles.get(1)
    again = stream.open(1, model)
    assert stream.handles.get(1) is again


def test_lost_handle_says_by_what_until_it_is_closed_or_given_again():
    stream, model = ToyStream(), TableModel()
    for again in (False, True):
        session = stream.open(1, model)
        assert stream.handles.lose(session, MOVED)
        assert list(stream.handles) == []
        found = stream.handles.find(handles_of(1))
        assert found.is_known.all()  # the width of its values is known
        assert found.rows[0] < 0
        with pytest.raises(errors.SessionMoved) as caught:
            stream.handles.get(1)
        assert caught.value is MOVED
        if again:
            assert stream.handles.close(1) is None
            assert isinstance(stream.handles.refusal(1), errors.UnknownHandle)
    stream.open(1, model)
    assert isinstance(stream.handles.refusal(2), errors.UnknownHandle)
    assert stream.handles.find(handles_of(1)).rows[0] >= 0


def test_session_without_a_handle_here_is_lost_without_harm_to_the_others():
    """Its row says what another stream called it, or what nobody calls anything any more."""
    stream, other, model = ToyStream(), ToyStream(), TableModel()
    kept = stream.open(1, model)
    for handle in (0, 1, 3000):
        assert not stream.handles.lose(other.open(handle, model), MOVED)
    assert stream.handles.get(1) is kept
    assert list(stream.handles) == [kept]


def test_repeated_handles_are_found_wherever_they_stand():
    stream, model = ToyStream(), TableModel()
    for handle in range(3):
        stream.open(handle, model)
    for handles, expected in (
        ([0, 1, 2], None),
        ([0, 1, 0, 2, 1, 0], [True, True, True, False, True, True]),
        ([7], None),
    ):
        repeated = stream.handles.repeated(stream.handles.find(handles_of(*handles)))
        assert (None if repeated is None else repeated.tolist()) == expected


@pytest.mark.parametrize("stranger", [5000, 2**32 - 1])
def test_handle_that_is_there_once_is_not_repeated_beside_one_out_of_range(stranger: int):
    stream = ToyStream()
    stream.open(0, TableModel())
    repeated = stream.handles.repeated(stream.handles.find(handles_of(0, stranger)))
    assert repeated is None or not repeated.any()


@pytest.mark.parametrize("num_models", [1, 2])
def test_stored_steps_of_handles_are_those_of_their_sessions(num_models: int):
    stream, models = ToyStream(), [TableModel() for _ in range(num_models)]
    for handle in range(4):
        stream.open(handle, models[handle % num_models], *range(handle))
    every = handles_of(3, 9, 0, 2, 2**32 - 1, 1)
    assert stream.handles.durable_steps(stream.handles.find(every)).tolist() == [0] * 6
    for handle, step in ((3, 2), (2, 1)):
        stream.handles.get(handle).durable_step = step
    assert stream.handles.durable_steps(stream.handles.find(every)).tolist() == [2, 0, 0, 1, 0, 0]
    stream.handles.close(3)
    assert stream.handles.durable_steps(stream.handles.find(handles_of(3))).tolist() == [0]


def test_session_of_a_handle_is_found_where_it_is_open():
    stream = ToyStream()
    session = stream.open(1, TableModel())
    found = [stream.handles.find_session(handle) for handle in (0, 1, 2**32 - 1)]
    assert found == [None, session, None]
