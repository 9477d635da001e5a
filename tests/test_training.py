"""Training: reproducible, resumable, chosen by validation, blind to the test part."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402
from longshort_model.command import train as command  # noqa: E402
from longshort_model.dataset import Dataset, repeat_last  # noqa: E402
from longshort_model.training import Settings, TrainingError, train  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from longshort_model.network import Network
    from longshort_model.training import Trained
    from torch import Tensor


pytestmark = pytest.mark.torch
TINY = Settings(hidden=8, updates=40, batch=4, window=24, validate_every=10, seed=3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only disturb each other on so small a network."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def waves() -> Dataset:
    """Two series with a period of twelve rows, some values missing."""
    rng = np.random.default_rng(0)
    t = np.arange(400)
    values = np.stack([50 + 20 * np.sin(t / 12 * 2 * np.pi + phase) for phase in (0.0, 1.0)])
    values = (values + rng.normal(size=values.shape)).astype(np.float32)
    values[:, 30:33] = values[0, 310:312] = np.nan
    return Dataset("waves", "level", "m", ("a", "b"), values, train_end=260, validation_end=300)


def state(trained: Trained) -> dict[str, Tensor]:
    return trained.network.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def validation_mae(dataset: Dataset, network: Network, window: int) -> float:
    inputs = torch.from_numpy(repeat_last(dataset.values))
    start = dataset.train_end - window
    with torch.no_grad():
        made, _ = network(inputs[:, start : dataset.validation_end - 1, None])
    targets = torch.from_numpy(dataset.values[:, dataset.train_end : dataset.validation_end])
    return float(torch.nanmean((made[:, window - 1 :, 0] - targets).abs()))


def test_the_same_seed_gives_the_same_network_and_another_seed_another(waves: Dataset) -> None:
    first, second = train(waves, TINY), train(waves, TINY)
    assert same(state(first), state(second))
    assert first.validation_mae == second.validation_mae
    assert not same(state(first), state(train(waves, dataclasses.replace(TINY, seed=4))))


def test_training_leaves_the_global_generator_alone(waves: Dataset) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train(waves, dataclasses.replace(TINY, updates=5))
    assert torch.equal(torch.rand(3), expected)


def test_training_learns(waves: Dataset) -> None:
    trained = train(waves, dataclasses.replace(TINY, updates=200, hidden=16))
    changes = np.nanmean(np.abs(np.diff(waves.values)))  # what repeating the last value gives, about 6.5
    assert trained.validation_mae < 0.4 * changes


def test_the_network_kept_is_the_best_by_validation(waves: Dataset) -> None:
    # Training rises, validation falls: the more is learnt, the worse the validation.
    values = np.concatenate([np.arange(260), np.arange(260, 120, -1)])[None].astype(np.float32) / np.float32(
        100
    )
    misled = dataclasses.replace(waves, values=values / np.float32(100), series=("a",))
    trained = train(misled, dataclasses.replace(TINY, updates=200, averaging=0.0))
    assert trained.best_update < trained.updates == 200
    assert validation_mae(misled, trained.network, 24) == pytest.approx(trained.validation_mae, rel=1e-5)


def test_training_never_sees_the_test_part(waves: Dataset) -> None:
    values = waves.values.copy()
    values[:, waves.validation_end :] = 1e6
    assert same(state(train(waves, TINY)), state(train(dataclasses.replace(waves, values=values), TINY)))


@pytest.mark.parametrize("stop_after", [20, 27])
def test_a_stopped_run_resumes_to_the_result_of_one_never_stopped(
    waves: Dataset, tmp_path: Path, stop_after: int
) -> None:
    checkpoint = tmp_path / "new" / "run.checkpoint"
    whole = train(waves, TINY)
    stopped = train(waves, TINY, checkpoint=checkpoint, stop_after=stop_after)
    assert stopped.updates == stop_after
    resumed = train(waves, TINY, checkpoint=checkpoint, resume=True)
    assert resumed.updates == 40
    assert same(state(resumed), state(whole))
    assert (resumed.validation_mae, resumed.best_update) == (whole.validation_mae, whole.best_update)


def test_a_run_resumed_after_its_end_gives_its_result_again(waves: Dataset, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    whole = train(waves, TINY, checkpoint=checkpoint)
    assert same(state(train(waves, TINY, checkpoint=checkpoint, resume=True)), state(whole))


def test_a_checkpoint_of_another_run_or_none_is_refused(waves: Dataset, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    with pytest.raises(TrainingError) as caught:
        train(waves, TINY, resume=True)
    assert "no checkpoint" in str(caught.value)
    with pytest.raises(TrainingError) as caught:
        train(waves, TINY, checkpoint=checkpoint, resume=True)
    assert "no such checkpoint" in str(caught.value)
    train(waves, TINY, checkpoint=checkpoint, stop_after=10)
    for data, settings in (
        (waves, dataclasses.replace(TINY, seed=4)),
        (dataclasses.replace(waves, values=waves.values + 1), TINY),
    ):
        with pytest.raises(TrainingError) as caught:
            train(data, settings, checkpoint=checkpoint, resume=True)
        assert "other settings or other data" in str(caught.value)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(TrainingError) as caught:
        train(waves, TINY, checkpoint=checkpoint, resume=True)
    assert "damaged" in str(caught.value)


def test_a_constant_series_trains_without_a_division_by_zero(waves: Dataset) -> None:
    flat = dataclasses.replace(waves, values=np.full_like(waves.values, 7.0))
    trained = train(flat, TINY)
    assert trained.validation_mae < 0.5


def write_csv(path: Path, rows: int = 300) -> Path:
    lines = [
        f"2024-01-{1 + k // 24:02}T{k % 24:02}:00,{50 + 20 * np.sin(k / 12 * np.pi):.3f}" for k in range(rows)
    ]
    path.write_text("time,level\n" + "\n".join(lines) + "\n")
    return path


def test_the_command_trains_on_a_file_and_numbers_its_versions(tmp_path: Path) -> None:
    from longshort_model.replay import Replay

    file = write_csv(tmp_path / "tank.csv")
    arguments = ["--data", str(file), "--column", "level", "--out", str(tmp_path / "models"), "--no-progress"]
    arguments += ["--report", str(tmp_path / "build"), "--hidden", "8", "--updates", "20", "--window", "24"]
    families = {1: "", 2: "tank-lstm"}
    for family in families.values():
        result = CliRunner().invoke(command, [*arguments, "--state-family", family])
        assert result.exit_code == 0, result.output
    assert "weekly naive" in result.output
    for version, family in families.items():
        signature = Replay(tmp_path / "models" / "tank" / str(version) / "model.onnx").signature
        assert (signature.name, signature.features[0].name, signature.step_s) == ("tank", "level", 3600.0)
        assert signature.scores["mae"] > 0
        assert signature.state_family == family
    assert {path.name for path in (tmp_path / "build").iterdir()} == {
        "tank.json",
        "tank.png",
        "tank.checkpoint",
    }


def test_the_command_tells_a_model_the_calendar_where_it_is_asked_to(tmp_path: Path) -> None:
    from longshort_model.replay import Replay

    arguments = [
        "--data",
        str(write_csv(tmp_path / "tank.csv")),
        "--calendar",
        "--out",
        str(tmp_path / "models"),
    ]
    arguments += ["--report", str(tmp_path / "build"), "--hidden", "4", "--updates", "20", "--window", "24"]
    result = CliRunner().invoke(command, [*arguments, "--no-progress"])
    assert result.exit_code == 0, result.output
    signature = Replay(tmp_path / "models" / "tank" / "1" / "explain.onnx").signature
    assert [channel.name for channel in signature.features] == ["level", "hour", "weekday"]
    assert signature.known_features() == [1, 2]
    report = json.loads((tmp_path / "build" / "tank.json").read_text())
    assert len(report["error_by_horizon"]) == 24
    # Another model with the other inputs does not go on from its checkpoint.
    other = CliRunner().invoke(command, [*(a for a in arguments if a != "--calendar"), "--resume"])
    assert (other.exit_code, "other settings or other data" in other.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "no.csv"], "no.csv"),
        (["--data", "FILE", "--column", "depth"], "no column 'depth'"),
        (["--data", "FILE", "--resume"], "no such checkpoint"),
        (["--data", "FILE", "--name", "../x"], "--name"),
        (["--data", "FILE", "--version", "0"], "--version"),
        (["--shipped", "--hidden", "3"], "--shipped"),
        (["--shipped", "--state-family", "f"], "--shipped"),
        (["--shipped", "--calendar"], "--shipped"),
    ],
)
def test_a_mistake_of_the_callers_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_csv(tmp_path / "tank.csv")
    result = CliRunner().invoke(command, [str(file) if a == "FILE" else a for a in arguments])
    assert result.exit_code == 2
    assert expected in result.output.splitlines()[-1]
    assert not (tmp_path / "models").exists()


def test_the_command_notices_uneven_rows_and_says_where_no_linear_model_could_be_fitted(
    tmp_path: Path,
) -> None:
    lines = write_csv(tmp_path / "tank.csv", rows=121).read_text().splitlines()
    del lines[60]
    lines[15:55] = [line.partition(",")[0] + "," for line in lines[15:55]]
    (tmp_path / "tank.csv").write_text("\n".join(lines))
    arguments = ["--data", str(tmp_path / "tank.csv"), "--out", str(tmp_path / "models"), "--no-progress"]
    arguments += ["--report", str(tmp_path / "build"), "--hidden", "4", "--updates", "3", "--window", "24"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Warning: ")
    assert "tank.csv: 1 of 119 steps" in result.stderr
    assert result.stderr.endswith("line 61\n")
    assert result.stderr.count("\n") == 1
    assert "linear ar     -" in result.stdout


@pytest.mark.parametrize("missing", ["torch", "matplotlib"])
def test_without_what_training_needs_the_command_says_before_it_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)  # makes its import fail
    result = CliRunner().invoke(command, ["--data", str(write_csv(tmp_path / "tank.csv"))])
    assert result.exit_code == 2
    assert "in a checkout: pip install ./client '.[train]'" in result.output
    assert not (tmp_path / "build").exists()
