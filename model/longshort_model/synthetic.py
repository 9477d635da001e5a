"""Model files with random weights, of any size and without training: for tests, benches and first tries.

Needs onnx, not torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from longshort_service.signature import Channel, Feedback, Memory, MissingValue, Signature, State

from longshort_model.graph import Layer, Weights, sign

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def write_random_model(
    path: Path,
    *,
    hidden: int,
    layers: int = 1,
    features: int = 1,
    outputs: int = 3,
    seed: int = 0,
    name: str = "random",
    missing: MissingValue = MissingValue.REPEAT_LAST,
    state_family: str = "",
    explain: bool = False,
) -> Signature:
    """Write a model with random weights to `path` and return its signature; folders are made as needed.

    With one feature and three outputs these are median, q10 and q90, as in a trained model; otherwise `y0`,
    `y1`, and so on, output k starting from the last value of feature k modulo `features`. A forecast feeds
    output k to feature k where there are enough outputs. With `explain`, `explain.onnx` is written beside it.
    The same arguments give the same bytes.
    """
    weights = random_weights(hidden=hidden, layers=layers, features=features, outputs=outputs, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    feature_names = tuple(Channel(f"x{k}") for k in range(features))
    if weights.band_factors is not None:
        output_names: tuple[Channel, ...] = (
            Channel("median"),
            Channel("q10", quantile=0.1),
            Channel("q90", quantile=0.9),
        )
    else:
        output_names = tuple(Channel(f"y{k}") for k in range(outputs))
    feeds = features if outputs >= features else 0
    signature = Signature(
        name=name,
        description="random weights",
        features=feature_names,
        outputs=output_names,
        states=lstm_states(layers, hidden),
        sequence_lens="sequence_lens",
        missing=missing,
        state_family=state_family,
        forecast=tuple(Feedback(output_names[k].name, feature_names[k].name) for k in range(feeds)),
    )
    signed, model, explaining = sign(weights, signature)
    path.write_bytes(model)
    if explain:
        path.with_name("explain.onnx").write_bytes(explaining)
    return signed


def random_weights(
    *, hidden: int, layers: int = 1, features: int = 1, outputs: int = 3, seed: int = 0
) -> Weights:
    """Return weights drawn as PyTorch draws them at first, uniform within 1 / sqrt(hidden)."""
    rng = np.random.default_rng(seed)
    bound = hidden**-0.5

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    stack = tuple(
        Layer(
            input_weights=draw(4 * hidden, features if n == 0 else hidden),
            hidden_weights=draw(4 * hidden, hidden),
            bias=draw(4 * hidden) + draw(4 * hidden),
        )
        for n in range(layers)
    )
    band = features == 1 and outputs == 3
    return Weights(
        layers=stack,
        head_weights=draw(outputs, hidden),
        head_bias=draw(outputs),
        mean=rng.uniform(-10, 10, features).astype(np.float32),
        scale=rng.uniform(1, 10, features).astype(np.float32),
        columns=tuple(k % features for k in range(outputs)),
        band_factors=np.array([-1, 1], np.float32) if band else None,
    )


def lstm_states(layers: int, hidden: int) -> tuple[State, ...]:
    """Return the two memories of an LSTM as its graph declares them."""
    shape = (layers, -1, hidden)
    return (
        State("c0", "cn", shape, batch_axis=1, memory=Memory.LONG_TERM),
        State("h0", "hn", shape, batch_axis=1, memory=Memory.SHORT_TERM),
    )
