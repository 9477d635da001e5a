"""Versions of models on disk: where they lie, and what their files look like. Loads nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

MODEL_FILE: Final = "model.onnx"
EXPLAIN_FILE: Final = "explain.onnx"
SIGNATURE_FILE: Final = "signature.toml"
_PROMISES: Final = (MODEL_FILE, SIGNATURE_FILE)
_VERSION: Final = re.compile("[1-9][0-9]{0,17}")  # one folder a version: 1 and 01 would be two


@dataclass(frozen=True, slots=True, order=True)
class FileLook:
    """A file at one look. A file that is being written changes one of these from look to look."""

    name: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, order=True)
class VersionFolder:
    """A version at one look, `<name>/<version>/`, with all its files: weights may lie beside the graph."""

    name: str
    version: int
    path: Path
    files: tuple[FileLook, ...]

    @property
    def key(self) -> tuple[str, int]:
        """What it is known by."""
        return self.name, self.version

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.name}/{self.version}"

    @property
    def promise(self) -> dict[str, int]:
        """When each file was last written that says what the model promises, as `promise_of` of its path."""
        return _promise(self.files)


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a repository comes to."""

    wanted: Sequence[VersionFolder]  # to be loaded, where they are not
    present: Collection[tuple[str, int]]  # what is loaded and not among these is to go, when nobody uses it


def promise_of(folder: Path) -> dict[str, int]:
    """Return when a version's graph was last written, in ns, and its signature.toml where it has one. Blocks."""
    return _promise(_files_in(folder))


def look_at_all(root: Path) -> Look:
    """Want whatever is there now. Blocks; raises OSError as `scan` does."""
    found = scan(root)
    return Look(found, {folder.key for folder in found})


def scan(root: Path) -> list[VersionFolder]:
    """Return the versions in a repository that have a model file, by name and version.

    Blocks. Raises OSError where the repository itself cannot be read: nothing is known of its versions then.
    """
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries]
    versions = (
        _look(Path(root, name, number), name)
        for name in names
        for number in _names_in(root / name)
        if _VERSION.fullmatch(number)
    )
    return sorted(version for version in versions if version is not None)


def _promise(files: Iterable[FileLook]) -> dict[str, int]:
    return {file.name: file.mtime_ns for file in files if file.name in _PROMISES}


def _look(path: Path, name: str) -> VersionFolder | None:
    files = tuple(sorted(_files_in(path)))
    if MODEL_FILE not in (file.name for file in files):
        return None
    return VersionFolder(name, int(path.name), path, files)


def _files_in(path: Path) -> Iterator[FileLook]:
    for name in _names_in(path):
        try:
            stat = (path / name).stat()
        except OSError:  # gone since, or a link to nowhere
            continue
        yield FileLook(name, stat.st_size, stat.st_mtime_ns)


def _names_in(path: Path) -> list[str]:
    """Return the names in a folder; none where it is no folder, gone since, or closed to us (a volume's lost+found)."""
    try:
        return [entry.name for entry in path.iterdir()]
    except OSError:
        return []
