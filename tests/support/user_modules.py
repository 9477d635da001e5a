"""Modules as users write them, for `longshort export`: some that can be served, and some that must be refused."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """What the layers of torch.nn have alike: x [batch, time, 3], a head of two numbers."""

    kind: type[nn.RNNBase] = nn.GRU

    def __init__(self, hidden: int = 8, layers: int = 1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = self.kind(3, hidden, layers, batch_first=True, dtype=dtype)
        self.head = nn.Linear(hidden, 2, dtype=dtype)
        self.sizes, self.dtype = (layers, hidden), dtype

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        hidden, h = self.layer(x, h)
        return self.head(hidden), h

    def example_inputs(self, batch: int, time: int) -> Tensor:
        return torch.randn(batch, time, 3, dtype=self.dtype)

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        layers, hidden = self.sizes
        return (torch.zeros(layers, batch, hidden, dtype=self.dtype),)


class Gru(Recurrent):
    kind = nn.GRU


class Rnn(Recurrent):
    kind = nn.RNN


class Lstm(Recurrent):
    kind = nn.LSTM

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        hidden, (h, c) = self.layer(x, (h, c))
        return self.head(hidden), h, c

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        return super().initial_states(batch) * 2


class Nested(Lstm):
    """Its two memories lie in a tuple, as nn.LSTM has them."""

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # type: ignore[override]
        hidden, memory = self.layer(x, memory)
        return self.head(hidden), memory

    def initial_states(self, batch: int) -> tuple[tuple[Tensor, ...]]:  # type: ignore[override]
        return (super().initial_states(batch),)


class OneMemory(Lstm):
    """Its two memories lie in a tuple, of which nothing but `forward` says so."""

    def forward(self, x: Tensor, memory: object = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        hidden, memory = self.layer(x, memory)
        return self.head(hidden), memory


class TwoTables(Gru):
    """Two whole numbers a step, each an index of a table of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.hours = nn.Embedding(1000, 2), nn.Embedding(24, 1)

    def forward(self, y: Tensor, h: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(torch.cat([self.items(y[:, 0]), self.hours(y[:, 1])], -1), h)

    def example_inputs(self, batch: int, time: int) -> Tensor:
        return torch.stack([torch.randint(n, (batch, time)) for n in (1000, 24)], 1)


class CellLoop(nn.Module):
    """A loop over time in Python, which exporters unroll."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 8)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            steps.append(h)
        return torch.stack(steps, 1), h, c

    def example_inputs(self, batch: int, time: int) -> Tensor:
        return torch.randn(batch, time, 3)

    def initial_states(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 8), torch.zeros(batch, 8)


class CausalConv(nn.Module):
    """Two convolutions with caches of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 2, 3, dilation=2)

    def forward(self, x: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        near = torch.cat([near, x.transpose(1, 2)], -1)
        middle = torch.relu(self.first(near))
        far = torch.cat([far, middle], -1)
        return self.second(far).transpose(1, 2), near[..., -2:], far[..., -4:]

    def example_inputs(self, batch: int, time: int) -> Tensor:
        return torch.randn(batch, time, 3)

    def initial_states(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 3, 2), torch.full((batch, 4, 4), 0.5)


class Count(nn.Module):
    """A sum of whole numbers that begins beyond those which a float64 tells apart."""

    def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        n = n + x
        return n, n

    def example_inputs(self, batch: int, _time: int) -> Tensor:
        return torch.randint(0, 5, (batch, 1))

    def initial_states(self, batch: int) -> Tensor:
        return torch.full((batch, 1), 2**60 + 1)


class StateSpace(nn.Module):
    """A diagonal linear state-space model, all steps at once."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(0.3, 0.95, 6, dtype=dtype))
        self.into = nn.Parameter(torch.randn(3, 6, dtype=dtype))
        self.out = nn.Parameter(torch.randn(6, 2, dtype=dtype))
        self.dtype = dtype

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(x.shape[1])
        lag = (steps[:, None] - steps[None, :])[..., None]
        kernel = torch.where(lag >= 0, self.decay ** lag.clamp(min=0).to(s.dtype), 0.0).to(s.dtype)
        driven = torch.einsum("tsn,bsn->btn", kernel, x @ self.into)
        states = driven + s[:, None] * self.decay ** (steps[:, None] + 1).to(s.dtype)
        return states @ self.out, states[:, -1]

    def example_inputs(self, batch: int, time: int) -> Tensor:
        return torch.randn(batch, time, 3, dtype=self.dtype)

    def initial_states(self, batch: int) -> Tensor:
        return torch.arange(6).to(self.dtype).expand(batch, 6)  # not all alike: a .npy beside the file


class NoTime(nn.Module):
    """One step a call: no tensor has a time axis. What it answers is its state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 8)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, states[0])
        return h, h

    def initial_states(self, batch: int) -> Tensor:
        return torch.zeros(batch, 8)


