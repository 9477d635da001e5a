"""The core of a gateway against a server of dictionaries: what each failure means, one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frame_play import Play, Promise
from frame_server import BEHIND, SYNC, UNSTORED, FrameServer, Refusal, alone
from longshort import errors, status
from longshort.errors import Code
from longshort.gateway.actions import CONNECT, Idle
from longshort.gateway.filling import MAX_FRAME_STEPS, MAX_LONG_STEPS, MAX_ROW_STEPS
from longshort.gateway.group import Group
from longshort.v1 import sequence_pb2, types_pb2


def ended(code: Code, reason: str = "") -> errors.LongshortError:
    return status.make(code, "the stream has ended", reason, {}, None)


def test_first_call_opens_all_that_waits_in_one_frame_and_sends_the_values_in_the_next():
    play = Play()
    calls = [play.step(key, 1.0) for key in "abc"]
    play.run()
    opens, values = play.server.requests
    assert [item.open.session.id for item in opens.opens] == ["a", "b", "c"]
    assert (list(values.handles), list(values.counts), list(values.steps)) == ([0, 1, 2], [], [0, 0, 0])
    assert all(np.array_equal(call.outcome, [1, -1]) for call in calls)


def test_what_waits_while_a_frame_is_in_flight_goes_with_the_next_one():
    play = Play()
    play.steps("abcd", [0, 0, 0, 0])
    play.run()
    play.step("a", 1.0)
    play.send()
    calls = [play.step(key, 2.0) for key in "abc"]
    waiter, _ = play.steps("dc", [3, 3])
    play.run()
    assert [len(request.handles) for request in play.server.requests[-3:]] == [1, 4, 1]
    assert all(isinstance(call.outcome, np.ndarray) for call in [*calls, waiter])


def test_array_call_of_free_sessions_is_one_frame_without_a_copy_of_the_rows():
    play = Play()
    play.steps("abc", [[[1], [2]], [[3], [4]], [[5], [6]]])
    play.run()
    waiter, _ = play.steps("abc", [[[1], [2]], [[3], [4]], [[5], [6]]])
    play.run()
    request = play.server.requests[-1]
    assert (list(request.counts), list(request.values)) == ([2, 2, 2], [1, 2, 3, 4, 5, 6])
    assert waiter.outcome.shape == (3, 2, 2)
    waiter.outcome[0] = 0  # its own memory, to be written


def test_frame_has_a_limit_of_steps_and_rows_are_cut():
    play = Play(FrameServer(max_steps=10_000))
    waiter, _ = play.steps(["a"], np.zeros((1, MAX_ROW_STEPS + 1, 1)))
    play.run()
    ids = [str(number) for number in range(MAX_FRAME_STEPS // MAX_ROW_STEPS + 1)]
    play.steps(ids, np.zeros((len(ids), 1)))
    play.run()
    play.server.requests.clear()
    many, _ = play.steps(ids, np.zeros((len(ids), 300, 1)))
    play.run()
    assert waiter.outcome.shape == (1, MAX_ROW_STEPS + 1, 2)
    assert many.outcome.shape == (len(ids), 300, 2)
    sums = [sum(request.counts) or len(request.handles) for request in play.server.requests]
    assert max(sums) <= MAX_FRAME_STEPS
    assert max(max(request.counts) for request in play.server.requests) <= MAX_ROW_STEPS


def test_live_row_shares_a_small_frame_with_long_ones():
    play = Play(FrameServer(max_steps=10_000))
    ids = [str(number) for number in range(100)]
    play.steps([*ids, "live"], np.zeros(101))
    play.run()
    play.server.requests.clear()
    waiter, _ = play.steps(ids, np.zeros((100, 300, 1)))
    other, _ = play.steps(["new"], np.zeros((1, 300, 1)))
    while not waiter.done():
        live = play.step("live", 1.0)
        play.send()
        play.move()
        assert live.done(), "it goes with the next frame, whatever waits"
    play.run()
    assert isinstance(other.outcome, np.ndarray)
    sums = [sum(request.counts) or len(request.handles) for request in play.server.requests]
    assert max(sums) <= MAX_LONG_STEPS + 1


def test_long_parts_that_do_not_fit_together_take_turns():
    play = Play(FrameServer(max_steps=10_000))
    ids = [str(number) for number in range(5000)]
    play.steps(ids, np.zeros(5000))
    play.run()
    play.server.requests.clear()
    waiters = [play.steps(some, np.zeros((2500, 8, 1)))[0] for some in (ids[:2500], ids[2500:])]
    play.run()
    assert all(waiter.outcome.shape == (2500, 8, 2) for waiter in waiters)
    assert {len(request.handles) for request in play.server.requests} <= {2500, 5000}, "never in shreds"


def test_part_with_more_rows_than_a_frame_holds_goes_in_several(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("longshort.gateway.filling.MAX_FRAME_STEPS", 4)
    play = Play()
    ids = [str(number) for number in range(10)]
    play.steps(ids, np.ones(10))
    play.run()
    waiter, _ = play.steps(ids, np.ones(10))
    play.run()
    assert [len(request.handles) for request in play.server.requests[-3:]] == [4, 4, 2]
    np.testing.assert_array_equal(waiter.outcome, np.tile(alone([1, 1])[1], (10, 1)))


def test_lost_answer_is_given_again_from_the_stored_one():
    play = Play()
    calls = [play.step(key, 1.0) for key in "ab"]
    play.run()
    calls = [play.step(key, 2.0) for key in "ab"]
    play.send()
    play.cut()
    play.run()
    assert play.num_connects == 2
    opens = [item.open.mode for request in play.server.requests[3:] for item in request.opens]
    assert opens == [types_pb2.OPEN_MODE_OPEN] * 2
    for call in calls:
        np.testing.assert_array_equal(call.outcome, alone([1, 2])[1])
    assert [len(session.history) for session in play.server.sessions.values()] == [2, 2]


def test_idle_sessions_are_reopened_when_they_are_used_again():
    play = Play()
    play.steps("abc", [1, 2, 3])
    play.run()
    play.cut()
    play.step("b", 1.0)
    play.run()
    assert [item.open.session.id for item in play.server.requests[2].opens] == ["b"]


def test_pauses_between_tries_grow_and_neighbours_do_not_wait_for_an_opening_that_is_put_off():
    play = Play()
    call = play.step("a", 1.0)
    waits = []
    for _ in range(4):
        play.move()
        play.cut()
        action = play.move()
        assert isinstance(action, Idle)
        assert action.until_s is not None
        waits.append(action.until_s - play.now_s)
        play.now_s = action.until_s
    assert waits == sorted(waits)
    play.run()
    assert isinstance(call.outcome, np.ndarray)

    tries = iter([Refusal(Code.UNAVAILABLE, "DRAINING", delay_s=5.0)])

    def refuse(key: str) -> None:
        if key == "slow" and (refusal := next(tries, None)):
            raise refusal

    play.server.refuse_open = refuse
    slow, quick = play.step("slow", 1.0), play.step("quick", 1.0)
    before_s = play.now_s
    while not quick.done():
        play.move()
    assert play.now_s == before_s
    play.run()
    assert isinstance(slow.outcome, np.ndarray)
    assert play.now_s >= before_s + 5


@pytest.mark.parametrize(
    ("act", "kind", "reason"),
    [
        (lambda server: server.take("b", "someone"), errors.SessionTaken, "SESSION_MOVED"),
        (lambda server: server.sessions.pop("b"), errors.SessionLost, "SESSION_MOVED"),
    ],
)
def test_session_that_is_gone_ends_alone(act: Any, kind: type, reason: str):
    play = Play()
    play.steps("abc", [1, 2, 3])
    play.run()
    act(play.server)
    waiter, _ = play.steps("abc", [1, 2, 3])
    behind = play.step("b", 1.0)
    play.run()
    failure = waiter.outcome.errors
    assert [(index, type(error), error.reason) for index, error in failure.items()] == [(1, kind, reason)]
    assert isinstance(behind.outcome, kind)
    assert isinstance(play.step("b", 1.0).outcome, kind)
    assert isinstance(play.retry("b").outcome, kind)
    assert play.close_session("b").outcome is None
    assert play.position("a") == 2


@pytest.mark.parametrize(
    ("act", "kind", "reason"),
    [
        (lambda server: server.reset("b"), errors.SessionReplaced, "SESSION_REPLACED"),
        (lambda server: server.sessions.pop("b"), errors.SessionLost, "SESSION_NOT_FOUND"),
        (lambda server: server.sessions["b"].history.append([1.0]), errors.SessionLost, "OTHER_WRITER"),
        (lambda server: server.sessions["b"].history.clear(), errors.SessionLost, "STEPS_LOST"),
    ],
)
def test_reopened_session_that_does_not_fit_ends_alone(act: Any, kind: type, reason: str):
    play = Play()
    play.steps("abc", [1, 2, 3])
    play.run()
    act(play.server)
    play.cut()
    waiter, _ = play.steps("abc", [1, 2, 3])
    play.run()
    failure = waiter.outcome.errors
    assert [(index, type(error), error.reason) for index, error in failure.items()] == [(1, kind, reason)]


def test_session_moved_by_this_client_itself_is_opened_again():
    play = Play()
    play.step("a", 1.0)
    play.run()
    play.server.take("a", play.client_id)
    call = play.step("a", 2.0)
    play.run()
    np.testing.assert_array_equal(call.outcome, alone([1, 2])[1])


def test_creation_whose_answer_was_lost_is_our_own():
    play = Play(mode="create")
    call = play.step("a", 1.0)
    play.send()
    play.cut()
    play.run()
    assert isinstance(call.outcome, np.ndarray)
    other = Play(play.server, mode="create")
    refused = other.step("a", 1.0)
    other.run()
    assert isinstance(refused.outcome, errors.SessionExists)


@pytest.mark.parametrize("mode", ["create", "open_or_create"])
def test_session_stays_new_when_the_answer_to_its_creation_is_lost(mode: str):
    play = Play(mode=mode)
    call = play.step("a", 1.0)
    play.send()
    play.cut()
    play.run()
    assert isinstance(call.outcome, np.ndarray)
    play.cut()
    play.step("a", 1.0)
    play.run()
    assert play.core.table.opened_slot("a")[1].created


def test_session_that_was_to_be_there_is_not_new_when_the_answer_to_its_opening_is_lost():
    before = Play()
    before.forecast("a", 1)
    before.run()
    play = Play(before.server, mode="open")
    play.forecast("a", 1)
    play.send()
    play.cut()
    play.run()
    assert not play.core.table.opened_slot("a")[1].created


def test_session_of_another_shape_than_the_first_is_told_so():
    play = Play()
    play.step("a", 1.0)
    play.run()
    play.server.num_features = 2
    call = play.step("b", 1.0)
    play.run()
    assert isinstance(call.outcome, errors.ModelMismatch)
    assert call.outcome.reason == "OTHER_SHAPE"


def test_width_is_told_once_the_model_is_known():
    play = Play()
    wrong, right = play.step("a", [1.0, 2.0]), play.step("b", 1.0)
    waiter, _ = play.steps("cd", [1, 2])
    play.run()
    assert wrong.outcome.reason == "WRONG_SHAPE"
    assert isinstance(right.outcome, np.ndarray)
    assert isinstance(waiter.outcome, np.ndarray)
    assert play.step("a", [1.0, 2.0]).outcome.reason == "WRONG_SHAPE"


def test_refusal_of_a_later_piece_has_the_answers_of_the_earlier_ones():
    play = Play()
    values = np.arange(6.0)
    values[5] = np.nan
    waiter, _ = play.steps("ab", np.stack([values, np.arange(6.0)])[:, :, None])
    play.run()
    error = waiter.outcome.errors[0]
    np.testing.assert_array_equal(error.partial, alone(values[:4]))
    assert error.metadata["row"] == "5"
    assert np.isnan(waiter.outcome.answers[0]).all()
    assert play.position("a") == 4


def test_stream_that_is_refused_fails_its_callers_and_the_next_call_tries_anew():
    play = Play()
    calls = [play.step("a", 1.0), play.forecast("b", 3)[0], play.close_session("c"), play.close_session("a")]
    play.move()
    play.cut(ended(Code.UNIMPLEMENTED, "NOT_BUILT"))
    assert [type(call.outcome).__name__ for call in calls] == [
        "Unimplemented",
        "RowsFailed",
        "NoneType",
        "Unimplemented",
    ]
    again = play.step("a", 1.0)
    play.run()
    assert isinstance(again.outcome, np.ndarray)


def test_frame_that_the_server_refuses_has_moved_nothing():
    play = Play()
    play.steps("ab", [1, 2])
    play.run()
    waiter, _ = play.steps("ab", [3, 4])
    single = play.step("a", 5.0)
    play.core.next_action(0.0)
    play.cut(ended(Code.INVALID_ARGUMENT, "INVALID_MESSAGE"))
    assert {type(error) for error in waiter.outcome.errors.values()} == {errors.InvalidRequest}
    assert isinstance(single.outcome, errors.InvalidRequest)
    assert not play.core.turns.doubts


def test_row_that_the_server_has_taken_is_in_doubt_where_its_answer_is_refused():
    play = Play()
    play.step("a", 1.0)
    play.run()
    call = play.step("a", 2.0)
    play.send()
    play.cut()
    play.send()  # the opening, whose answer says that the row was taken
    play.send()  # the row again
    play.cut(ended(Code.PERMISSION_DENIED))
    assert isinstance(call.outcome, errors.AccessDenied)
    assert isinstance(play.step("a", 3.0).outcome, errors.StepInDoubt)
    again = play.retry("a")
    play.run()
    np.testing.assert_array_equal(again.outcome, alone([1, 2])[1])


def test_retry_after_the_end_is_told_so():
    play = Play()
    play.step("a", 1.0)
    play.run()
    call = play.step("a", 2.0)
    play.send()
    play.cancel(call)
    play.cut()
    play.core.close(errors.SessionClosed("closed", reason="CLOSED"))
    assert isinstance(play.retry("a").outcome, errors.SessionClosed)


@pytest.mark.parametrize("at", [None, 1])
def test_number_beyond_f32_is_sent_as_infinity_without_a_warning(at: int | None):
    play = Play()
    play.steps("ab", [1, 1])
    play.run()
    play.step("a", 1e300, at)
    play.step("b", 1e300)
    play.step("b", 1e300)  # waits behind the other
    play.send()
    play.cut()
    play.send()
    play.send()
    assert list(play.server.requests[-1].values) == [np.inf, np.inf]


def test_stream_that_ends_for_good_under_values_leaves_them_in_doubt():
    play = Play()
    play.steps("abc", [1, 2, 3])
    play.run()
    waiter, _ = play.steps("ab", [3, 4])
    single = play.step("c", 5.0)
    play.send()
    play.cut(ended(Code.RESOURCE_EXHAUSTED))
    assert isinstance(single.outcome, errors.ResourceExhausted)
    assert {type(error) for error in waiter.outcome.errors.values()} == {errors.ResourceExhausted}
    for key, values in (("a", [1, 3]), ("b", [2, 4]), ("c", [3, 5])):
        assert isinstance(play.step(key, 0.0).outcome, errors.StepInDoubt)
        first = play.retry(key)
        play.send()
        play.cut(ended(Code.UNAUTHENTICATED))
        assert isinstance(first.outcome, errors.AccessDenied)
        second = play.retry(key)
        play.run()
        np.testing.assert_array_equal(second.outcome, alone(values)[1])


def test_answer_to_a_call_that_was_cancelled_is_kept_for_retry():
    play = Play()
    play.steps("ab", [1, 2])
    play.run()
    waiter, call = play.steps("ab", [3, 4])
    play.send()
    assert play.cancel(call, waiter)
    assert isinstance(play.step("a", 0.0).outcome, errors.StepInDoubt)
    play.run()
    np.testing.assert_array_equal(play.retry("a").outcome, alone([1, 3])[1])
    assert play.retry("a").outcome.reason == "NOT_IN_DOUBT"
    assert isinstance(play.step("b", 0.0).outcome, errors.StepInDoubt)
    play.core.turns.abandon_retry(1, play.core.turns.doubts[1][0])
    np.testing.assert_array_equal(play.retry("b").outcome, alone([2, 4])[1])


def test_retry_that_is_given_up_leaves_the_doubt():
    play = Play()
    play.step("a", 1.0)
    play.run()
    call = play.step("a", 2.0)
    play.send()
    play.cancel(call)
    play.cut()
    assert isinstance(play.move(), Idle), "nobody waits, so nobody connects"
    waiter = Promise()
    doubt = play.core.turns.retry(0, waiter)
    waiter.cancel()
    play.core.turns.abandon_retry(0, doubt)
    assert isinstance(play.step("a", 0.0).outcome, errors.StepInDoubt)
    again = play.retry("a")
    behind = play.step("a", 3.0)
    play.run()
    np.testing.assert_array_equal([again.outcome, behind.outcome], alone([1, 2, 3])[1:])


def test_refused_row_that_was_cancelled_tells_retry():
    play = Play()
    play.step("a", 1.0)
    play.run()
    call = play.step("a", float("nan"))
    play.send()
    play.cancel(call)
    play.run()
    assert play.retry("a").outcome.reason == "VALUE_MISSING"
    assert play.position("a") == 1


def test_draining_server_is_left_and_its_rows_go_elsewhere():
    play = Play()
    play.steps("ab", [1, 2])
    play.run()
    refusals = iter([Refusal(Code.UNAVAILABLE, "DRAINING")])

    def refuse(key: str) -> None:
        if key == "a" and (refusal := next(refusals, None)):
            raise refusal

    play.server.refuse_row = refuse
    waiter, _ = play.steps("ab", [3, 4])
    play.run()
    assert play.num_connects == 2
    np.testing.assert_array_equal(waiter.outcome, [alone([1, 3])[1], alone([2, 4])[1]])


def test_stored_answer_that_is_none_is_told():
    play = Play()
    play.step("a", 1.0)
    play.run()
    session = play.server.sessions["a"]
    session.last = (*session.last[:3], [])
    call = play.step("a", 1.0, at=0)
    play.run()
    assert call.outcome.reason == "NO_ANSWER"
    assert play.position("a") == 1


def test_values_are_kept_until_they_are_stored_and_new_ones_wait_for_room():
    play = Play(FrameServer(BEHIND), max_kept_steps=4)
    for value in range(2):
        play.steps("ab", [value, value])
        play.run()
    play.server.store.is_away = True
    call = play.step("a", 2.0)
    before_s = play.now_s
    moves(play, 30)
    assert not call.done()
    assert play.now_s > before_s + 5, "the server has asked for pauses"
    assert len(play.server.sessions["a"].history) == 2
    play.server.store.is_away = False
    play.run()
    np.testing.assert_array_equal(call.outcome, alone([0, 1, 2])[2])
    assert [*play.server.requests[-2].flushes] == [0, 1], "the session in wait is not stored twice"


def test_room_among_what_is_kept_is_made_at_once_where_the_server_stores():
    play = Play(FrameServer(BEHIND), max_kept_steps=2)
    for value in range(20):
        waiter, _ = play.steps("ab", [value, value])
        play.run()
        assert waiter.done()
    assert play.now_s == 0, "no pause"


def moves(play: Play, count: int) -> None:
    """Let the core act so often, letting time pass."""
    for _ in range(count):
        action = play.move()
        if isinstance(action, Idle) and action.until_s is not None:
            play.now_s = max(play.now_s, action.until_s)


def test_sessions_taken_by_another_do_not_fill_the_memory_of_what_is_kept():
    play = Play(FrameServer(BEHIND), max_kept_steps=1)
    play.steps("ab", [1, 1])
    play.run()
    for key in "ab":
        play.server.take(key, "other")
    new = play.step("c", 2.0)
    moves(play, 30)
    np.testing.assert_array_equal(new.outcome, alone([2])[0])
    assert isinstance(play.step("a", 1.0).outcome, errors.SessionTaken)


def test_flush_of_a_session_in_doubt_says_so():
    play = Play(FrameServer(BEHIND))
    play.steps("ab", [1, 1])
    play.run()
    call = play.step("a", 2.0)
    play.send()
    play.cancel(call)
    play.cut()
    flush = play.flush("ab")
    play.run()
    assert {index: type(error) for index, error in flush.outcome.errors.items()} == {0: errors.StepInDoubt}
    again = play.retry("a")
    flush = play.flush("a")
    play.run()
    np.testing.assert_array_equal(again.outcome, alone([1, 2])[1])
    assert isinstance(flush.outcome, np.ndarray)
    assert len(play.server.store.records["a"].history) == 2


def test_flush_waits_until_what_was_asked_before_is_stored():
    play = Play(FrameServer(BEHIND))
    play.steps("ab", [1, 2])
    play.run()
    play.server.store.is_away = True
    last = play.step("a", 3.0)
    waiter, one = play.flush(), play.flush(["a"])
    moves(play, 30)
    assert last.done()
    assert not waiter.done()
    assert play.core.failure.reason == "STORE_UNAVAILABLE", "what a call whose time is up is told"
    play.server.store.is_away = False
    play.run()
    assert isinstance(waiter.outcome, np.ndarray)
    assert isinstance(one.outcome, np.ndarray)
    assert [len(record.history) for record in play.server.store.records.values()] == [2, 1]
    frames = len(play.server.requests)
    play.flush()
    play.flush(["unknown"])
    play.run()
    assert len(play.server.requests) == frames, "all is stored, or was never used"


def test_values_go_on_while_a_flush_waits_for_a_store_that_is_away_and_a_closing_waits_for_it():
    play = Play(FrameServer(BEHIND))
    play.step("a", 1.0)
    play.run()
    play.server.store.is_away = True
    flushes = [play.flush("a"), play.flush("a")]
    play.send()
    play.move()
    before_s = play.now_s
    for value in (2.0, 3.0):
        call = play.step("a", value)
        while not call.done():
            assert not isinstance(play.move(), Idle)
    np.testing.assert_array_equal(call.outcome, alone([1, 2, 3])[2])
    ahead, _ = play.forecast("a", 1)
    closing = play.close_session("a")
    moves(play, 20)
    assert play.now_s > before_s + 3
    assert ahead.done()
    assert not closing.done()
    play.server.store.is_away = False
    play.run()
    assert all(isinstance(flush.outcome, np.ndarray) for flush in flushes)
    assert closing.done()
    assert len(play.server.store.records["a"].history) == 3


def test_flush_of_a_session_that_nobody_stores_on_the_way_is_asked():
    play = Play(FrameServer())
    play.step("a", 1.0)
    play.run()
    waiter = play.flush()
    play.run()
    assert isinstance(waiter.outcome, np.ndarray)
    assert [*play.server.requests[-1].flushes] == [0]


def test_flush_is_asked_again_on_the_next_stream_and_fails_with_the_gateway():
    play = Play(FrameServer(BEHIND))
    play.step("a", 1.0)
    play.run()
    waiter = play.flush()
    play.send()
    play.cut()
    play.run()
    assert isinstance(waiter.outcome, np.ndarray)
    play.step("a", 1.0)
    play.run()
    unstored = play.flush()
    play.core.close(errors.SessionClosed("closed"))
    assert isinstance(unstored.outcome.errors[0], errors.SessionClosed)


def test_flush_of_a_session_that_has_ended_fails_with_its_ending():
    play = Play(FrameServer(BEHIND))
    play.steps("abc", [1, 2, 3])
    play.run()
    play.server.take("a", "other")
    first = play.flush("ab")
    play.run()
    assert {index: type(error) for index, error in first.outcome.errors.items()} == {0: errors.SessionTaken}
    again = play.flush("a")
    assert isinstance(again.outcome.errors[0], errors.SessionTaken)


def test_opening_that_is_refused_for_a_flush_is_told_and_not_tried_for_ever():
    play = Play(FrameServer(BEHIND), max_kept_steps=1)
    play.step("a", 1.0)
    play.run()
    play.cut()

    def refuse(key: str) -> None:
        if key == "a":
            raise Refusal(Code.PERMISSION_DENIED, "NO_ENTRY")

    play.server.refuse_open = refuse
    flush, new = play.flush("a"), play.step("b", 1.0)
    before = len(play.server.requests)
    moves(play, 40)
    assert isinstance(flush.outcome.errors[0], errors.AccessDenied)
    assert not new.done(), "there is no room among what is kept"
    assert len(play.server.requests) - before < 20
    assert play.now_s > 4


def test_session_moved_by_this_client_itself_is_stored_to_make_room():
    play = Play(FrameServer(BEHIND), max_kept_steps=1)
    play.step("a", 1.0)
    play.run()
    play.server.take("a", play.client_id)
    new = play.step("b", 2.0)
    play.run()
    np.testing.assert_array_equal(new.outcome, alone([2])[0])


def test_message_whose_answer_waits_for_the_store_is_sent_again_and_its_neighbours_go_on():
    play = Play(FrameServer(SYNC))
    play.steps("ab", [1, 1])
    play.run()
    play.server.store.is_away = True
    waiter, _ = play.steps("ab", [2, 2])
    play.send()
    play.move()
    assert play.num_connects == 1, "the stream goes on"
    before = len(play.server.requests)
    behind = play.step("a", 3.0)
    assert isinstance(play.move(), Idle)
    assert len(play.server.requests) == before, "a new call does not cut the pause short"
    play.server.durability = UNSTORED
    other = play.step("c", 1.0)
    play.server.store.is_away = False
    while not other.done():
        play.move()
    assert not waiter.done()
    play.server.durability = SYNC
    play.run()
    np.testing.assert_array_equal(waiter.outcome, [alone([1, 2])[1]] * 2)
    np.testing.assert_array_equal(behind.outcome, alone([1, 2, 3])[2])
    assert len(play.server.store.records["a"].history) == 3
    assert play.core._storing.kept.num_steps == 0, "what is stored at once is not kept"


def test_values_that_were_stored_at_once_leave_no_gap_in_what_is_kept():
    play = Play(FrameServer(BEHIND))
    play.steps("ab", [0, 0])
    for value, stores in ((1.0, False), (2.0, True), (3.0, False), (4.0, False)):
        play.run()
        play.server.stores = False
        if stores:
            play.server.refuse_row = lambda key: play.server.write(key) if key == "a" else None
            play.server.write("a")
            play.server.durability = SYNC
        play.step("a", value)
        play.run()
        play.server.durability, play.server.refuse_row = BEHIND, lambda _: None
    play.server.crash()
    play.cut()
    call = play.step("a", 5.0)
    play.run()
    np.testing.assert_array_equal(call.outcome, alone([0, 1, 2, 3, 4, 5])[-1])


def test_server_that_stores_no_more_does_not_fill_the_memory_of_what_is_kept():
    play = Play(FrameServer(BEHIND), max_kept_steps=4)
    play.steps("ab", [1, 1])
    play.run()
    play.server.durability = UNSTORED
    play.cut()
    for value in range(5):
        waiter, _ = play.steps("ab", [value, value])
        play.run()
        assert isinstance(waiter.outcome, np.ndarray)


def test_opening_again_tells_the_greatest_epoch_and_asks_for_no_other_model():
    play = Play(FrameServer(BEHIND), model_change="move")
    play.step("a", 1.0)
    play.run()
    play.cut()
    play.server.store.is_away = True
    call = play.step("a", 2.0)
    play.run()
    np.testing.assert_array_equal(call.outcome, alone([1, 2])[1])
    asked = [item.open for request in play.server.requests for item in request.opens]
    assert [(each.epoch, each.model_change) for each in asked] == [
        (0, types_pb2.MODEL_CHANGE_MOVE),
        (1, types_pb2.MODEL_CHANGE_UNSPECIFIED),
    ]


def test_store_that_went_back_loses_the_session():
    play = Play(FrameServer(BEHIND))
    for value in (1.0, 2.0):
        play.step("a", value)
        play.run()
        play.flush()
        play.run()
    play.step("a", 3.0)
    play.run()
    play.server.store.records["a"].history.pop()
    play.server.crash()
    play.cut()
    call = play.step("a", 4.0)
    play.run()
    assert isinstance(call.outcome, errors.SessionLost)
    assert call.outcome.reason == "STORE_WENT_BACK"
    assert [*play.server.requests[-1].closes] == [0], "the server need not hold it open"


def test_session_that_has_ended_at_its_opening_is_closed_at_the_server_and_its_slot_may_be_used_again():
    play = Play()
    play.step("a", 1.0)
    play.run()
    play.server.num_features = 2
    play.step("b", 1.0)
    play.send()
    play.move()
    assert play.close_session("b").done()
    play.server.num_features = 1
    call = play.step("c", 1.0)  # takes the slot
    play.run()
    assert isinstance(call.outcome, np.ndarray)
    assert [*play.server.requests[-2].closes] == [1]


def test_without_a_server_what_waits_fails_in_time_and_the_next_call_has_its_own():
    play = Play()
    play.step("a", 1.0)
    play.run()
    play.now_s = 1000.0
    calls = [play.step("a", 2.0), play.step("b", 1.0), play.flush()]
    play.send()
    play.cut(ended(Code.UNAVAILABLE))
    for _ in range(500):
        if calls[1].done():
            break
        action = play.move()
        if isinstance(action, Idle):
            play.now_s = action.until_s
        elif action is CONNECT:
            play.now_s += 0.01
            play.cut(ended(Code.UNAVAILABLE))
    assert 1060 < play.now_s < 1065
    for outcome in (calls[0].outcome, calls[1].outcome, calls[2].outcome.errors[0]):
        assert isinstance(outcome, errors.Unavailable)
        assert "here:1 within 60 s" in str(outcome)
    assert [*play.core.turns.doubts] == [0]
    play.now_s = 2000.0
    again = play.retry("a")
    play.move()
    play.cut(ended(Code.UNAVAILABLE))
    assert not again.done(), "it has time of its own"
    play.run()
    np.testing.assert_array_equal(again.outcome, alone([1, 2])[1])


def test_first_try_of_another_server_does_not_wait_as_long_as_the_last_one_asked():
    play = Play()
    play.step("a", 1.0)
    play.move()
    play.core.disconnected(
        status.make(Code.UNAVAILABLE, "draining", "DRAINING", {}, 5.0), 0.0, has_other=True
    )
    action = play.move()
    assert isinstance(action, Idle)
    assert action.until_s <= 0.1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: answer.handles.pop(),
        lambda answer: answer.handles.__setitem__(0, 77),
        lambda answer: answer.handles.__setitem__(slice(None), [1, 0]),
        lambda answer: answer.steps.__setitem__(0, 9),
        lambda answer: answer.values.pop(),
        lambda answer: answer.errors.add(handle=1, part=sequence_pb2.FRAME_PART_VALUES),
        lambda answer: answer.opened.add(handle=1),
        lambda answer: answer.ClearField("forecasts"),
    ],
)
def test_answer_that_does_not_fit_its_frame_leaves_its_values_in_doubt(spoil: Any):
    play = Play()
    play.steps("abc", [1, 2, 3])
    play.run()
    waiter, _ = play.steps("ab", [1, 2])
    ahead, _ = play.forecast("c", 2)
    play.send()
    answer = sequence_pb2.StreamFramesResponse.FromString(play.answers[0])
    spoil(answer)
    if len(answer.handles) < 2:
        del answer.steps[1:], answer.values[2:], answer.durable_steps[1:]
    play.answers[0] = answer.SerializeToString()
    play.move()
    for outcome in (waiter.outcome, ahead.outcome):
        assert {error.reason for error in outcome.errors.values()} == {"PROTOCOL_VIOLATION"}
    assert len(play.core.turns.doubts) == 2


def test_frame_that_nobody_asked_is_a_fault_of_the_server():
    play = Play()
    play.step("a", 1.0)
    play.run()
    failure = play.core.received(b"", 0.0)
    assert failure is not None
    assert failure.reason == "PROTOCOL_VIOLATION"
    play.core.disconnected(failure, 0.0)
    call = play.step("a", 1.0)
    play.run()
    assert isinstance(call.outcome, np.ndarray)


def test_closing_waits_for_what_was_asked_before_and_fails_what_was_asked_after():
    play = Play()
    before, closed, after = play.step("a", 1.0), play.close_session("a"), play.step("a", 2.0)
    play.run()
    assert isinstance(before.outcome, np.ndarray)
    assert closed.done()
    assert isinstance(after.outcome, errors.SessionClosed)
    assert list(play.server.requests[-1].closes) == [0]
    play.step("b", 1.0)  # takes the slot
    play.run()
    assert play.position("b") == 1
    closing = play.close_session("b")
    play.send()
    play.cut()
    assert closing.done()
    play.step("c", 1.0)
    play.send()
    play.cancel(play.step("d", 1.0))


def test_closing_that_is_cancelled_before_it_is_sent_is_withdrawn():
    play = Play()
    play.step("a", 1.0)
    play.run()
    play.step("a", 2.0)
    play.send()
    play.close_session("a").cancel()
    after = play.step("a", 3.0)
    play.run()
    np.testing.assert_array_equal(after.outcome, alone([1, 2, 3])[2])
    play.close_session("a").cancel()  # while it is ready
    after = play.step("a", 4.0)
    play.cut()
    play.run()
    np.testing.assert_array_equal(after.outcome, alone([1, 2, 3, 4])[3])
    assert not any(request.closes for request in play.server.requests)


def test_much_that_is_withdrawn_is_swept_from_the_queues():
    play = Play()
    calls = [play.step("a", 1.0) for _ in range(3000)]
    play.send()
    for call in calls[1:]:
        play.cancel(call)
    play.run()
    assert len(play.core.turns.items()) == 0
    assert play.core.turns.num_waiting_steps == 0
    assert play.position("a") == 1


def test_group_means_the_sessions_of_these_names_with_whichever_gateway_it_is_used():
    one, other = Play(), Play()
    one.steps("abc", [1, 2, 3])
    other.steps("cba", [3, 2, 1])
    group = Group(list("abc"))
    assert [one.core.table.ids[slot] for slot in group.slots(one.core.table)] == list("abc")
    assert [other.core.table.ids[slot] for slot in group.slots(other.core.table)] == list("abc")
    assert [one.core.table.ids[slot] for slot in group.slots(one.core.table)] == list("abc")


def test_id_that_only_looks_like_text_fails_its_call_and_no_other():
    class Name:
        def encode(self) -> bytes:
            return b"a"

    play = Play()
    good, wrong = play.step("a", 1.0), play.step(Name(), 1.0)
    play.run()
    assert wrong.outcome.reason == "INVALID_OPTION"
    assert isinstance(good.outcome, np.ndarray)


def test_table_grows_and_has_an_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("longshort.gateway.table.MAX_SESSIONS", 3000)
    play = Play()
    ids = [str(number) for number in range(3000)]
    waiter, _ = play.steps(ids, np.ones(3000))
    play.run()
    assert waiter.outcome.shape == (3000, 2)
    assert play.position("2999") == 1
    assert play.step("one more", 1.0).outcome.reason == "GATEWAY_FULL"


def test_row_that_waits_behind_a_closing_or_a_doubt_is_told_by_row():
    play = Play()
    play.steps("ab", [1, 2])
    play.run()
    call = play.step("a", 2.0)
    behind, _ = play.steps("ab", [3, 3])
    ahead, _ = play.forecast("a", 2)
    closed = play.close_session("a")
    play.send()
    play.cancel(call)
    waiter, _ = play.steps("ab", [3, 3])
    play.run()
    for each in (behind, ahead, waiter):
        assert isinstance(each.outcome.errors[0], errors.StepInDoubt)
    assert isinstance(closed.outcome, errors.StepInDoubt)
    assert play.position("b") == 3


def test_ready_rows_wait_again_when_the_stream_breaks():
    play = Play()
    play.steps("abc", [1, 1, 1])
    play.run()
    single = play.step("a", 2.0)
    waiter, _ = play.steps("bc", [2, 2])
    ahead, _ = play.forecast("d", 1)
    closing = play.close_session("e")
    play.cut()
    play.run()
    for each in (single.outcome, *waiter.outcome):
        np.testing.assert_array_equal(each, alone([1, 2])[1])
    assert ahead.outcome.errors[0].reason == "SESSION_EMPTY"
    assert closing.done()


def test_forecasts_and_closings_in_flight_are_asked_again():
    play = Play()
    play.steps("abc", [1, 1, 1])
    play.run()
    ahead, _ = play.forecast("ab", 2)
    closing = play.close_session("c")
    play.send()
    play.cut()
    play.run()
    assert ahead.outcome.shape == (2, 2, 2)
    assert closing.done()


def test_row_that_is_cancelled_while_it_is_ready_lets_the_next_go():
    play = Play()
    play.steps("abc", [1, 1, 1])
    play.run()
    single, (waiter, call) = play.step("a", 2.0), play.steps("bc", [2, 2])
    behind = [play.step(key, 3.0) for key in "abc"]
    assert not play.cancel(single)
    assert not play.cancel(call, waiter)
    play.run()
    for each in behind:
        np.testing.assert_array_equal(each.outcome, alone([1, 3])[1])


def test_waiting_calls_are_each_told_once():
    play = Play()
    _, array = play.steps("ab", [1, 2])
    single = play.step("c", 1.0)
    closing = play.close_session("c")
    assert {id(call) for call in play.core.waiting()} == {id(array), id(single)}
    play.run()
    waiter, array = play.steps("ab", [1, 2])
    single = play.step("d", 1.0)
    play.send()
    assert {id(call) for call in play.core.waiting()} == {id(array), id(single)}
    play.run()
    assert closing.done()
    assert waiter.done()
    assert play.core.waiting() == []


def test_what_a_server_forgot_is_sent_before_the_row_that_waits():
    play = Play(FrameServer(BEHIND))
    for value in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
        play.step("a", value)
        play.run()
    call = play.step("a", 7.0)
    play.send()
    play.server.crash()
    play.cut()
    tries = iter([Refusal(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", delay_s=0.1)])

    def refuse(_: str) -> None:
        if refusal := next(tries, None):
            raise refusal

    play.server.refuse_row = refuse
    play.server.requests.clear()
    play.run()
    np.testing.assert_array_equal(call.outcome, alone([1, 2, 3, 4, 5, 6, 7])[-1])
    sent = [list(request.values) for request in play.server.requests if request.handles]
    assert sent == [[1, 2, 3, 4], [1, 2, 3, 4], [5], [6], [7]], "joined, but for the last that was answered"


def test_forgotten_values_that_the_server_refuses_lose_the_session():
    play = Play(FrameServer(BEHIND))
    play.step("a", 1.0)
    play.run()
    play.server.crash()
    play.cut()

    def refuse(_: str) -> None:
        raise Refusal(Code.INVALID_ARGUMENT, "VALUE_MISSING")

    play.server.refuse_row = refuse
    call = play.step("a", 2.0)
    play.run()
    assert isinstance(call.outcome, errors.SessionLost)


def test_retry_that_waits_when_the_session_ends_is_told():
    play = Play()
    play.step("a", 1.0)
    play.run()
    call = play.step("a", 2.0)
    play.send()
    play.cancel(call)
    play.cut()
    play.server.reset("a")
    waiter = play.retry("a")
    play.run()
    assert isinstance(waiter.outcome, errors.SessionReplaced)


def test_closed_session_forgets_the_doubts_of_calls_that_were_not_back():
    play = Play()
    play.steps("ab", [0, 0])
    play.run()
    moves = iter([Refusal(Code.ABORTED, "SESSION_MOVED", cause="opened", client_id=play.client_id)])

    def refuse(key: str) -> None:
        if key == "b" and (refusal := next(moves, None)):
            raise refusal

    play.server.refuse_row = refuse
    waiter, call = play.steps("ab", [1, 2])
    closing = play.close_session("a")
    play.send()
    play.move()
    play.send()  # a is closed and b opened again
    assert play.cancel(call, waiter)
    assert 0 in play.core.turns.doubts
    play.run()
    assert closing.done()
    assert 0 not in play.core.turns.doubts
    other = play.retry("b")
    play.run()
    np.testing.assert_array_equal(other.outcome, alone([0, 2])[1])
