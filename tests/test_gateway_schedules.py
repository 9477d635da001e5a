"""Random schedules of calls, cuts, crashes, takeovers and cancellations against a server of dictionaries.

Two servers may share a store; the gateway moves between them. Whatever happens, each session's answers are those of its
values alone: no gap, no repetition, no neighbour harmed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from frame_play import Play, Promise
from frame_server import BEHIND, SYNC, UNSTORED, FrameServer, Refusal, alone
from hypothesis import given, settings
from hypothesis import strategies as st
from longshort import errors
from longshort.errors import Code
from longshort.gateway.actions import Idle

IDS = ["a", "b", "c", "d", "e"]

KINDS = (
    ["step"] * 4
    + ["steps", "steps", "long", "forecast", "flush", "bad", "busy"]
    + ["move"] * 8
    + ["cut", "cut", "cancel", "cancel", "retry"]
)


def acts(*more: str) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Return lists of acts: the kind, which session, how many steps."""
    act = st.tuples(st.sampled_from(KINDS + list(more)), st.integers(0, 4), st.integers(1, 9))
    return st.lists(act, min_size=30, max_size=80)  # short ones hardly meet anything


@dataclass
class Asked:
    """A call, its values by session, and its waiter."""

    ids: list[str]
    values: np.ndarray  # [n, time]
    waiter: Promise
    call: Any
    is_flat: bool
    doubted: set[str] = field(default_factory=set)
    retried: dict[str, Promise] = field(default_factory=dict)


