"""The network: raw values in, raw predictions out, quantiles that never cross, the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from longshort_model.network import Network  # noqa: E402  (it imports torch)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


pytestmark = pytest.mark.torch
MEAN, SCALE = np.array([3000.0], np.float32), np.array([2000.0], np.float32)


def network(
    *,
    mean: NDArray[np.float32] = MEAN,
    scale: NDArray[np.float32] = SCALE,
    hidden: int = 8,
    layers: int = 1,
    seed: int = 0,
) -> Network:
    torch.manual_seed(seed)
    return Network(hidden, mean=mean, scale=scale, layers=layers).eval()


def values(batch: int, time: int, features: int = 1, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy((3000 + 2000 * rng.normal(size=(batch, time, features))).astype(np.float32))


@pytest.mark.parametrize(("layers", "features"), [(1, 1), (2, 3)])
def test_shapes_are_those_of_the_graph(layers: int, features: int) -> None:
    net = network(mean=np.zeros(features, np.float32), scale=np.ones(features, np.float32), layers=layers)
    with torch.no_grad():
        y, (hn, cn) = net(values(4, 6, features))
    assert y.shape == (4, 6, 3)
    assert hn.shape == cn.shape == (layers, 4, 8)


def test_the_three_outputs_never_cross() -> None:
    net = network()
    with torch.no_grad():
        net.head.weight.mul_(50)
        y, _ = net(values(16, 50))
    median, low, high = y.unbind(-1)
    assert (low <= median).all()
    assert (median <= high).all()
    assert (low < high).all()


def test_the_head_predicts_the_change_from_the_last_value() -> None:
    net = network()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
        raw = values(2, 5)
        y, _ = net(raw)
    assert torch.equal(y, raw.expand(2, 5, 3))


def test_units_of_the_data_do_not_matter() -> None:
    """Kilometres or metres: the normalisation inside takes care of it."""
    raw = values(2, 7)
    with torch.no_grad():
        y, _ = network()(raw)
        scaled, _ = network(mean=MEAN * 1000, scale=SCALE * 1000)(raw * 1000)
    torch.testing.assert_close(scaled / 1000, y, rtol=1e-5, atol=1e-2)


def test_memory_carried_over_a_cut_gives_what_one_pass_gives() -> None:
    net, raw = network(layers=2), values(3, 20)
    with torch.no_grad():
        whole, (hn, cn) = net(raw)
        first, memory = net(raw[:, :11])
        second, (hn2, cn2) = net(raw[:, 11:], memory)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close((hn2, cn2), (hn, cn))


def test_the_loss_is_the_pinball_loss_with_the_median_counted_twice() -> None:
    net = network(scale=np.array([10.0], np.float32))
    predictions = torch.tensor([[100.0, 80.0, 120.0]])
    # errors 5, 25, -15 in units of ten: median 2 * 0.5 * 0.5, low 0.1 * 2.5, high 0.1 * 1.5
    assert net.loss(predictions, torch.tensor([105.0])).item() == pytest.approx(0.5 + 0.25 + 0.15)
    # errors -30, -10, -50: median 2 * 0.5 * 3, low 0.9 * 1, high 0.1 * 5
    assert net.loss(predictions, torch.tensor([70.0])).item() == pytest.approx(3.0 + 0.9 + 0.5)


def test_a_missing_target_counts_nothing_and_gives_no_gradient() -> None:
    net, raw = network(), values(2, 4)
    targets = torch.full((2, 4), 3100.0)
    targets[0, 1] = targets[1, 3] = float("nan")
    predictions, _ = net(raw)
    loss = net.loss(predictions, targets)
    known = ~torch.isnan(targets)
    assert loss.item() == pytest.approx(net.loss(predictions[known], targets[known]).item(), rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_minimising_the_loss_gives_the_quantiles() -> None:
    """The outputs that minimise it over a sample are its median, 10 % and 90 % quantile."""
    net = network(mean=np.zeros(1, np.float32), scale=np.ones(1, np.float32))
    sample = torch.linspace(0, 100, 1001)
    outputs = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.Adam([outputs], lr=1.0)
    for _ in range(600):
        optimiser.zero_grad()
        net.loss(outputs.expand(len(sample), 3), sample).backward()
        optimiser.step()
    assert outputs.tolist() == pytest.approx([50, 10, 90], abs=2.5)


def test_weights_in_numpy_are_copies() -> None:
    net = network()
    weights = net.weights()
    before = weights.layers[0].hidden_weights.copy()
    with torch.no_grad():
        net.lstm.weight_hh_l0.zero_()
    assert np.array_equal(weights.layers[0].hidden_weights, before)
    assert weights.hidden == 8


def test_a_calendar_is_looked_up_by_the_hour_of_the_week_and_its_table_is_learnt() -> None:
    torch.manual_seed(0)
    net = Network(8, mean=MEAN, scale=SCALE, calendar_width=3)
    traffic = values(2, 4)
    monday, sunday = torch.tensor([5.0, 0.0]).expand(2, 4, 2), torch.tensor([5.0, 6.0]).expand(2, 4, 2)
    first, _ = net(torch.cat([traffic, monday], -1))
    assert not torch.equal(first, net(torch.cat([traffic, sunday], -1))[0])
    beyond = torch.tensor([24.0 + 5.0, 7.0]).expand(2, 4, 2)
    assert torch.equal(first, net(torch.cat([traffic, beyond], -1))[0])
    first.sum().backward()
    assert net.calendar is not None
    touched = net.calendar.grad.abs().sum(-1).nonzero().flatten()  # type: ignore[union-attr]
    assert touched.tolist() == [5]


def test_a_network_without_a_calendar_is_drawn_as_ever() -> None:
    torch.manual_seed(0)
    one = Network(8, mean=MEAN, scale=SCALE)
    torch.manual_seed(0)
    other = Network(8, mean=MEAN, scale=SCALE, calendar_width=0)
    assert one.calendar is None
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
