"""Files beside a model, from outside: a path that stays in the folder, and tensors in .npy files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from longshort_service.graph_check import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Beside the numbers: a header says their shape and dtype. One may claim to be of any length, and would be read whole.
MAX_HEADER_BYTES: Final = 2**16


def inside(folder: Path, location: str) -> Path | None:
    """Return the file that a relative path means; None where it is none, or not in the folder, links followed."""
    try:
        root = folder.resolve()
        path = (root / location).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, a zero in it, links in a circle
        return None


def read_tensor(folder: Path, location: str, shape: tuple[int, ...], dtype: str, what: str) -> NDArray[Any]:
    """Return the tensor in a .npy file of a folder, which must have this shape and dtype; `what` says whose it is.

    Reads no more than that, and no pickled objects. Raises ModelError.
    """
    path = inside(folder, location)
    if path is None:
        raise ModelError(
            f"{what}: no file {location!r} in {folder}: a .npy beside the model is needed, and no link out of it"
        )
    size = math.prod(shape)
    most = size * np.dtype(dtype).itemsize + MAX_HEADER_BYTES
    if path.stat().st_size > most:
        raise ModelError(f"{what}: {location} has more than the {most} bytes of {dtype} {list(shape)}")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            found, by_columns, found_dtype = read(file)
        except Exception as error:  # noqa: BLE001  NumPy has Python parse the header, which raises what it likes
            raise ModelError(f"{what}: {location} is no .npy file: {error}") from None
        if found_dtype.hasobject:
            raise ModelError(f"{what}: {location} holds pickled objects, which are not read")
        if found != shape or found_dtype != np.dtype(dtype):
            raise ModelError(
                f"{what}: {location} is {found_dtype} {list(found)}, it must be {dtype} {list(shape)}"
            )
        data = file.read(size * found_dtype.itemsize)
    if len(data) != size * found_dtype.itemsize:
        raise ModelError(f"{what}: {location} ends too early")
    return np.frombuffer(data, found_dtype).reshape(shape, order="F" if by_columns else "C").copy()
