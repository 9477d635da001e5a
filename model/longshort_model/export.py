"""From a trained network to a folder of the model repository.

Owns the proof that the file reproduces PyTorch, and the writing of it, whole or not at all.
docs/design/0002-export.md says why the graph is written by hand.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from longshort_model import equations
from longshort_model.explain_graph import EXPLAINED
from longshort_model.graph import sign
from longshort_model.replay import Replay

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_service.signature import Signature
    from numpy.typing import NDArray

    from longshort_model.network import Network
    from longshort_model.replay import Memory

# Of memories, and of answers in units of scale; f32 sums in another order differ by 1e-6.
TOLERANCE: Final = 2e-5
ROUNDING: Final = 2 * 2.0**-23  # of an answer's own size, beside that: x + change is rounded once
CARRIED_STEPS: Final = 500
OWN_DRIFTS: Final = 10.0  # of PyTorch's own distance from double precision, what a file may have


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
    write_version(folder, {"model.onnx": model, "explain.onnx": explaining})
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


def write_version(folder: Path, files: dict[str, bytes]) -> None:
    """Write a version's files, all of them or none. Raises ExportError."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, content in files.items():
            (part / name).write_bytes(content)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ExportError(f"{folder}: {error.strerror or error}") from error


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
            expected.compare(f"batch {batch}, time {time}: {name}", got[name])


def _check_lengths(network: Network, replay: Replay, rng: np.random.Generator) -> None:
    lengths = np.array([1, 9, 4, 12], np.int32)
    values, memory = _drawn(network, rng, len(lengths), int(lengths.max()))
    got = replay.run(values, memory, lengths=lengths)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = _run(network, values[one, :length], (memory[0][:, one], memory[1][:, one]))
        place = f"unequal lengths, row {row} of {length} steps"
        alone["y"].compare(f"{place}: y", got["y"][one, :length])
        alone["hn"].compare(f"{place}: hn", got["hn"][:, one])
        alone["cn"].compare(f"{place}: cn", got["cn"][:, one])


def _check_carried(network: Network, replay: Replay, rng: np.random.Generator) -> None:
    values, memory = _drawn(network, rng, 1, CARRIED_STEPS)
    whole = replay.run(values, memory)
    for name, expected in _run(network, values, memory).items():
        expected.compare(f"{CARRIED_STEPS} steps: {name}", whole[name])
    for t in range(CARRIED_STEPS):
        got = replay.run(values[:, t : t + 1], memory)
        memory = got["hn"], got["cn"]
        if not np.array_equal(got["y"][:, 0], whole["y"][:, t]):
            raise ExportError(f"step {t} carried differs from the same step in one call of {CARRIED_STEPS}")
    for name in ("hn", "cn"):
        if not np.array_equal(got[name], whole[name]):
            raise ExportError(f"{CARRIED_STEPS} carried steps leave another {name} than one call of them")


def _check_gates(network: Network, explainer: Replay, rng: np.random.Generator) -> None:
    values, memory = _drawn(network, rng, 3, 11)
    got = explainer.run(values, memory)
    results = _run(network, values, memory)
    for name, expected in results.items():
        expected.compare(f"explain.onnx: {name}", got[name])
    allowed = max(expected.allowed for expected in results.values())
    weights = network.weights()
    sequence: NDArray[Any] = weights.first_layer_inputs(values.astype(np.float64))
    for n, layer in enumerate(weights.layers):
        steps = equations.sequence(layer, sequence, memory[0][n], memory[1][n])
        for what in EXPLAINED:
            exact = np.stack([getattr(step, what) for step in steps], axis=1)  # [batch, time, hidden]
            name = f"layer{n}.{what}"
            _Expected(exact, allowed).compare(f"explain.onnx: {name}", got[name])
        sequence = np.stack([step.hidden_state for step in steps], axis=1)


@dataclass(frozen=True, slots=True)
class _Expected:
    """What PyTorch gives in double precision, and how far from it a file may be.

    Memories are compared relative to 1 + their size. Answers have a `scale` and are compared in units of it,
    however far from zero they are: what the network adds to the last value is of that size.

    A network may let the rounding of single precision grow from step to step, in PyTorch's own run as well as in
    the file's. The file may be off by OWN_DRIFTS times what PyTorch's is, and by TOLERANCE in any case.
    """

    exact: NDArray[Any]
    allowed: float = TOLERANCE
    scale: float | None = None

    def distance(self, got: NDArray[Any]) -> float:
        off, size = np.abs(got - self.exact), np.abs(self.exact)
        if self.scale is None:
            return float(np.max(off / (1.0 + size)))
        return float(np.max(np.maximum(off - ROUNDING * size, 0.0)) / self.scale)

    def compare(self, what: str, got: NDArray[Any]) -> None:
        distance = self.distance(got)
        if not distance <= self.allowed:
            raise ExportError(f"{what} differs from PyTorch by {distance:.2g}, allowed is {self.allowed:.2g}")


def _run(network: Network, values: NDArray[np.float32], memory: Memory) -> dict[str, _Expected]:
    """Run the network in double and in single precision, the difference being what it does to rounding."""
    single = _outputs(network, values, memory)
    double = _outputs(copy.deepcopy(network).double(), values, memory)
    found = {}
    for name, exact in double.items():
        expected = _Expected(exact, scale=float(network.scale[0]) if name == "y" else None)
        allowed = max(TOLERANCE, OWN_DRIFTS * expected.distance(single[name]))
        found[name] = dataclasses.replace(expected, allowed=allowed)
    return found


def _outputs(network: Network, values: NDArray[np.float32], memory: Memory) -> dict[str, NDArray[Any]]:
    precision = network.mean.dtype
    with torch.no_grad():
        h0, c0 = (torch.from_numpy(np.ascontiguousarray(m)).to(precision) for m in memory)
        y, (hn, cn) = network(torch.from_numpy(values).to(precision), (h0, c0))
    return {"y": y.numpy(), "hn": hn.numpy(), "cn": cn.numpy()}


def _drawn(
    network: Network, rng: np.random.Generator, batch: int, time: int
) -> tuple[NDArray[np.float32], Memory]:
    """Return raw values like the training's, and memories (h0, c0) that are not zero."""
    mean, scale = network.mean.numpy(), network.scale.numpy()
    values = (mean + scale * rng.normal(size=(batch, time, len(mean)))).astype(np.float32)
    if network.calendar is not None:
        calendar = rng.integers((0, 0), (24, 7), (batch, time, 2)).astype(np.float32)
        values = np.concatenate([values, calendar], axis=-1)
    shape = (network.lstm.num_layers, batch, network.lstm.hidden_size)
    short_term, long_term = (rng.uniform(-0.9, 0.9, shape).astype(np.float32) for _ in range(2))
    return values, (short_term, long_term)
