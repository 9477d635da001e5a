"""Which signature a model has: its file's own, what signature.toml beside it says, and what is inferred of its graph.

Owns the order of these three and puts them together; what each means is known to rooms of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longshort_service import model_file as model_files
from longshort_service.graph_check import ModelError
from longshort_service.signature import METADATA_KEY, SignatureError, from_json

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_service.signature import Signature


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model's signature with what it takes to run it.

    `arrays` holds by graph input what the signature's files hold, of its dtypes and shapes: of constants, and of one
    session what its states start with. `warnings` are sentences that an operator should read. `table` says what was
    inferred, line by line, None where nothing was.
    """

    signature: Signature
    arrays: dict[str, NDArray[Any]]
    warnings: tuple[str, ...] = ()
    table: str | None = None


def resolve(folder: Path, model_file: Path) -> Resolved:  # noqa: ARG001  signature.toml comes next
    """Return the signature of the model in `folder`.

    What signature.toml says goes before what the file's metadata says, and that before what is inferred. Blocks; reads
    files of the folder only, and runs the graph only where the shape of an output cannot be known otherwise. Raises
    ModelError with what to write where something cannot be inferred, and where the file is refused; OSError where it
    cannot be read.
    """
    outside = model_files.look_at(model_file)
    text = outside.metadata.get(METADATA_KEY)
    if text is None:
        raise ModelError(f"{model_file}: the file carries no {METADATA_KEY}")
    try:
        return Resolved(from_json(text), {})
    except SignatureError as error:
        raise ModelError(f"{model_file}: {error}") from error
