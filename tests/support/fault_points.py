"""Every point between receiving a message and sending its answer where a crash can fall, in order, by name.

Owns where each point is in the service, on each of the three ways that a message has through it. The openings, the runs
and the writes of all three are the same ones. `install` wraps the seams of one point in a process that is to kill
itself there.
"""

from __future__ import annotations

from typing import Any

from fault_seams import FaultPoint, Fuse, Phase, after, before, wrap
from longshort.v1 import sequence_pb2
from longshort_service.checkpointer import Checkpointer
from longshort_service.columns import SessionColumns
from longshort_service.engine import Engine
from longshort_service.handlers.edge import Edge
from longshort_service.handlers.frames import FrameConversation
from longshort_service.handlers.sequence import SequenceHandler
from longshort_service.handlers.stream import StreamConversation
from longshort_service.keeper import Keeper
from longshort_service.opener import Opener
from longshort_service.protocol import StreamState
from longshort_service.scheduler import Scheduler
from longshort_service.session_writer import SessionWriter
from longshort_service.small_run import SmallRun
from longshort_service.stores.memory import MemoryStore
from longshort_service.stores.redis import RedisBackend
from longshort_service.stores.sqlite import SqliteBackend
from longshort_service.stores.threaded import ThreadedStore

_STORES = (MemoryStore, ThreadedStore)
_BACKENDS = (SqliteBackend, RedisBackend)
_SUBMIT = ((Scheduler, "submit"), (Scheduler, "submit_single"))  # a message of several steps, and of one
_SETTLE = ((SessionColumns, "settle"), (SessionColumns, "settle_one"))


def _is_opening(stream: Any, *_: Any) -> bool:
    return bool(stream._protocol.state is StreamState.OPENING)


def _is_answering(stream: Any, *_: Any) -> bool:
    return bool(stream._protocol.state is StreamState.ANSWERING)


def _is_open(stream: Any, *_: Any) -> bool:
    return stream._session is not None


def _has_rows(_frames: Any, raw: bytes) -> bool:
    return bool(sequence_pb2.StreamFramesRequest.FromString(raw).handles)


def _works_on_rows(_frames: Any, work: Any, *_: Any) -> bool:
    return bool(work.parts)


def _answers_rows(_frames: Any, raw: bytes) -> bool:
    return bool(sequence_pb2.StreamFramesResponse.FromString(raw).handles)


def _answers_openings(_frames: Any, raw: bytes) -> bool:
    return bool(sequence_pb2.StreamFramesResponse.FromString(raw).opened)


def _names_sessions(_keeper: Any, sessions: Any, *_: Any) -> bool:
    return bool(sessions)  # a frame that opens gives back what its handles named before: nothing


_OPENING = (
    FaultPoint(
        "its epoch is raised in the store and not in memory",
        Phase.OPENING,
        after(*((store, "open_many") for store in _STORES)),
    ),
    FaultPoint("its session has a row and no stream", Phase.OPENING, after((Opener, "bring"))),
)
_STREAM_OPENING = (
    FaultPoint("an opening is received", Phase.OPENING, before((Keeper, "open_many"))),
    *_OPENING,
    FaultPoint("its stream has the session", Phase.OPENING, after((Keeper, "open_many"))),
)
_RUN = (
    FaultPoint("it is judged and not queued", Phase.MESSAGE, before(*_SUBMIT)),
    FaultPoint("it is queued", Phase.MESSAGE, after(*_SUBMIT)),
    FaultPoint(
        "it has run and its states are not written", Phase.MESSAGE, after((Engine, "run"), (SmallRun, "run"))
    ),
    FaultPoint("its states are written and its step is not", Phase.MESSAGE, before(*_SETTLE)),
    FaultPoint("states, step and stored answer have moved", Phase.MESSAGE, after(*_SETTLE)),
)
_WRITE = (
    FaultPoint("a session is copied for the store", Phase.WRITE, after((SessionWriter, "copy"))),
    FaultPoint("its record is handed to the store", Phase.WRITE, before((ThreadedStore, "write"))),
    FaultPoint(
        "it has the store's thread", Phase.WRITE, before(*((backend, "write") for backend in _BACKENDS))
    ),
    FaultPoint("it is stored", Phase.WRITE, after(*((backend, "write") for backend in _BACKENDS))),
    FaultPoint("it is durable and not noted", Phase.WRITE, after((ThreadedStore, "write"))),
    FaultPoint("it is noted", Phase.WRITE, after((SessionWriter, "write"))),
)
_HALF_CLOSE = (
    FaultPoint(
        "a half-closed stream still has its session",
        Phase.HALF_CLOSE,
        before((Keeper, "detach"), holds=_names_sessions),
    ),
    FaultPoint(
        "a half-closed stream has let go",
        Phase.HALF_CLOSE,
        after((Keeper, "detach"), holds=_names_sessions),
    ),
)
_DRAIN = (
    FaultPoint("a drain holds the streams", Phase.DRAIN, after((SequenceHandler, "hold_streams"))),
    FaultPoint("a drain has stored the sessions", Phase.DRAIN, after((Checkpointer, "store_all"))),
    FaultPoint("a drain has ended the streams", Phase.DRAIN, after((SequenceHandler, "end_streams"))),
    FaultPoint("a drain waits for no call any more", Phase.DRAIN, after((Edge, "until_quiet"))),
    FaultPoint("a drain has closed the store", Phase.DRAIN, after((Keeper, "close"))),
)

