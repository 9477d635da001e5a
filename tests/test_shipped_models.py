"""The models that ship: they load, they score what they say, and that is what training gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from longshort_model.dataset import load
from longshort_model.evaluation import error_by_age, summary
from longshort_model.graph import fingerprint
from longshort_model.onnx_nodes import IR_VERSION, OPSET
from longshort_model.replay import Replay
from longshort_model.report import evaluate
from longshort_service.signature import MissingValue

if TYPE_CHECKING:
    from longshort_service.signature import Signature

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "service" / "longshort_service" / "models"
NAMES = ["metro", "metro-calendar", "parking"]
MOST_BYTES = 100_000


def newest(name: str) -> Path:
    return max((REPOSITORY / name).iterdir(), key=lambda folder: int(folder.name))


def documented(name: str) -> dict[str, tuple[float, float]]:
    """Return least and greatest value of a score over the seeds, from the table of docs/training.md."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    row = name.replace("-", "_")
    rows = re.findall(rf"^\| {row} \| (\w+) \|[^|]*\| ([\d.]+) to ([\d.]+) \|", text, re.MULTILINE)
    return {score: (float(least), float(most)) for score, least, most in rows}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_scores_as_served_what_its_signature_says(name: str) -> None:
    replay = Replay(newest(name) / "model.onnx")
    data = load(name)
    found = summary(data, replay.as_served(data), data.validation_end)
    scores = replay.signature.scores
    assert set(scores) == {"mae", "rmse", "mase", "coverage"}
    # Another processor sums in another order: 1e-4 of a score, or a handful of values at the band's edge.
    assert {score: found[score] for score in scores} == pytest.approx(scores, rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_its_scores_lie_within_the_spread_of_the_seeds(name: str) -> None:
    scores, spread = Replay(newest(name) / "model.onnx").signature.scores, documented(name)
    assert set(spread) == {"mae", "coverage"}
    for score, (least, most) in spread.items():
        rounding = 0.5 * 10 ** -len(str(most).partition(".")[2])
        assert least - rounding <= scores[score] <= most + rounding


@pytest.mark.parametrize("name", NAMES)
def test_it_beats_every_baseline_and_both_naive_ones_in_every_series(name: str) -> None:
    data = load(name)
    report, _ = evaluate(data, Replay(newest(name) / "model.onnx"))
    assert all(report["mae"] < errors["mae"] for errors in report["baselines"].values())
    for rival in ("daily_naive", "weekly_naive"):
        assert report["num_series_better_than"][rival] == len(data.series)
    assert report["error_by_age"][0] > 2 * report["mae"] > report["error_by_age"][-1]


def test_the_metro_model_reaches_the_goal() -> None:
    assert Replay(newest("metro") / "model.onnx").signature.scores["mae"] <= 155


@pytest.mark.parametrize("name", NAMES)
def test_its_files_are_small_old_enough_to_be_read_and_belong_together(name: str) -> None:
    folder = newest(name)
    signatures: list[Signature] = []
    for file in ("model.onnx", "explain.onnx"):
        assert (folder / file).stat().st_size < MOST_BYTES
        model = onnx.load(folder / file)
        assert (model.ir_version, model.opset_import[0].version) == (IR_VERSION, OPSET)
        signatures.append(Replay(folder / file).signature)
    assert signatures[0] == signatures[1]
    assert signatures[0].fingerprint == fingerprint(onnx.load(folder / "model.onnx"))


@pytest.mark.parametrize("name", NAMES)
def test_its_signature_says_what_a_caller_needs(name: str) -> None:
    signature, data = Replay(newest(name) / "model.onnx").signature, load(name)
    assert signature.name == name
    assert signature.features[0].unit == signature.outputs[0].unit == data.unit != ""
    assert [(c.name, c.quantile) for c in signature.outputs] == [("median", None), ("q10", 0.1), ("q90", 0.9)]
    assert signature.can_forecast
    assert signature.missing is MissingValue.REPEAT_LAST
    assert (signature.step_s, signature.trained_on) == (data.step_s, data.source)
    assert signature.sequence_lens == "sequence_lens"


def by_horizon(name: str) -> list[float]:
    data = load(name)
    targets, made = Replay(newest(name) / "model.onnx").forecasts(data, data.validation_end, 24)
    return [float(error) for error in error_by_age(targets, made)]


def test_a_day_ahead_the_metro_forecast_is_near_the_week_before_and_with_the_calendar_far_better() -> None:
    """A session carried from the first of all values, asked for the next 24 hours after each value of the test part."""
    plain, told = by_horizon("metro"), by_horizon("metro-calendar")
    naive = evaluate(load("metro"), Replay(newest("metro") / "model.onnx"))[0]["weekly_naive_mae"]
    for name, errors in (("metro", plain), ("metro-calendar", told)):
        assert errors[0] == pytest.approx(
            Replay(newest(name) / "model.onnx").signature.scores["mae"], rel=2e-2
        )
    assert all(error < naive * 1.01 for error in plain)
    assert all(one < other for one, other in zip(told[1:], plain[1:], strict=True))
    assert told[-1] < 0.8 * plain[-1]


def test_the_documented_errors_by_horizon_are_those_of_the_models_that_ship() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = text[text.index("| hours ahead |") :].splitlines()
    hours = [int(cell) for cell in table[0].split("|")[2:-1]]
    for line in table[2:4]:
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        errors = by_horizon(name)
        assert [float(cell) for cell in cells] == pytest.approx([errors[h - 1] for h in hours], abs=1.0)


def test_metro_calendar_is_told_hour_and_weekday_and_is_asked_for_traffic_alone() -> None:
    signature = Replay(newest("metro-calendar") / "model.onnx").signature
    assert [channel.name for channel in signature.features] == ["vehicles", "hour", "weekday"]
    assert signature.known_features() == [1, 2]
    assert [(pair.output, pair.feature) for pair in signature.forecast] == [("median", "vehicles")]
