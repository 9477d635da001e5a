"""From a data set to a model version: what ships is what training gives."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from longshort_model.dataset import load
from longshort_model.pipeline import SHIPPED, make
from longshort_model.replay import Replay

pytestmark = [pytest.mark.torch, pytest.mark.long]

SHIPPED_FOLDER = Path(__file__).parents[1] / "service" / "longshort_service" / "models"


@pytest.mark.timeout(400)
def test_training_metro_anew_gives_the_model_that_ships(tmp_path):
    """The whole training, with the seed that ships; another processor sums in another order, and drifts a little."""
    made = make(load("metro"), SHIPPED["metro"], tmp_path)
    shipped = Replay(SHIPPED_FOLDER / "metro" / "1" / "model.onnx").signature
    trained = Replay(made.folder / "model.onnx").signature
    assert trained.scores["mae"] == pytest.approx(shipped.scores["mae"], abs=3.2)  # the spread of five seeds
    assert trained.scores["coverage"] == pytest.approx(shipped.scores["coverage"], abs=0.025)
    assert (trained.features, trained.outputs, trained.states, trained.forecast) == (
        shipped.features,
        shipped.outputs,
        shipped.states,
        shipped.forecast,
    )
