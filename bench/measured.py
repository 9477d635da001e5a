"""What one run of one case gave."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Measured:
    """Counts and latencies of one time of measuring, as bench/load/stream_load.cc prints them; `_us` is microseconds.

    A latency is that of one message: of a frame, where there are frames. `served` are the streams that got an
    answer while it was measured, of `streams` that were wanted and `opened` that had been answered before.
    `lag_p99_us` is how late the load client's own timer was, `unsent` the messages that were due and still waited for
    an answer on their stream, `replayed_per_s` the steps of a replay beside it.
    """

    seconds: float
    messages: int
    steps: int
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    server_cpu_s: float
    client_cpu_s: float = 0.0
    streams: int = 1
    opened: int = 1
    served: int = 1
    least_answers: int = 0
    most_answers: int = 0
    ramp_s: float = 0.0
    ramp_cpu_s: float = 0.0
    lag_p99_us: float = 0.0
    unsent: int = 0
    replayed_per_s: float = 0.0
    resident_bytes: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def steps_per_s(self) -> float:
        """Steps a second."""
        return self.steps / self.seconds

    @property
    def slowest_share(self) -> float:
        """Answers that the slowest stream got, over the mean of all."""
        return self.least_answers * self.streams / max(self.messages, 1)

    @property
    def server_us_per_step(self) -> float:
        """Microseconds of the server's CPU time for a step."""
        return 1e6 * self.server_cpu_s / max(self.steps, 1)

    @property
    def client_us_per_step(self) -> float:
        """Microseconds of the load client's CPU time for a step."""
        return 1e6 * self.client_cpu_s / max(self.steps, 1)

    def of_predictions(self) -> Measured:
        """Return the same with one step a message: a window of values that is sent again moves on by one."""
        return replace(self, steps=self.messages)
