"""Data sets: what is bundled, what is read, and what a bad file is told."""

from __future__ import annotations

import gzip
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from longshort_model.csv_file import DatasetError
from longshort_model.dataset import LEAST_ROWS, load, metro, parking, read_csv, repeat_last, with_calendar

if TYPE_CHECKING:
    from pathlib import Path


NAN = float("nan")


def write(
    path: Path, *, rows: int = 200, header: str = "time,a,b", change: dict[int, str] | None = None
) -> Path:
    """Write hourly rows of two columns; `change` replaces lines by their number."""
    lines = [header]
    lines += [f"2024-01-{1 + k // 24:02}T{k % 24:02}:00,{k},{2 * k}.5" for k in range(rows)]
    for number, line in (change or {}).items():
        lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_metro_is_two_years_of_hours_split_last_in_time() -> None:
    data = metro()
    assert data.values.shape == (1, 17_520)
    assert data.values.dtype == np.float32
    assert np.isnan(data.values).sum() == 104
    assert (data.train_end, data.validation_end - data.train_end) == (480 * 24, 70 * 24)
    assert data.values.shape[1] - data.validation_end == 180 * 24
    assert (data.step_s, data.day, data.week) == (3600.0, 24, 168)
    assert data.values[0, :3].tolist() == [1195, 776, 666]
    assert data.hours()[:25].tolist() == [*range(24), 0]


def test_parking_is_28_series_of_days_without_night() -> None:
    data = parking()
    assert data.values.shape == (28, 73 * 18)
    assert (data.train_end, data.validation_end) == (46 * 18, 55 * 18)
    assert (data.step_s, data.day) == (1800.0, 18)
    assert set(data.hours().tolist()) == set(range(8, 17))
    assert data.series[0] == "BHMBCCMKT01"


def test_a_csv_file_gives_one_series_a_column(tmp_path: Path) -> None:
    data = read_csv(write(tmp_path / "mine.csv"), ["b", "a"])
    assert data.name == "mine"
    assert data.series == ("b", "a")
    assert data.values[:, 3].tolist() == [6.5, 3.0]
    assert (data.train_end, data.validation_end) == (130, 150)
    assert (data.step_s, data.day) == (3600.0, 24)


def test_the_only_column_needs_no_name_and_times_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("level\n" + "\n".join(map(str, range(150))) + "\n")
    data = read_csv(path)
    assert data.series == ("level",)
    assert (data.step_s, data.day, data.hours()) == (None, None, None)


def test_gzip_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    text = write(tmp_path / "x.csv").read_text().replace("\n", "\r\n")
    path = tmp_path / "y.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    data = load(str(path), ["a"])
    assert data.name == "y"
    assert data.values[0, -1] == 199


def test_empty_cells_and_blank_lines_of_a_single_column_are_missing_values(tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    values = list(map(str, range(150)))
    values[5], values[6], values[7] = "", "NaN", "NA"
    path.write_text("level\n" + "\n".join(values) + "\n\n\n")
    data = read_csv(path)
    assert np.isnan(data.values[0]).nonzero()[0].tolist() == [5, 6, 7]


def test_the_time_column_may_have_any_name(tmp_path: Path) -> None:
    data = read_csv(write(tmp_path / "x.csv", header="when,a,b"), ["a"], time_column="when")
    assert data.step_s == 3600.0


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ({}, {"columns": ["c"]}, ["line 1", "no column 'c'", "'time', 'a', 'b'"]),
        ({}, {"columns": []}, ["line 1", "name the column"]),
        ({}, {"columns": ["a"], "time_column": "t"}, ["line 1", "no column 't'"]),
        ({57: "2024-01-03T07:00,12o,1"}, {"columns": ["a"]}, ["line 57", "column 'a'", "'12o'"]),
        ({57: "2024-01-03T07:00,inf,1"}, {"columns": ["a"]}, ["line 57", "column 'a'", "finite"]),
        ({57: "2024-01-03T07:00,1e39,1"}, {"columns": ["a"]}, ["line 57", "column 'a'", "finite"]),
        ({57: "2024-01-03T07:00,1_000,1"}, {"columns": ["a"]}, ["line 57", "column 'a'", "'1_000'"]),
        ({57: "yesterday,1,1"}, {"columns": ["a"]}, ["line 57", "column 'time'", "'yesterday'"]),
        ({57: "2024-01-03T07:00,1"}, {"columns": ["a"]}, ["line 57", "2 cells", "3"]),
        ({57: ""}, {"columns": ["a"]}, ["line 57", "1 cells"]),
        ({57: "2024-01-03T07:00,1,2,3"}, {"columns": ["a"]}, ["line 57", "4 cells"]),
        ({57: "2024-01-01T00:00,1,2"}, {"columns": ["a"]}, ["times do not always rise"]),
        ({57: "2024-01-03T07:00Z,1,2"}, {"columns": ["a"]}, ["offset from UTC"]),
        ({1: "time,a,a"}, {"columns": ["a"]}, ["line 1", "'a' is named twice"]),
    ],
)
def test_a_bad_file_is_told_its_line_and_column(
    tmp_path: Path, change: dict[int, str] | None, options: dict[str, Any], expected: list[str]
) -> None:
    path = write(tmp_path / "bad.csv", change=change)
    with pytest.raises(DatasetError) as caught:
        read_csv(path, **options)
    for part in [str(path), *expected]:
        assert part in str(caught.value)