class LastOnly(Gru):
    """Steps in, one answer out: that to the last of them."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return y[:, -1], h


class DoubleCell(NoTime):
    """onnxruntime has no LSTM or GRU in float64; a cell is made of operators that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 8).double()

    def initial_states(self, batch: int) -> Tensor:
        return torch.zeros(batch, 8, dtype=torch.float64)


class Words(nn.Module):
    """Whole numbers in, time first; a second answer, and a count of the steps as int64."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(11, 4), nn.GRU(4, 5)

    def forward(self, token: Tensor, h: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        y, h = self.layer(self.table(token), h)
        return y, y.sum(-1), h, count + token.shape[0]


# What must be refused.


class Broken(Gru):
    """A module that can be served, for others to break."""


class IgnoresItsState(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        hidden, h = self.layer(x)
        return self.head(hidden), h


class BatchStatistics(Broken):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2, track_running_stats=False)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return self.norm(y.transpose(1, 2)).transpose(1, 2), h


class BatchNormInTraining(Broken):
    """eval() is not for it: it goes on taking statistics from each batch, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def train(self, mode: bool = True) -> BatchNormInTraining:  # noqa: ARG002, FBT001, FBT002  that is its mistake
        return super().train(mode=True)  # type: ignore[return-value]

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return self.norm(y.transpose(1, 2)).transpose(1, 2), h


class AlwaysDropsOut(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return nn.functional.dropout(y, 0.5, training=True), h


class RemembersBesideItsStates(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        self.total = getattr(self, "total", 0.0) + float(y.sum())
        return y + self.total, h


class SeesTheFuture(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return y + y.flip(1), h


class ForgetsItsCache(Broken):
    """A convolution whose last values are kept nowhere: the first steps of a call see zeros."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return y + nn.functional.pad(y, (0, 0, 1, 0))[:, :-1], h


class ForgetsItsCacheAtTheEnd(ForgetsItsCache):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return y[:, -1], h


class DecidesByValues(Broken):
    """Seldom: neither the example nor what the file is compared with gets there."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return (y * 2 if x.max() > 30 else y), h


class ReadsItsConstants(Gru):
    """A number of its own is the same in every call, and may be taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(3))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return (y * int(self.factor) if self.factor > 2 else y), h


class BatchOfThree(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return y.reshape(3, -1, 2), h


class GrowingState(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return y, torch.cat([h, h], -1)


class StateInAnotherDtype(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = super().forward(x, h)
        return y, h.double()


class ReturnsNoAnswer(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x, h)[1:]


class ReturnsADict(Broken):
    def forward(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        y, h = super().forward(x, h)
        return {"y": y, "h": h}


class StartsAtRandom(Broken):
    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(1, batch, 8),)


class Stateless(Broken):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (self.head(self.layer(x)[0]),)

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:  # noqa: ARG002
        return ()


class AnInputAStep(Broken):
    def example_inputs(self, batch: int, time: int) -> list[Tensor]:  # type: ignore[override]
        return [torch.zeros(batch, 3)] * time


class AStateARow(Broken):
    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.zeros(8),) * batch


class ExampleOfNothing(Broken):
    def example_inputs(self, batch: int, time: int) -> None:  # type: ignore[override]
        pass


class StartsAtNothing(Broken):
    def initial_states(self, batch: int) -> None:  # type: ignore[override]
        pass


class TruthAsState(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, _ = super().forward(x, torch.zeros(1, x.shape[0], 8))
        return y + h[:, None], ~h

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch, 1, dtype=torch.bool),)


class Raises(Broken):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        raise ZeroDivisionError("in forward")


class LstmInHalf(Lstm):
    def __init__(self) -> None:
        super().__init__(dtype=torch.float16)


class GruInHalf(Gru):
    def __init__(self) -> None:
        super().__init__(dtype=torch.float16)


class LstmInDouble(Lstm):
    def __init__(self) -> None:
        super().__init__(dtype=torch.float64)


def make(kind: str, **sizes: int) -> nn.Module:
    """Make one of these by its name: what --kwargs reaches of a function."""
    made: nn.Module = globals()[kind](**sizes)
    return made


a_number = 5
a_module = Gru()
