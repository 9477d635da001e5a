"""Sessions without a service: a model as the table needs it, with rows and a signature but no engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from longshort_service.arena import Arena, Slot
from longshort_service.columns import SessionColumns
from longshort_service.host_states import HostStates, layouts_of
from longshort_service.record import Origin
from longshort_service.session import Answers, Replay, Session
from longshort_service.sessions import SessionTable
from longshort_service.signature import Channel, MissingValue, Signature, State
from longshort_service.stores.base import Birth, OpenMode, StoreRequest

if TYPE_CHECKING:
    from longshort_service.batching import Job
    from longshort_service.errors import ServiceError
    from numpy.typing import NDArray

NOW_S = 1_000.0
HIDDEN = 2


def signature_of(
    *, features: int = 1, missing: MissingValue = MissingValue.REJECT, fingerprint: str = "f1"
) -> Signature:
    """Return the signature of a model with one state `[1, batch, HIDDEN]`."""
    return Signature(
        name="toy",
        features=tuple(Channel(f"x{k}") for k in range(features)),
        outputs=(Channel("y"),),
        states=(State("h0", "hn", (1, -1, HIDDEN), 1),),
        missing=missing,
        fingerprint=fingerprint,
    )


@dataclass(eq=False)
class TableModel:
    """A ServedModel of `num_rows` rows."""

    num_rows: int = 4
    name: str = "toy"
    version: int = 1
    max_piece_steps: int = 4
    signature: Signature = field(default_factory=signature_of)
    states: HostStates = field(init=False)
    arena: Arena = field(init=False)
    columns: SessionColumns = field(init=False)
    origin: Origin = field(init=False)

    def __post_init__(self) -> None:
        self.origin = Origin(self.name, self.version, self.signature.fingerprint)
        self.states = HostStates(layouts_of(self.signature), self.num_rows)
        self.arena = Arena(self.states, self.num_rows)
        self.columns = SessionColumns(
            self.num_rows,
            self.signature.value_row.width,
            self.signature.answer_row.width,
            repeats_last=self.signature.missing is MissingValue.REPEAT_LAST,
        )

    def piece_steps(self, num_rows: int) -> int:
        """See ServedModel: many rows go in shorter pieces than one."""
        return max(1, self.max_piece_steps // num_rows)


@dataclass
class RecordingOwner:
    """A stream that remembers how it lost its sessions."""

    client_id: str = "me"
    lost: list[str] = field(default_factory=list)  # ids
    ends: list[ServiceError] = field(default_factory=list)
    durable_steps: dict[str, int] = field(default_factory=dict)  # by id, as told

    def lose(self, session_id: str, error: ServiceError) -> None:
        self.lost.append(session_id)
        self.ends.append(error)

    def stored(self, session_id: str, durable_step: int) -> None:
        self.durable_steps[session_id] = durable_step


def asked(session_id: str, mode: OpenMode = OpenMode.OPEN, client_id: str = "") -> StoreRequest:
    """Return what another server asks the store for a session, of model "adder" where it begins."""
    birth = None if mode is OpenMode.OPEN else Birth(Origin("adder", 1, "f1"), incarnation=99)
    return StoreRequest(session_id, mode, client_id, birth)


def rows_of(*values: float) -> NDArray[np.float32]:
    """Return values as rows `[time, 1]`."""
    return np.array(values, np.float32)[:, None]


def finish(job: Job, model: TableModel) -> None:
    """Do to a job what the scheduler does when its last run has ended: answers are twice the values."""
    assert job.owner is not None
    job.outputs = (2 * job.values[:, :, :1]).astype(np.float32)
    job.num_done = job.num_steps
    if job.scratch is not None:
        model.arena.free(job.scratch)
        job.scratch = None
    job.owner.settled(job)


def move(
    session: Session[TableModel],
    values: NDArray[np.float32],
    step: int | None = None,
    answers: Answers = Answers.ALL,
    now_s: float = NOW_S,
) -> NDArray[np.float32]:
    """Apply a message to a session and return its answer."""
    work = session.begin(values, step, answers, now_s)
    if isinstance(work, Replay):
        return work.outputs
    finish(work, session.model)
    return last_answer(session)


def last_answer(session: Session[TableModel]) -> NDArray[np.float32]:
    """Return the stored answer of a session that has one."""
    answer = session.model.columns.last_answer(session.row)
    assert answer is not None
    return answer


def fill_row(model: TableModel, slot: Slot, value: float) -> None:
    """Set every element of a row."""
    model.arena.write(slot, [np.full((1, HIDDEN), value, np.float32)])


def new_session(
    model: TableModel, session_id: str = "s", now_s: float = NOW_S
) -> tuple[SessionTable[TableModel], Session[TableModel]]:
    """Return a table with one session at step 0."""
    table: SessionTable[TableModel] = SessionTable()
    return table, table.create(session_id, model, epoch=1, incarnation=7, now_s=now_s)
