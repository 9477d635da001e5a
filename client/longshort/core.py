"""One session's conversation with its server, without I/O: what to send, what answers and failures mean.

It owns step numbers, the unanswered message, the values that may have to be sent again, the session's end.
It knows no sockets, threads or clocks. A shell (`session`, `aio`) asks `next_action` and does what it says,
until Done or Failed. A shell that stops before (timeout, cancellation) drops its stream and calls
`abandoned` or `timed_out`.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

from longshort import errors, recovery, status
from longshort.actions import RECEIVE, Action, Connect, Done, Failed, Send, Wait
from longshort.arrays import check_ahead, whole_number
from longshort.journal import Journal, Message
from longshort.named import answer_rows
from longshort.recovery import Verdict
from longshort.tasks import Expected, FlushTask, ForecastTask, StepsTask, Task
from longshort.v1 import sequence_pb2, types_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longshort.backoff import Backoff
    from longshort.errors import LongshortError
    from longshort.opening import Opening

MAX_KEPT_STEPS = 16_384  # 5 MB a session at one step a message; beyond it the server is asked to store


class Phase(Enum):
    """Where the conversation stands."""

    DISCONNECTED = "disconnected"  # no stream, or one that is to be replaced
    OPENING = "opening"  # `open` was sent
    OPEN = "open"  # the server has answered it
    ENDED = "ended"  # nothing can be done any more


class SessionCore:
    """The conversation of one session. Its methods do no I/O and never block.

    One task at a time: a `begin_*` method, then `next_action` until Done or Failed. What cannot begin raises
    from `begin_*` and changes nothing.
    """

    def __init__(self, opening: Opening, backoff: Backoff, max_kept_steps: int = MAX_KEPT_STEPS) -> None:
        self.position = 0  # the step after the last answer
        self.durable_step = 0
        self.in_doubt = False
        self.opened = sequence_pb2.Opened()  # as last opened; empty before
        self._opening = opening
        self._backoff = backoff
        self._phase = Phase.DISCONNECTED
        self._expected = Expected.NOTHING
        self._task: Task | None = None
        self._journal = Journal(max_kept_steps)
        self._resend: deque[Message] = deque()
        self._last: tuple[Message, sequence_pb2.Answer] | None = None
        self._was_open = False
        self._epoch = 0  # the greatest seen
        self._wait: Wait | None = None
        self._outcome: Done | Failed | None = None
        self._failure: LongshortError | None = None  # why there is no stream
        self._end: LongshortError | None = None  # why there is no session any more

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._end is not None

    @property
    def has_stream(self) -> bool:
        """Whether it goes on with the stream of the last Connect; where not, the shell may let it go."""
        return self._phase in (Phase.OPENING, Phase.OPEN)

    @property
    def is_open(self) -> bool:
        """Whether a server has opened the session on that stream."""
        return self._phase is Phase.OPEN

    # What the caller asks

    def begin_steps(self, rows: NDArray[Any], answers: types_pb2.Answers, at: int | None) -> None:
        """Ask for [time, features] f32, or [time] of fields, to be taken, from the next step or the caller's number on.

        The last answered message again is answered from here.
        """
        self.check_can_begin()
        first_step = self.position if at is None else whole_number(at, "at", 2**63)
        if at is not None and self._last is not None:
            message, answer = self._last
            if message.same_values(Message(first_step, rows, answers)):
                self._outcome = Done(answer_rows(answer, self.opened.num_outputs))
                return
        self._task = StepsTask(rows, first_step, answers)

    def begin_forecast(self, horizon: int, known: NDArray[np.float32] | None = None) -> None:
        """Ask for the model's own continuation, beside what will be known; the session does not move."""
        self.check_can_begin()
        horizon = whole_number(horizon, "horizon", 2**32)
        if known is not None:
            check_ahead(known, horizon)
        self._task = ForecastTask(horizon, known)

    def begin_flush(self) -> None:
        """Ask for the moment when all that was answered is stored."""
        self.check_can_begin()
        self._task = FlushTask()

    def begin_retry(self) -> None:
        """Take up the task that is in doubt, where it was left."""
        if not self.in_doubt and self._end is None:
            raise errors.FailedPrecondition("no call of this session is in doubt", reason="NOT_IN_DOUBT")
        self.check_can_begin(in_doubt=True)
        self.in_doubt = False

    def begin_reopening(self) -> None:
        """Ask for a new stream, and for the server to be brought up to the last answer."""
        self.check_can_begin()
        self._disconnect()

    def end(self, error: LongshortError) -> None:
        """End the conversation: whatever is asked from now on raises an error like this one."""
        self._disconnect()
        self._phase = Phase.ENDED
        self._end = error
        self._task = None
        self._outcome = None
        self._wait = None
        self.in_doubt = False

    def check_can_begin(self, *, in_doubt: bool = False) -> None:
        """Raise where nothing can be asked; `in_doubt` lets a session in doubt pass."""
        if self._end is not None:
            raise recovery.again(self._end)
        if self.in_doubt and not in_doubt:
            raise recovery.doubt()

    # What the shell does

    def next_action(self) -> Action:
        """Return what the shell is to do now."""
        if self._end is not None:
            return Failed(recovery.again(self._end))
        if self._outcome is not None:
            return self._take_outcome(self._outcome)
        if self._wait is not None:
            wait, self._wait = self._wait, None
            return wait
        if self._phase is Phase.DISCONNECTED:
            self._phase = Phase.OPENING
            return Connect(self._opening.request(self.opened if self._was_open else None, self._epoch))
        if self._phase is Phase.OPENING or self._expected is not Expected.NOTHING:
            return RECEIVE
        return self._next_on_open_stream()

    def _take_outcome(self, outcome: Done | Failed) -> Done | Failed:
        self._outcome = None
        if not self.in_doubt:
            self._task = None
        return outcome

    def _next_on_open_stream(self) -> Send | Done:
        task = self._task
        if self._resend:
            return self._send(self._resend[0].request(), Expected.RESENT)
        if isinstance(task, StepsTask) and (task.inflight is not None or not self._journal.is_full):
            message = task.next_message(self.opened.max_steps)
            return self._send(message.request(), Expected.VALUES)
        if isinstance(task, ForecastTask):
            return self._send(task.request(), Expected.FORECAST)
        if task is not None:  # a flush, or values that have to wait for one
            return self._send(FlushTask.request(), Expected.FLUSHED)
        return Done(None)

    def _send(self, request: sequence_pb2.StreamRequest, expected: Expected) -> Send:
        self._expected = expected
        return Send(request)

    def received(self, response: sequence_pb2.StreamResponse) -> None:
        """Take one message of the stream."""
        kind = response.WhichOneof("kind")
        if kind == "answer" and self._expected is not Expected.NOTHING:
            self._on_answer(response.answer)
        elif kind == "durable":
            self._stored_up_to(response.durable.durable_step)
        elif kind == "opened" and self._phase is Phase.OPENING:
            self._on_opened(response.opened)
        elif kind == "flushed" and self._expected is Expected.FLUSHED:
            self._on_flushed(response.flushed.durable_step)
        elif kind == "error" and self._phase is Phase.OPENING:
            self.disconnected(status.from_message(response.error))
        elif kind == "error" and self._expected is not Expected.NOTHING:
            self._on_error(status.from_message(response.error))
        else:
            self._violated(f"{kind} came where {self._expected.value} was awaited")

    def disconnected(self, failure: LongshortError) -> None:
        """Take the end of the stream, whatever ended it: reconnect, or fail what was asked."""
        if self._end is not None:
            return
        expected = self._disconnect()
        if not self._was_open and self._opening.was_ours(failure):
            return
        self._failure = failure
        verdict = recovery.judge(failure, client_id=self._opening.client_id, was_open=self._was_open)
        if verdict is Verdict.RETRY:
            self._pause(failure)
        elif verdict is Verdict.LOST:
            self.end(recovery.ending(failure, self._opening.session_id, self.position))
        elif expected is Expected.VALUES and recovery.refuses(failure):
            self._refuse_task(failure)
        else:
            self._keep_sent_values()
            self._outcome = Failed(failure)

    def abandoned(self) -> None:
        """Take that the shell stops in the middle: values that were sent are in doubt, all else withdrawn."""
        self._disconnect()
        self._outcome = None
        self._wait = None
        self._keep_sent_values()

    def timed_out(self, *, gave_up: bool = False) -> LongshortError:
        """Take that the caller's time is up, or that no server was found for too long; return the error to raise.

        What becomes of the task is as in `abandoned`.
        """
        cause = self._failure
        self.abandoned()
        return recovery.time_is_up(cause, in_doubt=self.in_doubt, gave_up=gave_up)

    # What messages mean

    def _on_opened(self, opened: sequence_pb2.Opened) -> None:
        before, self.opened = self.opened, opened
        self._epoch = max(self._epoch, opened.epoch)
        self._phase = Phase.OPEN
        if self._failure is not None and self._failure.reason != "STORE_UNAVAILABLE":
            # That of the store it may still be: a session in memory is opened without it.
            self._failure = None
        self._journal.keeps = opened.durability != types_pb2.DURABILITY_NONE
        if not self._was_open:
            self._was_open = True
            self._opening.note_first(opened)
            self.position = opened.step
            self._journal.begin(opened.step)
        elif opened.incarnation != before.incarnation:
            self.end(recovery.replaced())
            return
        elif not self._can_catch_up(opened.step):
            oldest_step = self._journal.start_step if self._journal.keeps else None
            self.end(recovery.does_not_fit(opened.step, self.position, oldest_step))
            return
        self.durable_step = opened.durable_step  # of another server, say: it may be less than the former's
        self._journal.trim(opened.durable_step)

    def _can_catch_up(self, server_step: int) -> bool:
        """Plan what brings a reopened server to where the answers here end; return whether it is possible."""
        if server_step <= self.position:
            missing = self._journal.since(server_step, self.opened.max_steps)
            self._resend.extend(missing or ())
            return missing is not None
        # Ahead of all answers here it can only be by the unanswered message, which is then sent unchanged.
        inflight = self._task.inflight if isinstance(self._task, StepsTask) else None
        return (
            inflight is not None and inflight.first_step == self.position and inflight.end_step == server_step
        )

    def _on_answer(self, answer: sequence_pb2.Answer) -> None:
        expected, self._expected = self._expected, Expected.NOTHING
        self._backoff.reset()
        self._failure = None
        if expected is Expected.VALUES and isinstance(self._task, StepsTask):
            self._on_values_answer(self._task, answer)
        elif expected is Expected.RESENT and answer.step == self._resend[0].end_step:
            self._resend.popleft()
        elif expected is Expected.FORECAST and answer.forecast:
            self._outcome = Done(answer_rows(answer, self.opened.num_outputs))
        else:
            self._violated(f"an answer at step {answer.step} came where {expected.value} was awaited")
            return
        self._stored_up_to(answer.durable_step)

    def _on_values_answer(self, task: StepsTask, answer: sequence_pb2.Answer) -> None:
        message = task.inflight
        if message is None or message.end_step != answer.step or answer.forecast:
            self._violated(f"an answer at step {answer.step} does not fit what was sent")
            return
        self._last = (message, answer)
        self._journal.append(message)
        self.position = answer.step
        if task.answered(message, answer, self.opened.num_outputs):
            self._outcome = Done(task.result())

    def _on_flushed(self, durable_step: int) -> None:
        self._expected = Expected.NOTHING
        self._backoff.reset()
        self._failure = None
        self._stored_up_to(durable_step)
        if isinstance(self._task, FlushTask):
            self._outcome = Done(None)
        elif self._journal.is_full:
            num_kept = self._journal.num_steps
            self._refuse_task(
                errors.ResourceExhausted(f"the server does not store {num_kept} steps", reason="NOT_STORED")
            )

    def _on_error(self, error: LongshortError) -> None:
        expected, self._expected = self._expected, Expected.NOTHING
        if error.code is errors.Code.UNAVAILABLE and self._journal.keeps:
            self.disconnected(error)  # elsewhere, or here a moment later
        elif error.code is errors.Code.UNAVAILABLE:
            # STORE_UNAVAILABLE to a flush, say. Nobody but this server has what was answered: stay with it.
            self._failure = error
            self._pause(error)
        elif expected is not Expected.RESENT:
            self._refuse_task(error)
        elif error.retry_delay_s is not None:
            self._pause(error)
        else:
            self.end(errors.SessionLost.like(error))

    def _stored_up_to(self, durable_step: int) -> None:
        self.durable_step = max(self.durable_step, durable_step)
        self._journal.trim(durable_step)

    # Endings of a stream, a task, the session

    def _disconnect(self) -> Expected:
        """Forget the stream; return what was awaited on it."""
        expected, self._expected = self._expected, Expected.NOTHING
        self._resend.clear()
        if self._end is None:
            self._phase = Phase.DISCONNECTED
        return expected

    def _pause(self, failure: LongshortError) -> None:
        asked_s = failure.retry_delay_s
        ended = None if self.has_stream else failure
        self._wait = Wait(self._backoff.next_delay_s(asked_s), asked_s, ended)

    def _refuse_task(self, error: LongshortError) -> None:
        """Fail the task for good: its unanswered message has not moved the session."""
        if isinstance(self._task, StepsTask):
            error.partial = self._task.result()
            recovery.count_from(error, self._task.num_answered)
        self._outcome = Failed(error)

    def _keep_sent_values(self) -> None:
        self.in_doubt = isinstance(self._task, StepsTask) and self._task.sent
        if not self.in_doubt:
            self._task = None

    def _violated(self, message: str) -> None:
        self.end(errors.ServerFault(message, reason="PROTOCOL_VIOLATION"))
