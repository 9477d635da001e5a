"""What a stream may say next, and the step table: every row of it has a test named after it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort_service import errors
from longshort_service.protocol import (
    TRANSITIONS,
    MessageIdentity,
    StreamEvent,
    StreamProtocol,
    StreamState,
    Verdict,
    ends_stream,
    judge,
    judge_unnumbered,
    unstored,
)

LAST = MessageIdentity(first_step=7, num_steps=3, crc=99)
POSITION = 10  # where LAST has left the session


def at(state: StreamState) -> StreamProtocol:
    protocol = StreamProtocol()
    protocol.state = state
    return protocol


# -- the step table -----


def test_message_whose_first_step_equals_the_sessions_step_is_applied():
    assert judge(POSITION, LAST, MessageIdentity(POSITION, 5, 1)) is Verdict.APPLY
    assert judge(0, None, MessageIdentity(0, 1, 1)) is Verdict.APPLY


def test_last_applied_message_again_gets_the_stored_answer():
    assert judge(POSITION, LAST, MessageIdentity(7, 3, 99)) is Verdict.REPLAY


def test_same_place_with_other_values_is_values_differ():
    with pytest.raises(errors.ValuesDiffer) as caught:
        judge(POSITION, LAST, MessageIdentity(7, 3, 98))
    assert caught.value.metadata == {"expected_step": "10"}


@pytest.mark.parametrize(
    "message",
    [
        MessageIdentity(7, 4, 99),  # begins with the last message and goes on
        MessageIdentity(7, 2, 99),  # the last message's beginning
        MessageIdentity(8, 3, 99),  # straddles the session's step
        MessageIdentity(8, 2, 99),  # the last message's end
        MessageIdentity(4, 3, 99),  # before the last message
        MessageIdentity(0, 10, 99),
    ],
)
def test_anything_else_below_the_sessions_step_is_step_conflict(message: MessageIdentity):
    with pytest.raises(errors.StepConflict) as caught:
        judge(POSITION, LAST, message)
    assert caught.value.metadata == {"expected_step": "10"}


def test_step_below_a_session_that_has_no_last_message_is_step_conflict():
    with pytest.raises(errors.StepConflict):
        judge(POSITION, None, LAST)  # a fork: it has its source's step, not its last message


def test_message_above_the_sessions_step_is_step_gap():
    with pytest.raises(errors.StepGap) as caught:
        judge(POSITION, LAST, MessageIdentity(11, 1, 1))
    assert caught.value.metadata == {"expected_step": "10"}


def test_message_without_a_step_is_applied_where_nothing_is_missing():
    assert judge_unnumbered(POSITION, gapless=True) is Verdict.APPLY


def test_message_without_a_step_is_step_required_where_something_may_be_missing():
    with pytest.raises(errors.StepRequired) as caught:
        judge_unnumbered(POSITION, gapless=False)
    assert caught.value.metadata == {"expected_step": "10"}


def test_every_refusal_of_a_step_is_one_family():
    assert set(errors.StepRefused.__subclasses__()) == {
        errors.StepConflict,
        errors.StepGap,
        errors.ValuesDiffer,
        errors.StepRequired,
    }


@given(
    position=st.integers(0, 50),
    last_count=st.integers(1, 50),
    first_step=st.integers(0, 60),
    count=st.integers(1, 60),
    crc=st.sampled_from([1, 2]),
)
def test_judgement_is_total_and_applies_only_at_the_sessions_step(
    position: int, last_count: int, first_step: int, count: int, crc: int
):
    last = MessageIdentity(position - last_count, last_count, 1) if last_count <= position else None
    message = MessageIdentity(first_step, count, crc)
    try:
        verdict = judge(position, last, message)
    except errors.StepGap:
        assert first_step > position
    except errors.ValuesDiffer:
        assert last is not None
        assert (first_step, count) == (last.first_step, last.num_steps)
        assert crc != last.crc
    except errors.StepConflict:
        assert first_step < position
        assert last is None or (first_step, count) != (last.first_step, last.num_steps)
    else:
        assert first_step == position if verdict is Verdict.APPLY else message == last


# -- the stream -----


def test_stream_walks_from_open_over_values_forecast_and_flush():
    protocol = StreamProtocol()
    for event in (
        StreamEvent.OPEN,
        StreamEvent.ANSWERED,
        *itertools.chain.from_iterable(
            (asked, StreamEvent.ANSWERED)
            for asked in (StreamEvent.VALUES, StreamEvent.FORECAST, StreamEvent.FLUSH)
        ),
    ):
        protocol.handle(event)
    assert protocol.state is StreamState.READY


@pytest.mark.parametrize("state", StreamState)
@pytest.mark.parametrize("event", StreamEvent)
def test_event_out_of_place_raises_and_changes_nothing(state: StreamState, event: StreamEvent):
    protocol = at(state)
    if event in TRANSITIONS[state]:
        protocol.handle(event)
        assert protocol.state is TRANSITIONS[state][event]
    else:
        with pytest.raises((errors.NotOpen, errors.InvalidMessage)):
            protocol.handle(event)
        assert protocol.state is state


@pytest.mark.parametrize("event", [StreamEvent.VALUES, StreamEvent.FORECAST, StreamEvent.FLUSH])
def test_anything_before_open_is_not_open(event: StreamEvent):
    with pytest.raises(errors.NotOpen):
        StreamProtocol().handle(event)


@pytest.mark.parametrize("state", [StreamState.OPENING, StreamState.READY, StreamState.ANSWERING])
def test_second_open_is_an_invalid_message(state: StreamState):
    with pytest.raises(errors.InvalidMessage, match="open already"):
        at(state).handle(StreamEvent.OPEN)


def test_session_has_at_most_one_unanswered_message_of_a_stream():
    with pytest.raises(errors.InvalidMessage, match="out of place"):
        at(StreamState.ANSWERING).handle(StreamEvent.VALUES)


# -- which errors end a stream -----


@pytest.mark.parametrize("state", [StreamState.AWAITING_OPEN, StreamState.OPENING, StreamState.READY])
def test_error_outside_of_an_answer_ends_the_stream(state: StreamState):
    assert ends_stream(errors.WrongShape("x"), state, numbered=True)


@pytest.mark.parametrize(
    "error_type",
    [errors.InvalidMessage, errors.MalformedMessage, errors.SessionMoved, errors.Draining, errors.EngineDead,
     errors.InternalError, errors.NotOpen],
)  # fmt: skip
def test_some_errors_end_a_stream_whatever_caused_them(error_type: type[errors.ServiceError]):
    assert ends_stream(error_type("x"), StreamState.ANSWERING, numbered=True)


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize(
    "error_type",
    [errors.WrongShape, errors.ValueMissing, errors.NonFiniteResult, errors.MessageTooLarge,
     *errors.StepRefused.__subclasses__()],
)  # fmt: skip
def test_callers_fault_is_answered_in_band(error_type: type[errors.ServiceError], *, numbered: bool):
    assert not ends_stream(error_type("x"), StreamState.ANSWERING, numbered=numbered)


def test_only_numbered_values_that_wait_for_the_store_in_vain_may_come_again():
    away, moved = errors.StoreUnavailable("x"), errors.SessionMoved("x")
    assert unstored(away, numbered=True) is away
    assert isinstance(unstored(away, numbered=False), errors.TakenUnstored)
    assert unstored(moved, numbered=False) is moved


@pytest.mark.parametrize("error_type", [errors.QueueFull, errors.SessionsExhausted])
def test_load_is_answered_in_band_for_numbered_values_and_ends_an_unnumbered_stream(
    error_type: type[errors.ServiceError],
):
    assert not ends_stream(error_type("x"), StreamState.ANSWERING, numbered=True)
    assert ends_stream(error_type("x"), StreamState.ANSWERING, numbered=False)
