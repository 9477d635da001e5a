"""The LSTM unit: one scalar unit by hand, then matrices, PyTorch and the exported file against each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from longshort_model import equations
from longshort_model.explain_graph import EXPLAINED
from longshort_model.graph import Layer, Weights, build, reorder
from longshort_model.synthetic import random_weights

if TYPE_CHECKING:
    import onnx
    from longshort_model.replay import Memory
    from numpy.typing import NDArray


DOCS = Path(__file__).parents[1] / "docs" / "the-lstm-unit.md"

# The unit of docs/the-lstm-unit.md: one value, one short-term and one long-term memory, twelve numbers.
W1, W2, B1 = 0.5, 1.0, 1.0  # forget gate
W3, W4, B2 = 1.0, -1.0, 0.0  # input gate
W5, W6, B3 = -0.5, 2.0, 0.5  # candidate
W7, W8, B4 = 1.0, 1.0, -0.5  # output gate
SCALAR_LAYER = Layer(
    input_weights=np.array([[W3], [W1], [W5], [W7]], np.float32),  # rows in PyTorch's order i, f, g, o
    hidden_weights=np.array([[W4], [W2], [W6], [W8]], np.float32),
    bias=np.array([B2, B1, B3, B4], np.float32),
)
WORKED = {
    "forget_gate": 0.880797,
    "input_gate": 0.622459,
    "candidate": 0.761594,
    "output_gate": 0.731059,
    "cell_state": 2.235656,
    "hidden_state": 0.714532,
}  # for x = 1, S = 0.5, L = 2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scalar_step(x: float, short_term: float, long_term: float) -> dict[str, float]:
    """The six stages for plain numbers, as the page writes them."""
    f = sigmoid(W2 * short_term + W1 * x + B1)
    i = sigmoid(W4 * short_term + W3 * x + B2)
    g = math.tanh(W6 * short_term + W5 * x + B3)
    o = sigmoid(W8 * short_term + W7 * x + B4)
    new_long_term = f * long_term + i * g
    return dict(zip(EXPLAINED, (f, i, g, o, new_long_term, o * math.tanh(new_long_term)), strict=True))


def column(value: float) -> NDArray[np.float64]:
    return np.array([[value]], np.float64)


def run(model: onnx.ModelProto, values: NDArray[np.float32], memory: Any) -> dict[str, NDArray[np.float32]]:
    """Run an ONNX graph in onnxruntime; every output by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    lengths = np.full(len(values), values.shape[1], np.int32)
    feed = {"x": values, "h0": memory[0], "c0": memory[1], "sequence_lens": lengths}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def drawn(weights: Weights, batch: int, time: int) -> tuple[NDArray[np.float32], Memory]:
    rng = np.random.default_rng(5)
    values = (weights.mean + weights.scale * rng.normal(size=(batch, time, len(weights.mean)))).astype("f")
    shape = (len(weights.layers), batch, weights.hidden)
    return values, (rng.uniform(-1, 1, shape).astype("f"), rng.uniform(-2, 2, shape).astype("f"))


def test_one_scalar_unit_gives_the_worked_numbers() -> None:
    by_hand = scalar_step(1.0, 0.5, 2.0)
    assert by_hand == pytest.approx(WORKED, abs=5e-7)
    step = equations.step(SCALAR_LAYER, column(1.0), column(0.5), column(2.0))
    assert {what: getattr(step, what).item() for what in EXPLAINED} == pytest.approx(WORKED, abs=5e-7)


def test_the_page_shows_the_numbers_of_this_test() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for stage, number in WORKED.items():
        assert f"{number:.6f}" in text, stage


def test_the_exported_unit_gives_the_worked_numbers() -> None:
    weights = Weights(
        layers=(SCALAR_LAYER,),
        head_weights=np.array([[2.0]], np.float32),
        head_bias=np.array([1.0], np.float32),
        mean=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
        columns=(0,),
    )
    memory = np.full((1, 1, 1), 0.5, np.float32), np.full((1, 1, 1), 2.0, np.float32)
    got = run(build(weights, explain=True), np.ones((1, 1, 1), np.float32), memory)
    for what, number in WORKED.items():
        assert got[f"layer0.{what}"].item() == pytest.approx(number, abs=1e-6), what
    assert got["cn"].item() == pytest.approx(WORKED["cell_state"], abs=1e-6)
    assert got["hn"].item() == pytest.approx(WORKED["hidden_state"], abs=1e-6)
    assert got["y"].item() == pytest.approx(1.0 + 2.0 * WORKED["hidden_state"] + 1.0, abs=1e-5)


def test_values_pass_one_after_the_other_from_zero_memories() -> None:
    short_term = long_term = 0.0
    for x in (1.0, -2.0, 0.5):
        by_hand = scalar_step(x, short_term, long_term)
        short_term, long_term = by_hand["hidden_state"], by_hand["cell_state"]
    values = np.array([[[1.0], [-2.0], [0.5]]])
    last = equations.sequence(SCALAR_LAYER, values, column(0.0), column(0.0))[-1]
    assert last.hidden_state.item() == pytest.approx(short_term, abs=1e-7)
    assert last.cell_state.item() == pytest.approx(long_term, abs=1e-7)


