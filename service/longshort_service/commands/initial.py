"""What a session begins in, read from files: the option that names them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from longshort_service.commands.group import Mistake

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def initial_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--initial`, which may be given several times, as `initial`."""
    return click.option(
        "--initial",
        multiple=True,
        metavar="FILE.npz|NAME=FILE.npy",
        help="What a session that is created begins in: states by their input's names, and its constants.",
    )(command)


def read_initial(given: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays that `--initial` names, as they are in their files. Raises Mistake."""
    arrays: dict[str, NDArray[Any]] = {}
    for text in given:
        name, separator, path = text.partition("=")
        found = {name: _array(path)} if separator else _arrays(text)
        for taken in found.keys() & arrays.keys():
            raise Mistake(f"--initial gives {taken} twice")
        arrays |= found
    return arrays


def _array(path: str) -> NDArray[Any]:
    loaded = _load(path)
    if isinstance(loaded, dict):
        raise Mistake(f"{path} holds arrays by name: give it as --initial {path}")
    return loaded


def _arrays(path: str) -> dict[str, NDArray[Any]]:
    loaded = _load(path)
    if not isinstance(loaded, dict):
        raise Mistake(f"{path} holds one array: say which state it is, as --initial NAME={path}")
    return loaded


def _load(path: str) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return the array of a .npy file, or those of a .npz by name. Raises Mistake."""
    import numpy as np  # noqa: PLC0415  not needed for --help

    try:
        loaded = np.load(Path(path), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Mistake(f"{path} is no file of NumPy arrays: {error}") from None
