"""What explains a model: the explain.onnx beside it, or else the graph that is derived of its own recurrent nodes.

Loads onnx only for models without an explain.onnx.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from longshort_service.engine import Engine
from longshort_service.graph_check import ModelError
from longshort_service.version_folder import EXPLAIN_FILE

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

logger = logging.getLogger(__name__)


def can_explain(model_file: Path) -> bool:
    """Whether something explains a model. Blocks; reads the model's graph, not its weights.

    False where the graph cannot be read: whether the model serves is not for this to decide.
    """
    if model_file.with_name(EXPLAIN_FILE).is_file():
        return True
    from longshort_service.explain_graph import can_derive  # noqa: PLC0415  it brings onnx

    try:
        return can_derive(_read(model_file, with_weights=False))
    except ModelError:
        return False


def open_explain(model_file: Path, served: Engine) -> Engine:
    """Return the engine of what explains the model that `served` runs. It runs on the CPU, by the same signature.

    Blocks. Raises ModelError where nothing does, or it cannot be loaded.
    """
    beside = model_file.with_name(EXPLAIN_FILE)
    file: Path | bytes = beside
    label = str(beside)
    if not beside.is_file():
        from longshort_service.explain_graph import NothingToExplain, derive  # noqa: PLC0415

        try:
            derived, notes = derive(_read(model_file, with_weights=True))
        except NothingToExplain as error:
            raise ModelError(f"there is no {EXPLAIN_FILE} beside it, and {error}") from error
        for note in notes:
            logger.warning("explaining %s: %s", model_file, note)
        file, label = derived.SerializeToString(), f"what is derived of {model_file}"
    return Engine(
        file,
        provider="cpu",
        intra_op_num_threads=1,
        signature=served.signature,
        arrays=served.arrays,
        label=label,
        is_optimised=served.is_optimised,
    )


def _read(model_file: Path, *, with_weights: bool) -> onnx.ModelProto:
    """Return a file's model; with its weights in it, wherever they lie. Raises ModelError."""
    import onnx  # noqa: PLC0415
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    try:
        return onnx.load(model_file, load_external_data=with_weights)
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{model_file}: {error}") from error
