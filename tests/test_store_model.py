"""Any run of calls to a store gives what a dictionary gives: Hypothesis against a plain model of the contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import valkey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from longshort_service import errors
from longshort_service.record import SessionRecord, birth
from longshort_service.stores.base import Found, OpenMode, Refusal, StoreOpening
from longshort_service.stores.opening import make_store
from store_records import BIRTH, TOY, asks, record_of, same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshort_service.stores.base import Store
    from valkey import Valkey

    Run = Callable[..., object]

MAX_ENTRIES = 3
IDS = ("a", "ab", "b", "c")

# An epoch is named by how many drawings of the session it lies back: 0 is the newest.
OPEN = st.tuples(
    st.just("open"),
    st.lists(
        st.tuples(
            st.sampled_from(IDS), st.sampled_from(OpenMode), st.sampled_from(["me", "you"]), st.booleans()
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda one: one[0],
    ),
)
WRITE = st.tuples(
    st.just("write"),
    st.lists(
        st.tuples(st.sampled_from(IDS), st.integers(0, 2), st.integers(1, 9), st.booleans()),
        min_size=1,
        max_size=3,
        unique_by=lambda one: one[0],
    ),
)
BURY = st.tuples(st.just("bury"), st.sampled_from(IDS), st.integers(0, 1), st.integers(0, 60))
DELETE = st.tuples(st.just("delete"), st.sampled_from(IDS))
FORGET = st.tuples(st.just("forget"), st.integers(0, 60))
LOOK = st.tuples(st.just("look"), st.sampled_from(["", "a", "b", "c"]), st.integers(0, 60))
CALLS = st.lists(st.one_of(OPEN, OPEN, WRITE, WRITE, BURY, DELETE, FORGET, LOOK), max_size=30)


@dataclass
class Entry:
    """What is known of a session."""

    epoch: int
    client_id: str
    record: SessionRecord
    is_gapless: bool


@dataclass
class Model:
    """The contract as dictionaries."""

    store: Store
    now_s: float = 0.0
    entries: dict[str, Entry] = field(default_factory=dict)
    tombstones: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, list[int]] = field(default_factory=dict)  # epochs of each session, the newest last

    def epoch(self, session_id: str, back: int) -> int:
        epochs = self.drawn.get(session_id, [])
        return epochs[-1 - back] if back < len(epochs) else 1

    def record(self, session_id: str) -> SessionRecord:
        entry = self.entries[session_id]
        fields = {name: getattr(entry.record, name) for name in SessionRecord.__slots__}
        return SessionRecord(**{**fields, "is_gapless": entry.is_gapless})

    async def open(self, wanted: list[tuple[str, OpenMode, str, bool]]) -> None:
        requests = [
            asks(name, mode, who, BIRTH if has_birth else None) for name, mode, who, has_birth in wanted
        ]
        for request, opening in zip(requests, await self.store.open_many(requests, self.now_s), strict=True):
            name, entry = request.session_id, self.entries.get(request.session_id)
            if entry is not None and request.mode is OpenMode.CREATE:
                assert isinstance(opening, StoreOpening)
                assert opening.found is Found.EXISTS
            elif entry is not None:
                assert isinstance(opening, StoreOpening)
                assert (opening.found, opening.previous_epoch) == (Found.OPENED, entry.epoch)
                assert same(opening.record, self.record(name))
                self._draw(name, opening.epoch)
                entry.epoch, entry.client_id, entry.is_gapless = opening.epoch, request.client_id, False
            elif request.mode is not OpenMode.CREATE and name in self.tombstones:
                assert opening == StoreOpening(Found.EXPIRED)
            elif request.mode is OpenMode.OPEN or request.birth is None:
                assert opening == StoreOpening(Found.ABSENT)
            elif len(self.entries) >= MAX_ENTRIES:
                assert isinstance(opening, errors.SessionsExhausted)
            else:
                assert isinstance(opening, StoreOpening)
                assert opening == StoreOpening(Found.CREATED, 0, opening.epoch)
                self._draw(name, opening.epoch)
                born = birth(name, TOY, BIRTH.incarnation, opening.epoch, self.now_s)
                self.entries[name] = Entry(opening.epoch, request.client_id, born, is_gapless=False)
                self.tombstones.pop(name, None)

    def _draw(self, session_id: str, epoch: int) -> None:
        assert epoch > max((drawn for epochs in self.drawn.values() for drawn in epochs), default=0)
        self.drawn.setdefault(session_id, []).append(epoch)

    async def write(self, wanted: list[tuple[str, int, int, bool]]) -> None:
        records = []
        for name, back, step, is_gapless in wanted:
            record = record_of(name, self.epoch(name, back), self.now_s, step=step)
            fields = {field: getattr(record, field) for field in SessionRecord.__slots__}
            records.append(SessionRecord(**{**fields, "is_gapless": is_gapless}))
        for record, refusal in zip(records, await self.store.write(records), strict=True):
            entry = self.entries.get(record.session_id)
            if entry is None:
                assert refusal == Refusal(is_gone=True)
            elif entry.epoch != record.epoch:
                assert refusal is not None
                assert (refusal.is_gone, refusal.client_id) == (False, entry.client_id)
                assert refusal.epoch == entry.epoch
            else:
                assert refusal is None
                entry.record, entry.is_gapless = record, record.is_gapless

    async def bury(self, name: str, back: int, before_s: int) -> None:
        entry, epoch = self.entries.get(name), self.epoch(name, back)
        is_due = entry is not None and entry.epoch == epoch and entry.record.last_used_s < before_s
        assert await self.store.bury_many([(name, epoch)], float(before_s), self.now_s) == [is_due]
        if is_due:
            del self.entries[name]
            self.tombstones[name] = self.now_s

    async def delete(self, name: str) -> None:
        assert await self.store.delete_many([(name, None)]) == [self.entries.pop(name, None) is not None]

    async def forget(self, before_s: int) -> None:
        old = [name for name, made_s in self.tombstones.items() if made_s < before_s]
        assert await self.store.forget_tombstones(float(before_s)) == len(old)
        for name in old:
            del self.tombstones[name]

    async def look(self, prefix: str, before_s: int) -> None:
        names = sorted(name for name in self.entries if name.startswith(prefix))
        assert await self.store.list_ids(prefix, "", 9) == names
        assert await self.store.list_ids(prefix, "ab", 1) == [name for name in names if name > "ab"][:1]
        idle = [
            (name, entry.epoch) for name, entry in self.entries.items() if entry.record.last_used_s < before_s
        ]
        assert sorted(await self.store.idle_since(float(before_s), 9)) == sorted(idle)
        assert self.store.num_records() == len(self.entries)
        assert await self.store.has_records_of("toy", 1) is bool(self.entries)
        for name in IDS:
            if name in self.tombstones:
                with pytest.raises(errors.SessionExpired):
                    await self.store.read(name)
            else:
                want = self.record(name) if name in self.entries else None
                assert same(await self.store.read(name), want)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    started = valkey.start(tmp_path_factory.mktemp("valkey"))
    yield started
    started.kill()


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server: Valkey, run: Run
) -> Iterator[Store]:
    file = tmp_path_factory.mktemp("sqlite") / "s.db"
    url = server.url if request.param == "redis" else f"sqlite:///{file}"
    made = make_store(url, max_entries=MAX_ENTRIES, environ={})
    yield made
    run(made.close())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
def test_store_does_what_a_dictionary_does(store: Store, run: Run, calls: list[tuple[str, ...]]):
    async def scenario() -> None:
        await store.delete_many([(name, None) for name in IDS])
        await store.forget_tombstones(1e12)
        model = Model(store)
        for name, *arguments in calls:
            model.now_s += 2.0
            await getattr(model, name)(*arguments)
        await model.look("", 60)

    run(scenario())
