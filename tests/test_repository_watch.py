"""Watching a repository: when a version is taken, when it is let be, and what a look must not do."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from inside import until
from longshort_service import errors
from longshort_service.graph_check import ModelError
from longshort_service.repository import Model, Repository
from longshort_service.repository_watch import RepositoryWatch
from longshort_service.version_folder import MODEL_FILE, promise_of, scan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


class Shelf:
    """A repository of files that are their own models: one that says "bad" does not load."""

    def __init__(self, root: Path, interval_s: float = 0) -> None:
        self.root = root
        self.attempts: list[str] = []
        self.used: set[str] = set()
        self.is_store_away = False
        self.repository = Repository(root, self._load, self)
        self.watch = RepositoryWatch(self.repository, self._is_in_use, interval_s)

    def _load(self, name: str, version: int, folder: Path) -> Model:
        self.attempts.append(f"{name}/{version}")
        file = folder / MODEL_FILE
        if file.read_text() == "bad":
            raise ModelError("it is bad")
        loaded: Any = SimpleNamespace(name=name, version=version, promise=promise_of(folder))
        return loaded  # type: ignore[no-any-return]

    async def _is_in_use(self, model: Model) -> bool:
        if self.is_store_away:
            raise errors.StoreUnavailable("away")
        return f"{model.name}/{model.version}" in self.used

    def loaded(self, model: Model, repository: Repository) -> None:
        """See RepositoryObserver."""

    def unloaded(self, model: Model) -> None:
        """See RepositoryObserver."""

    def put(self, version: int, text: str = "good", file: str = MODEL_FILE) -> Path:
        """Write a file of a version."""
        path = self.root / "adder" / str(version) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def serving(self) -> list[int]:
        """Return the versions that are loaded."""
        return [model.version for model in self.repository.models()]

    async def looks(self, count: int) -> list[list[int]]:
        """Look so often; return what was loaded after each."""
        seen = []
        for _ in range(count):
            await self.watch.look()
            seen.append(self.serving())
        return seen


@pytest.fixture
def shelf(tmp_path: Path, run: Run) -> Shelf:
    shelf = Shelf(tmp_path)
    shelf.put(1)
    run(shelf.repository.reload(shelf._is_in_use))
    assert shelf.serving() == [1]
    return shelf


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        f"{record.getMessage()}: {record.__dict__['fields']}"
        for record in caplog.records
        if record.levelno >= logging.ERROR
    ]


def test_version_is_taken_when_it_looks_the_same_twice(run: Run, shelf: Shelf):
    shelf.put(2)
    assert run(shelf.looks(3)) == [[1], [1, 2], [1, 2]]
    assert shelf.attempts == ["adder/1", "adder/2"]


def test_version_that_is_still_being_copied_is_let_be(run: Run, shelf: Shelf):
    for size in range(1, 5):
        shelf.put(2, "b" * size)  # each look sees it longer than the last
        assert run(shelf.looks(1)) == [[1]]
    path = shelf.put(2, "good")
    for mtime_ns in (1, 2, 3):  # of equal size and written again
        os.utime(path, ns=(0, mtime_ns))
        assert run(shelf.looks(1)) == [[1]]
    assert run(shelf.looks(1)) == [[1, 2]]
    assert shelf.attempts == ["adder/1", "adder/2"]


@pytest.mark.parametrize("file", [MODEL_FILE, "signature.toml"])
@pytest.mark.parametrize("is_new", [True, False])
def test_loaded_version_whose_promise_changes_stays_and_says_so_once(
    run: Run, shelf: Shelf, caplog: pytest.LogCaptureFixture, file: str, *, is_new: bool
):
    if not is_new:
        shelf.put(2, file=MODEL_FILE)
        os.utime(shelf.put(2, file=file), ns=(0, 1))
        assert run(shelf.looks(2)) == [[1], [1, 2]]
    os.utime(shelf.put(1 if is_new else 2, file=file), ns=(0, 2))
    assert run(shelf.looks(4))[-1] == shelf.serving()
    (told,) = errors_in(caplog)
    assert f"{file} has changed since it was loaded" in told
    assert len(shelf.attempts) == len(shelf.serving())


def test_weights_beside_the_graph_are_waited_for(run: Run, shelf: Shelf):
    shelf.put(2)
    for size in range(1, 4):
        shelf.put(2, "w" * size, "weights.bin")
        assert run(shelf.looks(1)) == [[1]]
    assert run(shelf.looks(1)) == [[1, 2]]


def test_version_that_failed_is_tried_again_only_when_its_files_change(
    run: Run, shelf: Shelf, caplog: pytest.LogCaptureFixture
):
    shelf.put(2, "bad")
    assert run(shelf.looks(5)) == [[1]] * 5
    assert shelf.attempts == ["adder/1", "adder/2"]
    assert len(errors_in(caplog)) == 1
    shelf.put(2, "bad", "weights.bin")
    run(shelf.looks(3))
    assert shelf.attempts == ["adder/1", "adder/2", "adder/2"]
    assert len(errors_in(caplog)) == 2
    shelf.put(2, "good")
    assert run(shelf.looks(2)) == [[1], [1, 2]]


def test_version_that_failed_and_was_made_anew_as_before_is_tried_again(run: Run, shelf: Shelf):
    path = shelf.put(2, "bad")
    run(shelf.looks(2))
    mtime_ns = path.stat().st_mtime_ns
    shutil.rmtree(path.parent)
    run(shelf.looks(1))
    os.utime(shelf.put(2, "bad"), ns=(mtime_ns, mtime_ns))
    run(shelf.looks(2))
    assert shelf.attempts.count("adder/2") == 2


def test_file_changed_under_its_version_is_told_once_and_not_loaded(
    run: Run, shelf: Shelf, caplog: pytest.LogCaptureFixture
):
    os.utime(shelf.put(1, "other"), ns=(0, 1))
    run(shelf.looks(4))
    assert shelf.attempts == ["adder/1"]
    (told,) = errors_in(caplog)
    assert "needs a new version number" in told


def test_version_that_is_gone_is_unloaded_when_it_is_missed_twice_and_unused(run: Run, shelf: Shelf):
    folder = shelf.put(2).parent
    run(shelf.looks(2))
    shelf.used.add("adder/2")
    shutil.rmtree(folder)
    assert run(shelf.looks(3)) == [[1, 2]] * 3
    shelf.used.clear()
    assert run(shelf.looks(1)) == [[1]]
    folder = shelf.put(3).parent
    run(shelf.looks(2))
    shutil.rmtree(folder)
    assert run(shelf.looks(2)) == [[1, 3], [1]]


def test_nothing_is_unloaded_while_nobody_knows_what_is_used(run: Run, shelf: Shelf):
    folder = shelf.put(2).parent
    run(shelf.looks(2))
    shutil.rmtree(folder)
    shelf.put(3)
    shelf.is_store_away = True
    assert run(shelf.looks(3)) == [[1, 2], [1, 2, 3], [1, 2, 3]]
    shelf.is_store_away = False
    assert run(shelf.looks(1)) == [[1, 3]]


@pytest.mark.parametrize("vanish", ["emptied", "removed"])
def test_repository_that_has_vanished_unloads_nothing_and_is_told_once(
    run: Run, shelf: Shelf, caplog: pytest.LogCaptureFixture, vanish: str
):
    away = shelf.root.with_name("away")
    shelf.root.rename(away)
    if vanish == "emptied":
        shelf.root.mkdir()
    assert run(shelf.looks(4)) == [[1]] * 4
    (told,) = errors_in(caplog)
    assert told.startswith("models are not watched")
    if vanish == "emptied":
        shelf.root.rmdir()
    away.rename(shelf.root)
    assert run(shelf.looks(2)) == [[1]] * 2
    assert len(errors_in(caplog)) == 1


def test_asked_reload_loads_at_once_what_is_there(run: Run, shelf: Shelf):
    shelf.put(2)
    run(shelf.watch.look())
    shelf.put(3)
    result = run(shelf.repository.reload(shelf._is_in_use))
    assert result.loaded == ["adder/2", "adder/3"]
    assert run(shelf.looks(2)) == [[1, 2, 3]] * 2


def test_root_that_cannot_be_read_is_reported_and_changes_nothing(run: Run, shelf: Shelf):
    shelf.root.rename(shelf.root.with_name("away"))
    result = run(shelf.repository.reload(shelf._is_in_use))
    assert list(result.failed) == [str(shelf.root)]
    assert shelf.serving() == [1]


def test_watch_looks_by_itself_until_it_is_stopped_and_outlives_a_bug(tmp_path: Path, run: Run):
    async def scenario() -> None:
        shelf = Shelf(tmp_path, interval_s=0.01)
        shelf.put(1)
        broken = shelf.repository._load
        shelf.repository._load = None  # type: ignore[assignment]
        shelf.watch.start()
        await asyncio.sleep(0.1)
        assert shelf.serving() == []
        shelf.repository._load = broken
        await until(lambda: shelf.serving() == [1])
        shelf.watch.stop()
        await asyncio.sleep(0.05)
        shelf.put(2)
        await asyncio.sleep(0.1)
        assert shelf.serving() == [1]

    run(scenario())


def test_interval_of_zero_never_looks(run: Run, shelf: Shelf):
    async def scenario() -> None:
        shelf.watch.start()
        shelf.put(2)
        await asyncio.sleep(0.05)
        shelf.watch.stop()

    run(scenario())
    assert shelf.serving() == [1]


def test_what_is_no_version_or_cannot_be_read_is_passed_over(tmp_path: Path):
    for name in ("0", "01", "latest", ".2.part"):
        (tmp_path / "adder" / name).mkdir(parents=True)
        (tmp_path / "adder" / name / MODEL_FILE).touch()
    (tmp_path / "adder" / "2").mkdir()
    (tmp_path / "adder" / "2" / MODEL_FILE).symlink_to("nowhere")
    (tmp_path / "adder" / "3").touch()
    (tmp_path / "README.md").touch()
    (tmp_path / "adder" / "4").mkdir()
    (tmp_path / "adder" / "4" / MODEL_FILE).touch()
    assert [folder.label for folder in scan(tmp_path)] == ["adder/4"]