def test_a_short_an_empty_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read_csv(write(tmp_path / "short.csv", rows=LEAST_ROWS - 1), ["a"])
    assert f"{LEAST_ROWS - 1} rows" in str(caught.value)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DatasetError) as caught:
        read_csv(tmp_path / "empty.csv")
    assert "is empty" in str(caught.value)
    (tmp_path / "header.csv").write_text("a\n")
    with pytest.raises(DatasetError) as caught:
        read_csv(tmp_path / "header.csv")
    assert "0 rows" in str(caught.value)
    with pytest.raises(DatasetError) as caught:
        read_csv(write(tmp_path / "one.csv", rows=1), ["a"])
    assert "one.csv: 1 rows" in str(caught.value)
    with pytest.raises(DatasetError) as caught:
        load("no-such-file.csv")
    assert "no-such-file.csv" in str(caught.value)


def test_a_part_without_any_value_is_refused(tmp_path: Path) -> None:
    gap = {line: f"2024-01-0{1 + (line - 2) // 24}T{(line - 2) % 24:02}:00,,1" for line in range(132, 152)}
    with pytest.raises(DatasetError) as caught:
        read_csv(write(tmp_path / "gap.csv", change=gap), ["a"])
    assert "column 'a': no value in its validation part, rows 131 to 150" in str(caught.value)


def test_bytes_that_are_no_text_are_told_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "latin.csv")
    path.write_bytes(path.read_bytes().replace(b"T05:00,5,", b"T05:00,\xe45,", 1))
    with pytest.raises(DatasetError) as caught:
        read_csv(path, ["a"])
    assert "line 7: not UTF-8 (byte 0xe4)" in str(caught.value)


WHOLE_GZIP = gzip.compress(b"a\n" + b"".join(b"%d\n" % k for k in range(500)), mtime=0)
HURT_INSIDE = WHOLE_GZIP[:12] + b"\xff" * 20 + WHOLE_GZIP[32:]


@pytest.mark.parametrize("damage", [b"no gzip", WHOLE_GZIP[:40], HURT_INSIDE], ids=["none", "torn", "hurt"])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(damage)
    with pytest.raises(DatasetError) as caught:
        read_csv(path)
    assert "gzip" in str(caught.value)


def test_rows_that_are_unevenly_spaced_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path / "even.csv"), ["a"]).notice == ""
    late = {201: "2024-01-09T07:30,199,1"}
    path = write(tmp_path / "gaps.csv", change=late | {57: "2024-01-03T07:30,55,1"})
    notice = read_csv(path, ["a"]).notice
    assert notice.startswith(f"{path}: 3 of 199 steps")  # before line 57, after it, and before line 201
    assert notice.endswith("3600 s as usual, the first at line 57")


def test_the_bundled_sets_need_no_notice_of_their_nights() -> None:
    assert metro().notice == parking().notice == ""


def test_options_for_files_are_refused_beside_a_bundled_set() -> None:
    with pytest.raises(DatasetError) as caught:
        load("metro", ["vehicles"])
    assert "--column" in str(caught.value)


def test_a_missing_value_is_the_last_known_one_again() -> None:
    values = np.array([[NAN, 1, NAN, NAN, 4, NAN], [NAN] * 6], np.float32)
    filled = repeat_last(values)
    assert filled[0].tolist() == [1, 1, 1, 1, 4, 4]
    assert np.isnan(filled[1]).all()


def test_what_the_demo_imports_brings_no_torch() -> None:
    modules = ["dataset", "baselines", "evaluation", "replay", "report", "command", "synthetic"]
    code = "import sys; " + "; ".join(f"import longshort_model.{name}" for name in modules)
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "False"


def test_a_calendar_puts_hour_and_weekday_of_each_row_beside_its_value() -> None:
    data = load("metro-calendar")
    inputs = data.inputs()
    assert inputs.shape == (1, 17520, 3)
    assert data.times[0].weekday() == 5  # 2016-10-01 was a Saturday
    assert inputs[0, 0, 1:].tolist() == [0, 5]
    assert inputs[0, 47, 1:].tolist() == [23, 6]
    assert inputs[0, 48, 1:].tolist() == [0, 0]
    np.testing.assert_array_equal(inputs[..., :1], metro().inputs())
    assert (data.name, metro().inputs().shape[-1]) == ("metro-calendar", 1)


def test_a_file_without_times_has_no_calendar(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("level\n" + "1\n2\n" * 100)
    with pytest.raises(DatasetError) as caught:
        with_calendar(load(str(tmp_path / "a.csv")))
    assert "needs the time of each row" in str(caught.value)