class Schedule:
    """Plays acts and keeps what each session was asked, in order."""

    def __init__(self, *servers: FrameServer, max_kept_steps: int = 1000) -> None:
        self.servers = list(servers)
        self.play = Play(servers[0], max_kept_steps=max_kept_steps)
        self.lines: dict[str, list[Asked]] = {key: [] for key in IDS}
        self.asked: list[Asked] = []
        self.others: list[Promise] = []
        self.number = 0.0
        self.refuses: set[str] = set()
        self.ended: set[str] = set()  # sessions that somebody took or reset
        for server in servers:
            server.refuse_row = self.refuse_row

    def refuse_row(self, key: str) -> None:
        if key in self.refuses:
            self.refuses.discard(key)
            raise Refusal(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", delay_s=0.1)

    def act(self, kind: str, which: int, size: int) -> None:
        getattr(self, kind)(IDS[which], which, size)

    def step(self, key: str, _which: int, _size: int) -> None:
        values = self.values(1)
        call = self.play.step(key, float(values[0]))
        self.note([key], values[None], call, call, is_flat=True)

    def steps(self, _key: str, which: int, _size: int) -> None:
        ids = IDS[which:] + IDS[: which // 2]
        values = np.stack([self.values(1) for _ in ids])
        waiter, call = self.play.steps(ids, values)
        self.note(ids, values, waiter, call, is_flat=True)

    def long(self, _key: str, which: int, size: int) -> None:
        ids = IDS[which:] + IDS[: which // 2]
        values = np.stack([self.values(size) for _ in ids])
        waiter, call = self.play.steps(ids, values[:, :, None])
        self.note(ids, values, waiter, call, is_flat=False)

    def bad(self, key: str, _which: int, _size: int) -> None:
        call = self.play.step(key, float("nan"))
        self.note([key], np.array([[np.nan]]), call, call, is_flat=True)

    def busy(self, key: str, _which: int, _size: int) -> None:
        self.refuses.add(key)

    def forecast(self, key: str, which: int, size: int) -> None:
        self.others.append(self.play.forecast([key, IDS[which - 1]], size)[0])

    def flush(self, key: str, _which: int, size: int) -> None:
        self.others.append(self.play.flush([key] if size > 5 else None))

    def move(self, _key: str, _which: int, _size: int) -> None:
        action = self.play.move()
        if isinstance(action, Idle) and action.until_s is not None:
            self.play.now_s = action.until_s

    def cut(self, _key: str, _which: int, _size: int) -> None:
        self.play.cut()

    def crash(self, _key: str, _which: int, _size: int) -> None:
        self.play.server.crash()
        self.play.cut()

    def elsewhere(self, _key: str, _which: int, _size: int) -> None:
        """The stream is cut and goes on at the other server; what this one remembers grows old."""
        self.servers.reverse()
        self.play.server = self.servers[0]
        self.play.cut()

    def die(self, key: str, which: int, size: int) -> None:
        self.play.server.crash()
        self.elsewhere(key, which, size)

    def store(self, key: str, _which: int, size: int) -> None:
        server = self.play.server
        if size > 5:
            server.checkpoint()
        elif key in server.sessions and not server.store.is_away:
            server.write(key)

    def away(self, _key: str, _which: int, _size: int) -> None:
        self.play.server.store.is_away = True

    def back(self, _key: str, _which: int, _size: int) -> None:
        self.play.server.store.is_away = False

    def take(self, key: str, _which: int, _size: int) -> None:
        if key in self.play.server.sessions:
            self.ended.add(key)
            self.play.server.take(key, "someone else")

    def reset(self, key: str, _which: int, _size: int) -> None:
        if key in self.play.server.sessions:
            self.ended.add(key)
            self.play.server.reset(key)

    def cancel(self, _key: str, _which: int, size: int) -> None:
        open_calls = [asked for asked in self.asked if not asked.waiter.done()]
        if not open_calls:
            return
        asked = open_calls[size % len(open_calls)]
        before = self.doubts()
        self.play.cancel(asked.call, asked.waiter)
        slots = [slot for slot, doubt in self.doubts().items() if doubt > before.get(slot, 0)]
        asked.doubted = {self.play.core.table.ids[slot] for slot in slots}

    def doubts(self) -> dict[int, int]:
        return {slot: len(doubts) for slot, doubts in self.play.core.turns.doubts.items()}

    def close(self, key: str, _which: int, _size: int) -> None:
        # Closing a session forgets the doubts of calls that are not back yet.
        if all(asked.waiter.done() or len(asked.ids) == 1 for asked in self.lines[key]):
            self.others.append(self.play.close_session(key))

    def retry(self, key: str, _which: int = 0, _size: int = 0) -> None:
        if key in self.play.core.table.slots:
            promise = self.play.retry(key)
            if not isinstance(promise.outcome, errors.FailedPrecondition | errors.SessionEnded):
                asked = next(each for each in self.lines[key] if key in each.doubted - each.retried.keys())
                asked.retried[key] = promise

    def values(self, count: int) -> np.ndarray:
        self.number += count
        return np.arange(self.number - count, self.number)

    def note(self, ids: list[str], values: np.ndarray, waiter: Any, call: Any, *, is_flat: bool) -> None:
        asked = Asked(ids, values, waiter, call, is_flat)
        self.asked.append(asked)
        for key in ids:
            self.lines[key].append(asked)

    def finish(self) -> None:
        self.play.server.store.is_away = False
        self.play.run()
        for _ in range(100):
            if not self.play.core.turns.doubts:
                break
            for key in IDS:
                self.retry(key)
            self.play.run()
        else:
            raise AssertionError(f"still in doubt: {self.play.core.turns.doubts}")
        last = self.play.flush()  # idle sessions are brought up to date by that
        self.others.append(last)
        self.play.run()
        assert self.ended or not isinstance(last.outcome, errors.LongshortError), last.outcome

    def outcome(self, asked: Asked, key: str) -> Any:
        """Return the answers [time, 2] that the caller got for a session, or the error."""
        index = asked.ids.index(key)
        outcome = asked.waiter.outcome
        if key in asked.retried:
            outcome = asked.retried[key].outcome
        elif isinstance(outcome, errors.RowsFailed):
            outcome = outcome.errors.get(index, None if outcome.answers is None else outcome.answers[index])
        elif isinstance(outcome, np.ndarray) and len(asked.ids) > 1:
            outcome = outcome[index]
        elif isinstance(outcome, np.ndarray) and outcome.ndim > (1 if asked.is_flat else 2):
            outcome = outcome[0]
        if isinstance(outcome, np.ndarray) and asked.is_flat:
            return outcome[None]
        return outcome

    def check(self) -> None:
        """Every call was told; what was answered, in order, is what each session says alone."""
        for key in set(IDS) - self.ended:
            history: list[float] = []
            for asked in self.lines[key]:
                assert asked.waiter.done()
                outcome = self.outcome(asked, key)
                values = asked.values[asked.ids.index(key)].tolist()
                if isinstance(outcome, np.ndarray):
                    assert np.array_equal(outcome, alone(history + values)[len(history) :]), key
                    history += values
                elif isinstance(outcome, errors.LongshortError):
                    assert outcome.reason in {"VALUE_MISSING", "QUEUE_FULL", "STEP_IN_DOUBT", "CLOSED"}, repr(
                        outcome
                    )
                    if outcome.partial is not None:
                        history += values[: len(outcome.partial)]
                else:
                    assert outcome == "cancelled"
                    assert key not in asked.doubted
            server = self.play.server
            session = (server.sessions if server.durability == UNSTORED else server.store.records).get(key)
            assert history == [row[0] for row in session.history] if session else not history
        assert all(asked.waiter.done() for asked in self.asked)
        assert all(promise.done() for promise in self.others)
        assert self.play.core.turns.num_waiting_steps == 0


def walk(schedule: Schedule, acts: list[tuple[str, int, int]]) -> None:
    for act in acts:
        schedule.act(*act)
    schedule.finish()
    schedule.check()


@settings(max_examples=300, deadline=None)
@given(acts("close"))
def test_any_schedule_gives_every_session_the_answers_it_has_alone(acts: list[tuple[str, int, int]]):
    walk(Schedule(FrameServer(UNSTORED)), acts)


@settings(max_examples=300, deadline=None)
@given(acts("crash", "crash", "store", "store"), st.sampled_from([3, 20, 1000]))
def test_server_that_forgets_is_given_again_what_it_had_not_stored(
    acts: list[tuple[str, int, int]], max_kept_steps: int
):
    walk(Schedule(FrameServer(BEHIND), max_kept_steps=max_kept_steps), acts)


@settings(max_examples=300, deadline=None)
@given(
    acts("die", "die", "elsewhere", "elsewhere", "crash", "store", "store", "away", "back"),
    st.sampled_from([BEHIND, SYNC]),
    st.sampled_from([3, 20, 1000]),
)
def test_sessions_go_on_at_another_server_that_shares_the_store(
    acts: list[tuple[str, int, int]], durability: int, max_kept_steps: int
):
    one = FrameServer(durability)
    two = FrameServer(durability, store=one.store, num_incarnations=100)
    walk(Schedule(one, two, max_kept_steps=max_kept_steps), acts)


@settings(max_examples=300, deadline=None)
@given(acts("take", "reset", "close"))
def test_sessions_that_end_harm_no_others(acts: list[tuple[str, int, int]]):
    walk(Schedule(FrameServer(UNSTORED)), acts)
