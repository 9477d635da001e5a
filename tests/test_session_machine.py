"""Any order of what may happen to sessions, against a dictionary of what each of them must be.

Two houses, which are services without gRPC, over one store. Each session has one client, which follows the rules of
the contract, and a list of all values that it has or will ever have: at step n every copy of it, live or stored, new
or stale, is the sum of the first n of them, because the model adds up.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
from histories_backend import BackendLine
from histories_fake import FakeBackend, Kept
from house import House
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from inside import until
from longshort_service import errors
from longshort_service.durability import Durability
from longshort_service.session import Answers
from longshort_service.stores.base import OpenMode
from longshort_service.stores.sqlite import SqliteBackend
from longshort_service.stores.threaded import ThreadedStore
from longshort_service.turns import until_settled
from tables import RecordingOwner

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from longshort_service.record import SessionRecord
    from longshort_service.repository import Model
    from longshort_service.session import Session

IDS = ("r", "s", "t")
TTL_S = 100.0  # the houses'
PATIENCE_S = 20.0


@dataclass
class Truth:
    """What a session must be, and what its one client knows of it."""

    values: list[float]
    incarnation: int
    durability: Durability
    epoch: int = 0
    num_answered: int = 0
    durable_step: int = 0  # the greatest that the client was told
    unanswered: tuple[int, int] | None = None  # first step and end
    last: tuple[int, int] | None = None  # the last message that was answered
    house: int | None = None  # where the client has a stream
    session: Session[Model] | None = None
    owner: RecordingOwner = field(default_factory=RecordingOwner)

    @property
    def kept_from(self) -> int:
        answered = self.num_answered
        return answered if self.durability is Durability.NONE else min(self.durable_step, answered)

    @property
    def is_streaming(self) -> bool:
        return self.session is not None and not self.owner.ends

    def leave(self) -> None:
        self.house = self.session = None
        self.owner = RecordingOwner()


class Machine(RuleBasedStateMachine):
    """The rules. `make_backend` gives each house its backend of the store that they share."""

    models: Path
    make_backend: Callable[[Path], Callable[[], Any]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.backend = self.make_backend(Path(self.folder.name))
        self.runner = asyncio.Runner()
        self.truths: dict[str, Truth] = {}
        self.values_of: dict[int, list[float]] = {}  # by incarnation, also of those that are gone
        self.ended: dict[str, type[errors.ServiceError]] = {}
        self.incarnations = itertools.count(1)
        self.numbers = itertools.count(1)
        self.now_s = 1_000.0
        self.lines: list[BackendLine] = [None, None]  # type: ignore[list-item]  # filled below
        self.houses: list[House] = [self.new_house(place) for place in range(2)]

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, PATIENCE_S))

    def new_house(self, place: int) -> House:
        line = self.lines[place] = BackendLine(self.backend())
        house = House(self.models, ThreadedStore(line))
        house.now_s = self.now_s
        house.keeper.draw_incarnation = house.keeper._opener._draw_incarnation = self.incarnations.__next__
        # Checkpoints are a rule; nothing is too long away.
        checkpointer = house.checkpointer
        checkpointer._interval_writer._interval_s = checkpointer._behind._interval_s = 3600.0
        checkpointer._limits = dataclasses.replace(checkpointer._limits, answer_timeout_s=0.01)
        checkpointer.outage._limit_s = 3600.0
        self.do(house.__aenter__())
        return house

    def teardown(self) -> None:
        for place, house in enumerate(self.houses):
            self.lines[place].is_cut = False
            self.do(house.__aexit__())
        self.runner.close()
        self.folder.cleanup()

    # -- what a client does --------------------------------------------------------------------------------------

    async def reopened(self, name: str, house: int) -> None:
        truth = self.truths[name]
        truth.leave()
        wanted: dict[str, Any] = {"mode": OpenMode.OPEN, "epoch": truth.epoch, "durability": truth.durability}
        try:
            session = await self.houses[house].open(name, truth.owner, **wanted)
        except errors.StoreUnavailable:
            assert self.lines[house].is_cut
            return
        if session.incarnation != truth.incarnation:
            raise AssertionError("nobody made another session of this name")
        assert session.epoch > truth.epoch or self.lines[house].is_cut
        truth.epoch, truth.house, truth.session = session.epoch, house, session
        truth.owner.ends.clear()
        step, answered = session.step, truth.num_answered
        assert step >= truth.durable_step, "what was called durable is gone"
        if step < truth.kept_from:
            assert truth.durability is Durability.NONE
            truth.num_answered = step  # told, the caller goes on from there
            truth.unanswered = truth.last = None
        elif step > answered:
            assert truth.unanswered == (answered, step), "it moved by something that nobody sent"
            await self.send(truth, *truth.unanswered)
        else:
            truth.unanswered = None
            truth.num_answered = answered
            while truth.session is not None and (at := truth.session.step) < answered:
                await self.send(truth, at, min(at + 3, answered))

    async def send(self, truth: Truth, step: int, end: int) -> None:
        """Send a message as a stream does, and take its answer."""
        assert truth.house is not None
        assert truth.session is not None
        house = self.houses[truth.house]
        while len(truth.values) < end:
            truth.values.append(float(next(self.numbers) % 89))
        rows = np.array(truth.values[step:end], np.float32)[:, None]
        truth.unanswered = (step, end)
        try:
            applied = await house.stepper.step(truth.session, rows, step, Answers.ALL)
            await house.checkpointer.until_stored(truth.session, applied.step, strictly=False)
        except (errors.SessionMoved, errors.StoreUnavailable):
            truth.leave()
            return
        sums = np.cumsum(truth.values[:end])[step:]
        assert applied.outputs[:, 0].tolist() == sums.tolist()
        assert applied.step == end
        truth.num_answered = max(truth.num_answered, end)
        truth.last, truth.unanswered = (step, end), None
        self.note_durable(truth)

    def note_durable(self, truth: Truth) -> None:
        if truth.session is not None and not truth.session.is_ended:
            assert truth.session.durable_step <= truth.session.step
            truth.durable_step = max(truth.durable_step, truth.session.durable_step)

    def named(self, name: str, *, streaming: bool = False) -> Truth | None:
        truth = self.truths.get(name)
        return truth if truth is not None and (truth.is_streaming or not streaming) else None

    # -- rules ---------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(IDS), house=st.integers(0, 1), durability=st.sampled_from(Durability))
    def open(self, name: str, house: int, durability: Durability) -> None:
        """Open for the first time, or again, here or elsewhere."""
        if name in self.truths:
            self.do(self.reopened(name, house))
            return
        mode = OpenMode.CREATE if name in self.ended else OpenMode.OPEN_OR_CREATE
        owner = RecordingOwner()
        opening = self.houses[house].open(name, owner, mode=mode, durability=durability)
        try:
            session = self.do(opening)
        except errors.StoreUnavailable:
            assert self.lines[house].is_cut
            return
        assert session.step == 0
        self.ended.pop(name, None)
        self.truths[name] = truth = self.begun(session.incarnation, durability)
        truth.epoch, truth.house, truth.session, truth.owner = session.epoch, house, session, owner

    def begun(self, incarnation: int, durability: Durability) -> Truth:
        """Return what a new session must be."""
        truth = Truth([], incarnation, durability)
        self.values_of[incarnation] = truth.values
        return truth

    @rule(name=st.sampled_from(IDS), count=st.integers(1, 5))
    def values(self, name: str, count: int) -> None:
        if (truth := self.named(name, streaming=True)) is not None:
            self.do(self.send(truth, truth.num_answered, truth.num_answered + count))

    @rule(name=st.sampled_from(IDS))
    def duplicate(self, name: str) -> None:
        """The last message again is answered as before, where its session has moved by nothing since."""
        truth = self.named(name, streaming=True)
        if truth is None or truth.last is None or truth.last[1] != truth.num_answered:
            return
        assert truth.session is not None
        step = truth.session.step
        self.do(self.send(truth, *truth.last))
        assert truth.session is None or truth.session.step == step

    @rule(name=st.sampled_from(IDS), kind=st.sampled_from(["gap", "differs", "straddles"]))
    def refused(self, name: str, kind: str) -> None:
        truth = self.named(name, streaming=True)
        if truth is None or truth.house is None or truth.session is None:
            return
        at, last = truth.num_answered, truth.last
        if kind == "gap":
            step, values, expected = at + 1, [1.0], errors.StepGap
        elif last is None or last[1] != at:
            return
        elif kind == "differs":
            step, values, expected = last[0], [-1.0] * (last[1] - last[0]), errors.ValuesDiffer
        else:
            step, values, expected = last[0], [-1.0] * (last[1] - last[0] + 1), errors.StepConflict
        call = self.houses[truth.house].step(truth.session, *values, step=step)
        with pytest.raises((expected, errors.SessionMoved)):
            self.do(call)

    @rule(name=st.sampled_from(IDS), count=st.integers(1, 5), turns=st.integers(0, 3))
    def cancel(self, name: str, count: int, turns: int) -> None:
        """A stream breaks with a message in hand: whether that is applied nobody knows."""
        truth = self.named(name, streaming=True)
        if truth is None or truth.session is None:
            return
        session = truth.session

        async def cancelled() -> None:
            sending = asyncio.create_task(self.send(truth, truth.num_answered, truth.num_answered + count))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait([sending])
            await until_settled(session)  # its run may be under way still

        self.do(cancelled())
        self.drop(name)

    @rule(name=st.sampled_from(IDS))
    def drop(self, name: str) -> None:
        """A stream ends."""
        if (truth := self.named(name)) is None:
            return
        house, session, owner = truth.house, truth.session, truth.owner
        truth.leave()
        if house is not None and session is not None:
            self.do(self.houses[house].keeper.detach_many([session], owner))

    @rule(name=st.sampled_from(IDS))
    def flush(self, name: str) -> None:
        truth = self.named(name, streaming=True)
        if truth is None or truth.house is None or truth.session is None:
            return
        session, house = truth.session, truth.house
        try:
            self.do(self.houses[house].checkpointer.until_stored(session, session.step))
        except errors.SessionMoved:
            truth.leave()
        except errors.StoreUnavailable:
            assert self.lines[house].is_cut
            truth.leave()
        else:
            assert session.durable_step == session.step
            self.note_durable(truth)

    @rule(house=st.integers(0, 1))
    def checkpoint(self, house: int) -> None:
        """Write what is behind, as the interval does."""

        kept = [each for each in self.houses[house].table if each.durability is not Durability.NONE]
        self.do(self.houses[house].checkpointer.store_many(kept))
        self.do(self.quiet(house))

    async def quiet(self, house: int) -> None:
        """Wait until nothing is on its way to the store, and nothing that was refused is judged."""
        checkpointer = self.houses[house].checkpointer
        table = self.houses[house].table
        await until(
            lambda: not checkpointer._writer._judging and not any(each.is_writing for each in table), 0.001
        )

    @rule(house=st.integers(0, 1))
    def crash(self, house: int) -> None:
        """A house ends without a word, and another one takes its place."""

        async def killed() -> None:
            gone = self.houses[house]
            await gone.scheduler.close()
            await gone.keeper.close()
            gone._explain_thread.shutdown()

        self.lines[house].is_cut = True  # nothing more is written
        self.do(killed())
        for truth in self.truths.values():
            if truth.house == house:
                truth.leave()
        self.houses[house] = self.new_house(house)

    @rule(house=st.integers(0, 1))
    def cut_or_mend(self, house: int) -> None:
        """The store goes away from a house, or comes back."""
        line, checkpointer = self.lines[house], self.houses[house].checkpointer
        line.is_cut = not line.is_cut
        self.do(checkpointer.outage.ask())
        checkpointer._note_outage()

    @precondition(lambda self: not any(line.is_cut for line in self.lines))
    @rule(seconds=st.sampled_from([1.0, 20.0, 150.0]))
    def pass_time(self, seconds: float) -> None:
        """Idle sessions are spilled; what nobody has open for too long expires, wherever it is."""
        self.now_s += seconds

        async def swept() -> None:
            for house in self.houses:
                house.now_s = self.now_s
                house.checkpointer.refresh(self.now_s - TTL_S / 8)
            for place, house in enumerate(self.houses):
                urgent = house.checkpointer._urgent
                await until(lambda urgent=urgent: not urgent, 0.001)
                await self.quiet(place)
            for house in self.houses:
                await house.evictor.sweep()

        self.do(swept())
        self.forget_expired()

    def forget_expired(self) -> None:
        for name, truth in list(self.truths.items()):
            try:
                self.do(self.houses[0].store.read(name))
            except errors.SessionExpired:
                assert not truth.is_streaming, "a session expired under its stream"
                del self.truths[name]
                self.ended[name] = errors.SessionExpired

    @rule(name=st.sampled_from(IDS), house=st.integers(0, 1), fork=st.sampled_from(IDS))
    def fork(self, name: str, house: int, fork: str) -> None:
        source = self.named(name)
        if source is None or fork in self.truths:
            return
        live = self.houses[house].table.get(name)
        # A house that has lost the session and has not noticed yet forks what it holds: a read is no more than that.
        incarnation = source.incarnation if live is None else live.incarnation
        try:
            view = self.do(self.houses[house].management.fork(name, fork, 0))
        except errors.StoreUnavailable:
            assert self.lines[house].is_cut
            return
        step = view.record.step
        self.ended.pop(fork, None)
        self.truths[fork] = truth = self.begun(view.record.incarnation, Durability.BEHIND)
        truth.values += self.values_of[incarnation][:step]
        truth.num_answered = truth.durable_step = step

    @rule(name=st.sampled_from(IDS), house=st.integers(0, 1))
    def reset(self, name: str, house: int) -> None:
        truth = self.named(name)
        if truth is None:
            return
        try:
            view = self.do(self.houses[house].management.reset(name))
        except (errors.StoreUnavailable, errors.SessionMoved):
            return
        finally:
            truth.leave()
        assert view.record.incarnation != truth.incarnation
        self.truths[name] = self.begun(view.record.incarnation, truth.durability)

    @rule(name=st.sampled_from(IDS), house=st.integers(0, 1))
    def delete(self, name: str, house: int) -> None:
        truth = self.named(name)
        if truth is None:
            return
        try:
            self.do(self.houses[house].management.delete(name))
        except errors.StoreUnavailable:
            assert self.lines[house].is_cut
            truth.leave()
            return
        del self.truths[name]

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def every_copy_is_a_sum_of_values_that_were_sent(self) -> None:
        for house in self.houses:
            house.check()
        for name, truth in self.truths.items():
            for copy in self.copies(name):
                if copy.states:
                    assert copy.states[0].item() == sum(self.values_of[copy.incarnation][: copy.step])
                if copy.incarnation == truth.incarnation:
                    may_be_at = [truth.num_answered, (truth.unanswered or (0, 0))[1]]
                    assert copy.epoch < truth.epoch or copy.step <= max(may_be_at)

    @invariant()
    def what_was_called_durable_is_stored(self) -> None:
        for name, truth in self.truths.items():
            stored = self.stored(name)
            assert stored is not None
            assert stored.incarnation == truth.incarnation
            assert stored.step >= truth.durable_step

    @invariant()
    def what_ended_is_not_there(self) -> None:
        for name in self.ended:
            with pytest.raises(errors.SessionExpired):
                self.stored(name)

    def copies(self, name: str) -> list[SessionRecord]:
        live = [house.table.get(name) for house in self.houses]
        copies = [session.record() for session in live if session is not None and not session.is_busy]
        stored = self.stored(name)
        return copies if stored is None else [*copies, stored]

    def stored(self, name: str) -> SessionRecord | None:
        """Return what is stored of a session, past all lines."""
        return self.lines[0]._backend.read(name)


def fake(_folder: Path) -> Callable[[], Any]:
    kept = Kept()
    return lambda: FakeBackend(kept)


def sqlite(folder: Path) -> Callable[[], Any]:
    return lambda: SqliteBackend(folder / "sessions.db", 1_000)


@pytest.mark.parametrize(("make_backend", "num_examples"), [(fake, 60), (sqlite, 20)])
def test_any_order_of_events_leaves_every_session_what_it_must_be(
    adders: Path, monkeypatch: pytest.MonkeyPatch, make_backend: Any, num_examples: int
):
    monkeypatch.setattr("longshort_service.checkpointer.TICK_S", 0.005)

    class Played(Machine):
        models = adders

    Played.make_backend = staticmethod(make_backend)
    limits = settings(
        max_examples=num_examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Played, settings=limits)
