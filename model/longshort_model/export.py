"""From a trained network to a folder of the model repository.

Owns the proof that the file reproduces PyTorch, and the writing of it, whole or not at all.
docs/design/0002-export.md says why the graph is written by hand.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from longshort_model import equations
from longshort_model.explain_graph import EXPLAINED
from longshort_model.graph import sign
from longshort_model.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from longshort_service.signature import Signature
    from numpy.typing import NDArray

    from longshort_model.network import Network

TOLERANCE: Final = (
    2e-5  # of memories and of answers in units of scale; f32 sums in another order differ by 1e-6
)
CARRIED_STEPS: Final = 500


class ExportError(RuntimeError):
    """The file would not do what the network does, or may not be written; nothing was left behind."""


def export(network: Network, signature: Signature, repository: Path, version: int | None = None) -> Path:
    """Write `model.onnx` and `explain.onnx` to `<repository>/<name>/<version>/` and return that folder.

    Without `version` it is the next one. Raises ExportError, and writes nothing, where the version exists or
    the files do not reproduce the network.
    """
    folder = version_folder(repository, signature.name, version)
    _, model, explaining = sign(network.weights(), signature)
    check(network, model, explaining)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        (part / "model.onnx").write_bytes(model)
        (part / "explain.onnx").write_bytes(explaining)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ExportError(f"{folder}: {error.strerror or error}") from error
    return folder


def version_folder(repository: Path, name: str, version: int | None = None) -> Path:
    """Return the folder of that version, or of the one after the highest. Raises ExportError if it exists."""
    if version is None:
        names = [path.name for path in (repository / name).glob("*")]
        version = 1 + max((int(n) for n in names if n.isascii() and n.isdigit()), default=0)
    folder = repository / name / str(version)
    if folder.exists():
        raise ExportError(f"{folder} exists; a version never changes once written")
    return folder


def check(network: Network, model: bytes, explaining: bytes) -> None:
    """Raise ExportError unless both files do what the network does.

    Batch and time above 1, memories that are not zero, rows of unequal length, carried steps one by one
    against one call (equal to the bit), and every gate against the equations.
    """
    replay, explainer = Replay(model), Replay(explaining)
    rng = np.random.default_rng(0)
    _check_batch(network, replay, rng)
    _check_lengths(network, replay, rng)
    _check_carried(network, replay, rng)
    _check_gates(network, explainer, rng)


def _check_batch(network: Network, replay: Replay, rng: np.random.Generator) -> None:
    for batch, time in ((2, 3), (5, 17)):
        values, memory = _drawn(network, rng, batch, time)
        got = replay.run(values, memory)
        for name, expected in _run(network, values, memory).items():
            _compare(f"batch {batch}, time {time}", name, got[name], expected, network)


def _check_lengths(network: Network, replay: Replay, rng: np.random.Generator) -> None:
    lengths = np.array([1, 9, 4, 12], np.int32)
    values, memory = _drawn(network, rng, len(lengths), int(lengths.max()))
    got = replay.run(values, memory, lengths=lengths)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = _run(network, values[one, :length], (memory[0][:, one], memory[1][:, one]))
        place = f"unequal lengths, row {row} of {length} steps"
        _compare(place, "y", got["y"][one, :length], alone["y"], network)
        _compare(place, "hn", got["hn"][:, one], alone["hn"], network)
        _compare(place, "cn", got["cn"][:, one], alone["cn"], network)


def _check_carried(network: Network, replay: Replay, rng: np.random.Generator) -> None:
    values, memory = _drawn(network, rng, 1, CARRIED_STEPS)
    whole = replay.run(values, memory)
    expected = _run(network, values, memory)
    for t in range(CARRIED_STEPS):
        got = replay.run(values[:, t : t + 1], memory)
        memory = got["hn"], got["cn"]
        if not np.array_equal(got["y"][:, 0], whole["y"][:, t]):
            raise ExportError(
                f"carried step {t} differs from the same step within one call of {CARRIED_STEPS}"
            )
    for name in ("hn", "cn"):
        if not np.array_equal(got[name], whole[name]):
            raise ExportError(f"{CARRIED_STEPS} carried steps leave another {name} than one call of them")
        _compare(f"{CARRIED_STEPS} steps", name, whole[name], expected[name], network)
    _compare(f"{CARRIED_STEPS} steps", "y", whole["y"], expected["y"], network)


def _check_gates(network: Network, explainer: Replay, rng: np.random.Generator) -> None:
    values, memory = _drawn(network, rng, 3, 11)
    got = explainer.run(values, memory)
    for name, expected in _run(network, values, memory).items():
        _compare("explain.onnx", name, got[name], expected, network)
    weights = network.weights()
    sequence: NDArray[Any] = (values - weights.mean) / weights.scale
    for n, layer in enumerate(weights.layers):
        steps = equations.sequence(layer, sequence, memory[0][n], memory[1][n])
        for what in EXPLAINED:
            expected = np.stack([getattr(step, what) for step in steps], axis=1)  # [batch, time, hidden]
            _compare("explain.onnx", f"layer{n}.{what}", got[f"layer{n}.{what}"], expected, network)
        sequence = np.stack([step.hidden_state for step in steps], axis=1)


def _drawn(
    network: Network, rng: np.random.Generator, batch: int, time: int
) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return raw values like the training's, and memories (h0, c0) that are not zero."""
    mean, scale = network.mean.numpy(), network.scale.numpy()
    values = (mean + scale * rng.normal(size=(batch, time, len(mean)))).astype(np.float32)
    shape = (network.lstm.num_layers, batch, network.lstm.hidden_size)
    draw: Callable[[], NDArray[np.float32]] = lambda: rng.uniform(-0.9, 0.9, shape).astype(np.float32)  # noqa: E731
    return values, (draw(), draw())


def _run(
    network: Network,
    values: NDArray[np.float32],
    memory: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    with torch.no_grad():
        h0, c0 = (torch.from_numpy(np.ascontiguousarray(m)) for m in memory)
        y, (hn, cn) = network(torch.from_numpy(values), (h0, c0))
    return {"y": y.numpy(), "hn": hn.numpy(), "cn": cn.numpy()}


def _compare(
    place: str, name: str, got: NDArray[np.float32], expected: NDArray[Any], network: Network
) -> None:
    unit = float(network.scale[0]) if name == "y" else 1.0
    worst = float(np.max(np.abs(got - expected) / (unit + np.abs(expected))))
    if not worst <= TOLERANCE:
        raise ExportError(f"{place}: {name} differs from PyTorch by {worst:.2g}, allowed is {TOLERANCE:g}")