def test_gates_go_from_the_order_of_pytorch_to_that_of_onnx() -> None:
    labelled = np.array([["i0"], ["i1"], ["f0"], ["f1"], ["g0"], ["g1"], ["o0"], ["o1"]])
    assert reorder(labelled)[:, 0].tolist() == ["i0", "i1", "o0", "o1", "f0", "f1", "g0", "g1"]


def test_a_unit_told_to_keep_everything_and_write_nothing_keeps_its_long_term_memory() -> None:
    weights = random_weights(hidden=4, seed=1)
    bias = weights.layers[0].bias.copy()
    bias[0:4], bias[4:8] = -60, 60  # input gates shut, forget gates open: sigmoid is 0 and 1 to the last bit
    layer = Layer(weights.layers[0].input_weights, weights.layers[0].hidden_weights, bias)
    held = Weights(
        (layer,), weights.head_weights, weights.head_bias, weights.mean, weights.scale, weights.columns
    )
    values, memory = drawn(held, 3, 200)
    assert np.array_equal(run(build(held), values, memory)["cn"], memory[1])


@pytest.mark.parametrize(("layers", "features"), [(1, 1), (2, 3)])
@pytest.mark.torch
def test_equations_pytorch_and_the_exported_file_agree(layers: int, features: int) -> None:
    torch = pytest.importorskip("torch")
    weights = random_weights(hidden=6, layers=layers, features=features, outputs=3, seed=2)
    lstm = torch.nn.LSTM(features, 6, layers, batch_first=True)
    with torch.no_grad():
        for n, layer in enumerate(weights.layers):
            for parameter, array in zip(
                lstm.all_weights[n],
                (layer.input_weights, layer.hidden_weights, 0.25 * layer.bias, 0.75 * layer.bias),
                strict=True,
            ):
                parameter.copy_(torch.from_numpy(np.asarray(array)))
    values, (h0, c0) = drawn(weights, 4, 9)
    normal = (values - weights.mean) / weights.scale
    with torch.no_grad():
        hidden_states, (hn, cn) = lstm(torch.from_numpy(normal), (torch.from_numpy(h0), torch.from_numpy(c0)))
    exported = run(build(weights, explain=True), values, (h0, c0))
    np.testing.assert_allclose(exported["hn"], hn.numpy(), atol=2e-6)
    np.testing.assert_allclose(exported["cn"], cn.numpy(), atol=2e-6)
    np.testing.assert_allclose(exported[f"layer{layers - 1}.hidden_state"], hidden_states.numpy(), atol=2e-6)
    sequence = normal
    for n, layer in enumerate(weights.layers):
        steps = equations.sequence(layer, sequence, h0[n], c0[n])
        for what in EXPLAINED:
            expected = np.stack([getattr(step, what) for step in steps], axis=1)
            np.testing.assert_allclose(
                exported[f"layer{n}.{what}"], expected, atol=2e-6, err_msg=f"{n} {what}"
            )
        sequence = np.stack([step.hidden_state for step in steps], axis=1)


@pytest.mark.torch
def test_along_the_long_term_memory_the_gradient_is_the_product_of_the_forget_gates() -> None:
    torch = pytest.importorskip("torch")
    lstm = torch.nn.LSTM(1, 1, batch_first=True).double()
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()  # the direct path alone: nothing through the short-term memory
        lstm.bias_hh_l0[1] += 4.0
    values = torch.linspace(-1, 1, 100, dtype=torch.float64).reshape(1, 100, 1)
    start = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    _, (_, cn) = lstm(values, (torch.zeros_like(start), start))
    cn.sum().backward()
    sums = values[0] * lstm.weight_ih_l0[1] + lstm.bias_ih_l0[1] + lstm.bias_hh_l0[1]
    assert start.grad.item() == pytest.approx(torch.sigmoid(sums).prod().item(), rel=1e-9)


def plain_network(weight: float, steps: int, short_term: float = 0.5) -> tuple[float, float]:
    """S' = tanh(weight * S): the memory after some steps, and its derivative by the memory before them."""
    gradient = 1.0
    for _ in range(steps):
        short_term = math.tanh(weight * short_term)
        gradient *= weight * (1 - short_term**2)
    return short_term, gradient


@pytest.mark.parametrize("weight", [0.9, 1.0, 2.0])
def test_the_plain_network_forgets_as_the_page_says(weight: float) -> None:
    memory, gradient = plain_network(weight, 100)
    row = f"| {weight:.1f} | {memory:.2g} | {gradient:.1g} |"
    assert row in DOCS.read_text(encoding="utf-8")


def test_the_unit_keeps_its_gradient_as_the_page_says() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert f"f = 0.99 leave {0.99**100:.2f}" in text
    assert f"W = 1.1 multiply the gradient by {1.1**100:,.0f}" in text