STREAM_POINTS = (
    *_STREAM_OPENING,
    FaultPoint("opened is written", Phase.OPENING, after((StreamConversation, "_answer"), holds=_is_opening)),
    FaultPoint("a message is received", Phase.MESSAGE, before((StreamConversation, "_take"), holds=_is_open)),
    *_RUN,
    FaultPoint(
        "its answer is about to be written",
        Phase.MESSAGE,
        before((StreamConversation, "_answer"), holds=_is_answering),
    ),
    FaultPoint(
        "its answer is written", Phase.MESSAGE, after((StreamConversation, "_answer"), holds=_is_answering)
    ),
    *_WRITE,
    FaultPoint("a flush is received", Phase.FLUSH, before((StreamConversation, "_flush"))),
    FaultPoint("a flush is done and not answered", Phase.FLUSH, after((StreamConversation, "_flush"))),
    *_HALF_CLOSE,
    *_DRAIN,
)
# A frame of messages of two lengths makes two jobs: the first of them may be anywhere when the second is not.
FRAME_POINTS = (
    *_STREAM_OPENING,
    FaultPoint("handles name the sessions", Phase.OPENING, after((FrameConversation, "_open"))),
    FaultPoint(
        "a frame's openings are answered",
        Phase.OPENING,
        after((FrameConversation, "_answer"), holds=_answers_openings),
    ),
    FaultPoint("a frame is received", Phase.MESSAGE, before((FrameConversation, "_take"), holds=_has_rows)),
    *_RUN,
    FaultPoint("a frame's jobs have ended", Phase.MESSAGE, before((FrameConversation, "_waiting_for_store"))),
    FaultPoint(
        "a frame's rows wait for the store no more",
        Phase.MESSAGE,
        before((FrameConversation, "_response"), holds=_works_on_rows),
    ),
    FaultPoint(
        "a frame's answer is about to be written",
        Phase.MESSAGE,
        before((FrameConversation, "_answer"), holds=_answers_rows),
    ),
    FaultPoint(
        "a frame's answer is written",
        Phase.MESSAGE,
        after((FrameConversation, "_answer"), holds=_answers_rows),
    ),
    *_WRITE,
    FaultPoint("a frame's flush is received", Phase.FLUSH, before((FrameConversation, "_flush"))),
    FaultPoint("one of a frame's flushes is done", Phase.FLUSH, after((FrameConversation, "_flush_one"))),
    FaultPoint(
        "a frame's flushes are done and not answered", Phase.FLUSH, after((FrameConversation, "_flush"))
    ),
    *_HALF_CLOSE,
    *_DRAIN,
)
STEP_POINTS = (
    *_OPENING,
    FaultPoint("a call is received", Phase.MESSAGE, before((SequenceHandler, "_step"))),
    FaultPoint("a call has its session", Phase.MESSAGE, after((Keeper, "ensure"))),
    *_RUN,
    FaultPoint("a call waits for the store", Phase.MESSAGE, before((Checkpointer, "until_stored"))),
    FaultPoint("a call waits for the store no more", Phase.MESSAGE, after((Checkpointer, "until_stored"))),
    FaultPoint("a call's answer is made", Phase.MESSAGE, after((SequenceHandler, "_step"))),
    *_WRITE,
    *_DRAIN,
)


def install(name: str, arrival: int) -> Fuse:
    """Have this process kill itself at a point, once the fuse that is returned is lit."""
    point = next(each for each in (*STREAM_POINTS, *FRAME_POINTS, *STEP_POINTS) if each.name == name)
    fuse = Fuse(arrival)
    for seam in point.seams:
        wrap(seam, fuse)
    return fuse
