"""By what a file without a signature of its own is known again: its bytes, and what else changes its numbers.

Names, units and descriptions change none: a session goes on when they are corrected.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_service.ports import Port
    from longshort_service.signature import Signature


def fingerprint_of(signature: Signature, arrays: Mapping[str, NDArray[Any]], files: Iterable[Path]) -> str:
    """Return hexadecimal SHA-256 over files, the graph and its weights, and what a signature makes of them."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    digest.update(what_changes_numbers(signature, arrays).encode())
    return digest.hexdigest()


def what_changes_numbers(signature: Signature, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return all of a signature on which answers depend, in one form whoever said it, or inferred it."""
    held = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in sorted(arrays.items())}
    return json.dumps(
        {
            "values": [_tensor(port) for port in signature.inputs],
            "answers": [_tensor(port) for port in signature.answers],
            "states": sorted(
                [s.input, s.output, s.dtype, list(s.row_shape()), s.initial, s.window_of, s.window_axis]
                for s in signature.states
            ),
            "constants": sorted([c.input, c.dtype, list(c.shape), c.value] for c in signature.constants),
            "held": held,
            "sequence_lens": signature.sequence_lens,
            "missing": signature.missing.value,
        },
        sort_keys=True,
    )


def _tensor(port: Port) -> list[object]:
    """Return what a port's numbers are. Whether a run holds one step of them or many changes none."""
    return [port.name, port.dtype, [size for size in port.shape if size > 1]]
