"""Export: what the file does, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from longshort_model import graph
from longshort_model.explain_graph import EXPLAINED
from longshort_model.graph import build, fingerprint, sign
from longshort_model.replay import Replay
from longshort_model.synthetic import lstm_states, random_weights, write_random_model
from longshort_service.signature import Channel, Memory, MissingValue, Signature

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from longshort_model.graph import Weights
    from longshort_model.network import Network
    from longshort_model.replay import Memory as Memories
    from numpy.typing import NDArray


SHAPES = [
    {"hidden": 64},
    {"hidden": 6, "layers": 2, "features": 3, "outputs": 4},
    {"hidden": 33, "layers": 3},
]


def replay_of(shape: dict[str, int], tmp_path: Path, **options: Any) -> Replay:
    sizes: dict[str, Any] = {**shape, **options}
    write_random_model(tmp_path / "model.onnx", explain=True, **sizes)
    return Replay(tmp_path / "model.onnx")


def drawn(replay: Replay, batch: int, time: int, seed: int = 0) -> tuple[NDArray[np.float32], Memories]:
    rng = np.random.default_rng(seed)
    shape = replay.memory_shape(batch)
    memory = rng.uniform(-0.9, 0.9, shape).astype("f"), rng.uniform(-2, 2, shape).astype("f")
    return rng.normal(0, 10, (batch, time, len(replay.signature.features))).astype("f"), memory


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_in_company_of_any_length_is_to_the_bit_the_row_stepped_alone(
    shape: dict[str, int], tmp_path: Path
) -> None:
    replay = replay_of(shape, tmp_path)
    lengths = np.array([13, 1, 7, 2, 13, 5, 9, 1, 3], np.int32)
    values, memory = drawn(replay, len(lengths), 13)
    company = replay.run(values, memory, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = memory[0][:, row : row + 1], memory[1][:, row : row + 1]
        for t in range(length):
            got = replay.run(values[row : row + 1, t : t + 1], alone)
            alone = got["hn"], got["cn"]
            assert np.array_equal(got["y"][0, 0], company["y"][row, t])
        assert np.array_equal(alone[0][:, 0], company["hn"][:, row])
        assert np.array_equal(alone[1][:, 0], company["cn"][:, row])


@pytest.mark.parametrize("shape", SHAPES)
def test_500_carried_steps_are_to_the_bit_one_call_of_500(shape: dict[str, int], tmp_path: Path) -> None:
    replay = replay_of(shape, tmp_path)
    values, memory = drawn(replay, 1, 500)
    whole = replay.run(values, memory)
    for t in range(500):
        got = replay.run(values[:, t : t + 1], memory)
        memory = got["hn"], got["cn"]
        assert np.array_equal(got["y"][:, 0], whole["y"][:, t])
    assert np.array_equal(memory, (whole["hn"], whole["cn"]))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gates_of_explain_give_the_new_memories_by_the_equations(
    shape: dict[str, int], tmp_path: Path
) -> None:
    replay = replay_of(shape, tmp_path)
    explainer = Replay(tmp_path / "explain.onnx")
    values, (h0, c0) = drawn(replay, 3, 11)
    got, explained = replay.run(values, (h0, c0)), explainer.run(values, (h0, c0))
    for name in ("y", "hn", "cn"):
        assert np.array_equal(got[name], explained[name])
    for n in range(len(h0)):
        layer = {what: explained[f"layer{n}.{what}"] for what in EXPLAINED}
        long_term = c0[n]
        for t in range(11):
            long_term = (
                layer["forget_gate"][:, t] * long_term + layer["input_gate"][:, t] * layer["candidate"][:, t]
            )
            np.testing.assert_allclose(layer["cell_state"][:, t], long_term, atol=1e-6)
            short_term = layer["output_gate"][:, t] * np.tanh(long_term)
            np.testing.assert_allclose(layer["hidden_state"][:, t], short_term, atol=1e-6)
        np.testing.assert_allclose(got["cn"][n], long_term, atol=1e-6)
        np.testing.assert_allclose(got["hn"][n], short_term, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_declared_shapes_leave_batch_and_time_open(shape: dict[str, int], tmp_path: Path) -> None:
    replay_of(shape, tmp_path)
    sizes = {}
    for file in ("model.onnx", "explain.onnx"):
        model = onnx.load(tmp_path / file)
        for tensor in [*model.graph.input, *model.graph.output]:
            sizes[tensor.name] = [d.dim_param or d.dim_value for d in tensor.type.tensor_type.shape.dim]
    layers, features, hidden = shape.get("layers", 1), shape.get("features", 1), shape["hidden"]
    assert sizes["x"] == ["batch", "time", features]
    assert sizes["y"] == ["batch", "time", shape.get("outputs", 3)]
    assert sizes["sequence_lens"] == ["batch"]
    assert sizes["h0"] == sizes["c0"] == sizes["hn"] == sizes["cn"] == [layers, "batch", hidden]
    assert sizes[f"layer{layers - 1}.forget_gate"] == ["batch", "time", hidden]


def test_both_files_carry_one_signature_with_the_models_fingerprint(tmp_path: Path) -> None:
    written = write_random_model(tmp_path / "model.onnx", hidden=4, explain=True)
    model, explaining = (Replay(tmp_path / f"{name}.onnx").signature for name in ("model", "explain"))
    assert model == explaining == written
    assert written.fingerprint == fingerprint(onnx.load(tmp_path / "model.onnx"))
    assert {s.input: s.memory for s in written.states} == {"c0": Memory.LONG_TERM, "h0": Memory.SHORT_TERM}


def test_the_fingerprint_follows_the_weights_and_not_the_metadata() -> None:
    weights = random_weights(hidden=4)
    signature = Signature("a", (Channel("x"),), (Channel("m"),), lstm_states(1, 4))
    renamed, _, _ = sign(weights, dataclasses.replace(signature, name="b", scores={"mae": 1.0}))
    other, _, _ = sign(random_weights(hidden=4, seed=1), signature)
    assert sign(weights, signature)[0].fingerprint == renamed.fingerprint != other.fingerprint


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_random_model(tmp_path / name / "model.onnx", hidden=5, features=2, seed=7, explain=True)
    for file in ("model.onnx", "explain.onnx"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_nan_passed_on_is_the_mean_of_its_feature(tmp_path: Path) -> None:
    replay = replay_of({"hidden": 8, "features": 2}, tmp_path, missing=MissingValue.PASS)
    weights = random_weights(hidden=8, features=2)
    values, memory = drawn(replay, 2, 3)
    values[0, 1, 1] = weights.mean[1]
    expected = replay.run(values, memory)
    values[0, 1, 1] = np.nan
    got = replay.run(values, memory)
    assert all(np.array_equal(got[name], expected[name]) for name in expected)


def test_the_band_lies_around_the_median(tmp_path: Path) -> None:
    replay = replay_of({"hidden": 8}, tmp_path)
    assert [(c.name, c.quantile) for c in replay.signature.outputs] == [
        ("median", None),
        ("q10", 0.1),
        ("q90", 0.9),
    ]
    median, low, high = np.moveaxis(replay.run(drawn(replay, 20, 20)[0])["y"], -1, 0)
    assert (low <= median).all()
    assert (median <= high).all()


# What needs PyTorch: the way from a network to a folder.


@pytest.fixture
def network() -> Network:
    torch = pytest.importorskip("torch")
    from longshort_model.network import Network

    torch.manual_seed(0)
    return Network(16, mean=np.array([300.0], "f"), scale=np.array([50.0], "f"), layers=2).eval()


@pytest.fixture
def signature() -> Signature:
    return Signature(
        name="mine",
        features=(Channel("x"),),
        outputs=(Channel("median"), Channel("q10", quantile=0.1), Channel("q90", quantile=0.9)),
        states=lstm_states(2, 16),
        sequence_lens="sequence_lens",
        missing=MissingValue.REPEAT_LAST,
    )


@pytest.mark.torch
def test_export_writes_the_next_version_and_never_over_one(
    network: Network, signature: Signature, tmp_path: Path
) -> None:
    from longshort_model.export import ExportError, export

    (tmp_path / "mine" / "7").mkdir(parents=True)
    (tmp_path / "mine" / "notes").mkdir()
    folder = export(network, signature, tmp_path)
    assert folder == tmp_path / "mine" / "8"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "explain.onnx"}
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"7", "8", "notes"}
    before = (folder / "model.onnx").read_bytes()
    with pytest.raises(ExportError) as caught:
        export(network, signature, tmp_path, version=8)
    assert "never changes" in str(caught.value)
    assert (folder / "model.onnx").read_bytes() == before


@pytest.mark.torch
def test_a_network_of_several_layers_and_features_exports(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from longshort_model.export import export
    from longshort_model.network import Network

    torch.manual_seed(1)
    net = Network(8, mean=np.array([1, 20, -5], "f"), scale=np.array([2, 9, 0.5], "f"), layers=2)
    signature = Signature(
        "wide",
        tuple(map(Channel, "abc")),
        tuple(map(Channel, ("m", "l", "h"))),
        lstm_states(2, 8),
        sequence_lens="sequence_lens",
    )
    assert Replay(export(net, signature, tmp_path) / "model.onnx").signature.features[2].name == "c"


@pytest.mark.torch
def test_a_network_with_a_calendar_exports_and_no_hour_can_fail_the_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from longshort_model.export import export
    from longshort_model.network import Network

    torch.manual_seed(1)
    net = Network(8, mean=np.array([100], "f"), scale=np.array([20], "f"), layers=2, calendar_width=3)
    signature = Signature(
        "clock",
        tuple(map(Channel, ("x", "hour", "weekday"))),
        tuple(map(Channel, ("m", "l", "h"))),
        lstm_states(2, 8),
        sequence_lens="sequence_lens",
    )
    replay = Replay(export(net, signature, tmp_path) / "model.onnx")
    hours = np.array([3, 27, -21, 3.9, np.nan, np.inf, -np.inf, 1e30], "f")
    values = np.stack([np.full(8, 90, "f"), hours, np.full(8, 2, "f")], -1)[:, None]
    made = replay.run(values)["y"]
    assert np.isfinite(made).all()
    assert all(np.array_equal(row, made[0]) for row in made[1:4])
    for row in range(len(values)):
        assert np.array_equal(replay.run(values[row : row + 1])["y"][0], made[row])


def damage_gate_order(monkeypatch: pytest.MonkeyPatch, weights: Weights) -> Weights:
    monkeypatch.setattr(graph, "reorder", lambda gates: gates)
    return weights


def damage_one_weight(_: object, weights: Weights) -> Weights:
    weights.layers[1].hidden_weights[5, 3] += 0.01
    return weights


def damage_bias(_: object, weights: Weights) -> Weights:
    weights.layers[0].bias[17] = 0
    return weights


def damage_scale(_: object, weights: Weights) -> Weights:
    return dataclasses.replace(weights, scale=weights.scale * np.float32(1.001))


def damage_head(_: object, weights: Weights) -> Weights:
    weights.head_bias[1] *= -1  # invisible under |head| only if the weights are zero
    return weights


@pytest.mark.torch
@pytest.mark.parametrize(
    "damage", [damage_gate_order, damage_one_weight, damage_bias, damage_scale, damage_head]
)
def test_export_refuses_a_file_that_does_not_reproduce_pytorch(
    network: Network,
    signature: Signature,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[pytest.MonkeyPatch, Weights], Weights],
) -> None:
    from longshort_model.export import ExportError, export

    damaged = damage(monkeypatch, network.weights())
    monkeypatch.setattr(network, "weights", lambda: damaged)
    with pytest.raises(ExportError) as caught:
        export(network, signature, tmp_path)
    assert "differs from PyTorch" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
def test_at_a_mean_a_million_scales_away_a_head_without_weights_is_still_refused(
    signature: Signature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from longshort_model.export import ExportError, export
    from longshort_model.network import Network

    torch.manual_seed(0)
    far = Network(16, mean=np.array([1e6], "f"), scale=np.array([1.0], "f"), layers=2).eval()
    export(far, signature, tmp_path)
    empty = far.weights()
    empty.head_weights[:] = 0
    monkeypatch.setattr(far, "weights", lambda: empty)
    with pytest.raises(ExportError) as caught:
        export(far, signature, tmp_path)
    assert "y differs from PyTorch" in str(caught.value)


@pytest.mark.torch
def test_a_network_that_lets_rounding_grow_is_not_refused_for_it(
    network: Network, signature: Signature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from longshort_model import export

    with torch.no_grad():
        for layer in network.lstm.all_weights:
            layer[1].mul_(8)  # chaotic: after 500 steps two ways of rounding have nothing in common
    with monkeypatch.context() as strict:
        strict.setattr(export, "OWN_DRIFTS", 0)
        with pytest.raises(export.ExportError):
            export.export(network, signature, tmp_path)
    assert (export.export(network, signature, tmp_path) / "model.onnx").exists()


@pytest.mark.torch
def test_export_refuses_gates_that_are_not_those_of_the_equations(
    network: Network, signature: Signature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longshort_model.export import ExportError, export

    def swapped(weights: Weights, *, missing: MissingValue, explain: bool = False) -> onnx.ModelProto:
        model = build(weights, missing=missing, explain=explain)
        names = {"layer1.forget_gate": "layer1.input_gate", "layer1.input_gate": "layer1.forget_gate"}
        for node in model.graph.node:
            for k, name in enumerate(node.output):
                node.output[k] = names.get(name, name)
        return model

    monkeypatch.setattr(graph, "build", swapped)
    with pytest.raises(ExportError) as caught:
        export(network, signature, tmp_path)
    assert "layer1" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
def test_a_repository_that_cannot_be_written_is_told_in_one_line(
    network: Network, signature: Signature, tmp_path: Path
) -> None:
    from longshort_model.export import ExportError, export

    (tmp_path / "mine").write_text("a file where the folder should be")
    with pytest.raises(ExportError) as caught:
        export(network, signature, tmp_path)
    assert "mine" in str(caught.value)
