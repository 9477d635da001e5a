"""What a graph gave in the runs of one session, one run for all steps or one for each, put together as one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def joined(arrays: Sequence[NDArray[Any]], *, is_stepped: bool) -> NDArray[Any]:
    """Return the tensor of an output of which nothing is known but that `[batch, time, ...]` is the custom.

    `arrays` has the output of each run; with `is_stepped` each run was one step, otherwise there was one run. A first
    axis of one element is the session's and is left out; a longer one is the graph's own (the bands of a spectrum, say)
    and stays. A step's `[batch, 1, ...]` becomes `[batch, time, ...]`; anything else of a step gets the time as a first
    axis.
    """
    if not is_stepped:
        return _without_session(arrays[0])
    if arrays[0].ndim == 3 and arrays[0].shape[1] == 1:
        return _without_session(np.concatenate(arrays, axis=1))
    return np.stack([_without_session(array) for array in arrays])


def _without_session(array: NDArray[Any]) -> NDArray[Any]:
    return array[0] if array.ndim and len(array) == 1 else array
