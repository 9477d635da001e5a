"""The network in PyTorch: an LSTM and a head, raw values in, raw predictions out.

Owns the forward pass, the loss and the way of its weights to NumPy; docs/the-lstm-unit.md has the equations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from longshort_model.graph import HOURS_OF_WEEK, Layer, Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUANTILES: Final = (0.5, 0.1, 0.9)  # of the outputs, in their order
LOSS_WEIGHTS: Final = (2.0, 1.0, 1.0)  # the point forecast is what most callers want


class Network(nn.Module):
    """Predicts the next value of its first feature: median, 10 % and 90 % quantile.

    `mean` and `scale` [features] normalise inside. With a `calendar_width` two more features follow, the hour of
    the day and the weekday of the value, and the LSTM sees that many learnt numbers for each hour of the week. The
    head predicts the change from the last value, in units of `scale`; its bounds lie |head| below and above the
    median, so that quantiles never cross.
    """

    mean: Tensor
    scale: Tensor
    band_factors: Tensor
    calendar: Tensor | None

    def __init__(
        self,
        hidden: int,
        *,
        mean: NDArray[np.float32],
        scale: NDArray[np.float32],
        layers: int = 1,
        calendar_width: int = 0,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(len(mean) + calendar_width, hidden, layers)
        self.head = nn.Linear(hidden, len(QUANTILES))
        nn.init.constant_(self.head.bias[1:], 0.5)  # |head| has a kink at 0: start away from it
        self.register_buffer("mean", torch.as_tensor(mean))  # [features] f32
        self.register_buffer("scale", torch.as_tensor(scale))  # [features] f32
        self.register_buffer("band_factors", torch.tensor([-1.0, 1.0]))
        # Made last: without one, the other weights are drawn as ever.
        self.calendar = nn.Parameter(torch.randn(HOURS_OF_WEEK, calendar_width)) if calendar_width else None

    def forward(
        self, values: Tensor, memory: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return predictions [batch, time, 3] and (hn, cn) [layers, batch, hidden].

        `values` is [batch, time, features] raw; `memory` (h0, c0), zero where None. No state is kept here.
        """
        hidden_states, after = self.lstm(self._normal(values).transpose(0, 1), memory)
        change = self.head(hidden_states.transpose(0, 1))
        median, distances = change[..., :1], change[..., 1:].abs() * self.band_factors
        change = torch.cat([median, median + distances], dim=-1)
        return values[..., :1] + change * self.scale[0], after

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the mean pinball loss in units of `scale`, the median's counted twice.

        `predictions` [..., 3] and `targets` [...] are raw; a NaN target counts nothing.
        """
        errors = (targets[..., None] - predictions) / self.scale[0]
        quantiles = errors.new_tensor(QUANTILES)
        pinball = torch.maximum(quantiles * errors, (quantiles - 1) * errors)
        weighted = (pinball * errors.new_tensor(LOSS_WEIGHTS)).sum(-1)
        return torch.nanmean(weighted)

    def weights(self) -> Weights:
        """Return the weights as NumPy arrays, in the form that `graph` writes."""

        def array(tensor: Tensor) -> NDArray[np.float32]:
            return tensor.detach().cpu().numpy().astype(np.float32, copy=True)

        layers = []
        for n in range(self.lstm.num_layers):
            w, r, b_ih, b_hh = (array(t) for t in self.lstm.all_weights[n])
            layers.append(Layer(input_weights=w, hidden_weights=r, bias=b_ih + b_hh))
        return Weights(
            layers=tuple(layers),
            head_weights=array(self.head.weight),
            head_bias=array(self.head.bias),
            mean=array(self.mean),
            scale=array(self.scale),
            columns=(0,) * len(QUANTILES),
            band_factors=array(self.band_factors),
            calendar=None if self.calendar is None else array(self.calendar),
        )

    def _normal(self, values: Tensor) -> Tensor:
        if self.calendar is None:
            return (values - self.mean) / self.scale
        hour, weekday = values[..., -2].long() % 24, values[..., -1].long() % 7
        normal = (values[..., :-2] - self.mean) / self.scale
        return torch.cat([normal, self.calendar[weekday * 24 + hour]], dim=-1)
