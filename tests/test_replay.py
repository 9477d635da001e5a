"""Running an exported file over long series: in bounded memory, to the same bits."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from longshort_model import replay as replays
from longshort_model.dataset import Dataset, load, metro, repeat_last
from longshort_model.replay import MOST_RUNS, Replay
from longshort_model.synthetic import write_random_model

SHIPPED = Path(__file__).parents[1] / "service" / "longshort_service" / "models"


def dataset_of(series: int, rows: int) -> Dataset:
    values = np.random.default_rng(0).normal(size=(series, rows)).astype(np.float32)
    names = tuple(f"s{k}" for k in range(series))
    return Dataset("drawn", "value", "", names, values, int(0.65 * rows), int(0.75 * rows))


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    write_random_model(tmp_path / "model.onnx", hidden=16, layers=2)
    return Replay(tmp_path / "model.onnx")


@pytest.mark.parametrize("most_numbers", [1, 16 * 3 * 7, 16 * 3 * 50, 16 * 3 * 2000])
def test_pieces_of_any_length_give_to_the_bit_what_one_call_gives(
    replay: Replay, monkeypatch: pytest.MonkeyPatch, most_numbers: int
) -> None:
    dataset = dataset_of(3, 301)
    whole = replay.run(dataset.values[..., None])["y"]
    monkeypatch.setattr(replays, "PIECE_NUMBERS", most_numbers)
    assert np.array_equal(replay.as_served(dataset), whole)


def test_runs_from_zero_state_are_those_of_each_place_alone(replay: Replay) -> None:
    dataset = dataset_of(2, 90)
    targets, made = replay.from_zero(dataset, start=60, num_ages=5)
    assert targets.shape == made.shape == (2 * 25, 5)  # every place, in both series
    for series, begin, run in ((0, 60, 0), (0, 84, 24), (1, 60, 25), (1, 73, 38)):
        values = dataset.values[series : series + 1, begin : begin + 5, None]
        assert np.array_equal(made[run], replay.run(values)["y"][0, :, 0])
        assert np.array_equal(targets[run], dataset.values[series, begin + 1 : begin + 6])


def test_the_hours_of_metro_are_asked_at_as_many_places_as_ever(replay: Replay) -> None:
    dataset = metro()
    targets, _ = replay.from_zero(dataset, dataset.validation_end, 72)
    places = dataset.values.shape[1] - 72 - dataset.validation_end
    assert targets.shape == (min(MOST_RUNS, places), 72)


@pytest.mark.parametrize(("series", "rows", "num_ages"), [(1, 40_000, 4_320), (3_000, 1_000, 100)])
def test_runs_times_ages_are_bounded(replay: Replay, series: int, rows: int, num_ages: int) -> None:
    dataset = dataset_of(series, rows)
    targets, made = replay.from_zero(dataset, dataset.validation_end, num_ages)
    assert targets.shape == made.shape
    assert targets.shape[1] == num_ages
    assert 50 * num_ages < targets.size <= replays.MOST_STEPS


def test_a_forecast_is_a_session_carried_from_the_first_value_that_is_fed_its_own_medians(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(2, 120)
    dataset.values[1, 93] = np.nan
    targets, made = replay.forecasts(dataset, start=90, horizon=4)
    assert targets.shape == made.shape == (27 * 2, 4)  # after each of rows 89 to 115, of both series
    filled = repeat_last(dataset.values)
    for origin, series in ((89, 0), (93, 1), (115, 1)):
        run = 2 * (origin - 89) + series
        got = replay.run(filled[series : series + 1, : origin + 1, None])
        expected = [got["y"][0, -1, 0]]
        while len(expected) < 4:
            got = replay.run(np.full((1, 1, 1), expected[-1]), (got["hn"], got["cn"]))
            expected.append(got["y"][0, 0, 0])
        assert made[run].tolist() == expected
        np.testing.assert_array_equal(targets[run], dataset.values[series, origin + 1 : origin + 5])
    monkeypatch.setattr(replays, "MOST_RUNS", 12)
    assert replay.forecasts(dataset, start=90, horizon=4)[1].shape == (6 * 2, 4)


def test_a_forecast_with_a_calendar_is_told_the_hours_that_come() -> None:
    data = load("metro-calendar")
    part = dataclasses.replace(data, values=data.values[:, :400], times=data.times[:400])
    replay = Replay(SHIPPED / "metro-calendar" / "1" / "model.onnx")
    _, made = replay.forecasts(part, start=390, horizon=3)
    inputs = part.inputs()
    got = replay.run(inputs[:, :390])
    expected = [got["y"][0, -1, 0]]
    for row in (390, 391):
        told = np.concatenate([[expected[-1]], inputs[0, row, 1:]]).astype(np.float32)
        got = replay.run(told[None, None], (got["hn"], got["cn"]))
        expected.append(got["y"][0, 0, 0])
    assert made[0].tolist() == expected


def test_a_month_of_minutes_is_evaluated_within_a_gigabyte(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model.onnx", hidden=64)
    code = f"""
import re
import numpy as np
from pathlib import Path
from longshort_model.dataset import Dataset
from longshort_model.replay import Replay
from longshort_model.report import evaluate
replay = Replay(Path({str(tmp_path / "model.onnx")!r}))
rows = 60 * 24 * 30
values = np.random.default_rng(0).normal(size=(8, rows)).astype(np.float32)
dataset = Dataset("m", "v", "", tuple("abcdefgh"), values, rows // 2, rows * 3 // 4, day=1440)
report, _ = evaluate(dataset, replay)
# Not ru_maxrss: it is the parent's where that had more.
peak_kib = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(len(report["error_by_age"]), int(peak_kib) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ages, peak_mib = map(int, done.stdout.split())
    assert ages == 3 * 1440
    assert peak_mib < 1024
