"""The grants of rows while streams are being opened."""

from __future__ import annotations

from longshort_service.pacing import EXPIRY_S, QUIET_WAITS, ROWS_PER_OPENING, ROWS_PER_WAIT, OpeningPace


def test_batches_are_not_limited_while_no_stream_arrives():
    assert OpeningPace().max_rows(0.0) is None


def test_each_arrival_grants_a_few_rows_that_batches_use_up():
    pace = OpeningPace()
    pace.arrived(0.0)
    pace.arrived(0.001)
    assert pace.max_rows(0.001) == 2 * ROWS_PER_OPENING
    pace.batch_formed(ROWS_PER_OPENING)
    assert pace.max_rows(0.001) == ROWS_PER_OPENING
    pace.batch_formed(3 * ROWS_PER_OPENING)
    assert pace.max_rows(0.001) == 0


def test_openings_are_over_after_enough_waits_without_an_arrival():
    pace = OpeningPace()
    pace.arrived(0.0)
    pace.batch_formed(ROWS_PER_OPENING)
    for _ in range(QUIET_WAITS):
        assert pace.max_rows(0.0) == 0
        pace.waited()
        pace.batch_formed(QUIET_WAITS * ROWS_PER_WAIT)
    assert pace.max_rows(0.0) is None


def test_streams_that_keep_arriving_leave_rows_for_each_wait_between_them():
    pace = OpeningPace()
    num_rows = 0
    for arrival in range(100):
        pace.arrived(arrival * 0.004)
        for _ in range(4):
            rows = pace.max_rows(arrival * 0.004)
            assert rows is not None
            num_rows += rows
            pace.batch_formed(rows)
            pace.waited()
    # The grant of the fourth wait is used by the first batch after the next arrival.
    assert num_rows == 100 * (ROWS_PER_OPENING + (1 + 2 + 3) * ROWS_PER_WAIT) + 99 * 4 * ROWS_PER_WAIT


def test_openings_are_over_after_a_while_however_few_turns_there_were():
    pace = OpeningPace()
    pace.arrived(0.0)
    assert pace.max_rows(EXPIRY_S / 2) == ROWS_PER_OPENING
    assert pace.max_rows(EXPIRY_S) is None


def test_grants_left_from_earlier_openings_are_forgotten():
    pace = OpeningPace()
    pace.arrived(0.0)
    pace.arrived(0.0)
    pace.arrived(10.0)
    assert pace.max_rows(10.0) == ROWS_PER_OPENING
