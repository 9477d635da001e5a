"""Making a served model of a file: engine, warm-up, rows, lane; and telling metrics and log of what is loaded."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from longshort_service.arena import Arena
from longshort_service.batching import BatchPolicy
from longshort_service.columns import SessionColumns
from longshort_service.engine import PROVIDERS, Engine
from longshort_service.explain_file import can_explain
from longshort_service.file_trial import can_optimise
from longshort_service.graph_check import ModelError
from longshort_service.host_states import HostStates
from longshort_service.lane import Lane
from longshort_service.model_signature import resolve
from longshort_service.observers import LaneMetrics
from longshort_service.repository import Model
from longshort_service.row_probe import probe_rows
from longshort_service.signature import MissingValue
from longshort_service.version_folder import MODEL_FILE, promise_of

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_service.arena import StateMemory
    from longshort_service.config import ServeConfig
    from longshort_service.metrics import Metrics
    from longshort_service.model_signature import Resolved
    from longshort_service.repository import Repository
    from longshort_service.resident_engine import ResidentEngine

logger = logging.getLogger(__name__)

# Rows beside those of sessions, for long messages and forecasts under way.
SCRATCH_ROWS: Final = 8192
# Of a batch whose rows run one by one: it holds up the others for as long as they take together.
MAX_ROWS_ALONE: Final = 16
UNOPTIMISED: Final = (
    "onnxruntime ends its process where it optimises this file in full: it is run with its basic optimisation alone, "
    "which may be slower"
)


class ModelLoader:
    """Loads models as the configuration says. Also the repository's observer."""

    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics

    def load(self, name: str, version: int, folder: Path) -> Model:
        """Load one version and warm it up. Blocks; raises ModelError or OSError."""
        try:
            return self._load(name, version, folder)
        except MemoryError as error:  # a file from outside may ask for states of any size
            raise ModelError(
                f"{folder / MODEL_FILE}: there is no memory for its rows at {self._config.max_sessions} sessions "
                f"(--max-sessions): {error}"
            ) from error
        except (ModelError, OSError):
            raise
        except (
            Exception
        ) as error:  # whatever its bytes have led to: it must not keep others from being loaded
            raise ModelError(f"{folder / MODEL_FILE}: it is damaged: {error!r}") from error

    def _load(self, name: str, version: int, folder: Path) -> Model:
        config, file = self._config, folder / MODEL_FILE
        promise = promise_of(folder)  # before it is read: what is changed meanwhile is seen to have changed
        num_rows = config.max_sessions + SCRATCH_ROWS
        is_optimised = can_optimise(folder, file)  # first: what is refused there never runs here
        resolved = resolve(folder, file)
        if resolved.table is not None:
            fields = {"table": resolved.table}
            logger.info("the signature of %s/%s, as inferred", name, version, extra={"fields": fields})
        warnings = [*resolved.warnings, *(() if is_optimised else (UNOPTIMISED,))]
        is_for_device = config.provider != "cpu" and resolved.signature.is_plain and is_optimised
        is_own = resolved.table is None  # exported by longshort: its rows do not feel each other
        resident = self._load_resident(file, num_rows, resolved) if is_for_device and is_own else None
        if resident is None:
            engine = Engine(
                file,
                provider=config.provider,
                intra_op_num_threads=config.intra_op_num_threads,
                signature=resolved.signature,
                arrays=resolved.arrays,
                is_optimised=is_optimised,
            )
            warnings += _run_alone_where_needed(engine)
            if is_for_device and not is_own and engine.signature.is_plain:
                resident = self._load_resident(file, num_rows, resolved)
        for warning in warnings:
            logger.warning("%s/%s: %s", name, version, warning)
        states: HostStates | None = None
        if resident is None:
            states = HostStates(engine.layouts, num_rows)
            memory: StateMemory = states
        else:
            engine, memory = resident.plain, resident.states
        signature = engine.signature
        max_rows = (
            min(config.max_batch_rows, MAX_ROWS_ALONE) if signature.rows_alone else config.max_batch_rows
        )
        piece_steps = 1 if signature.steps_alone else config.piece_steps
        cost = (resident or engine).warm_up(max_rows, piece_steps)
        lane = Lane(
            name=name,
            engine=engine,
            arena=Arena(memory, num_rows),
            states=states,
            resident=resident,
            columns=SessionColumns(
                num_rows,
                signature.value_row.width,
                signature.answer_row.width,
                repeats_last=signature.missing is MissingValue.REPEAT_LAST,
            ),
            policy=BatchPolicy(
                max_rows,
                piece_steps,
                signature.sequence_lens is not None
                and not signature.rows_alone
                and not signature.steps_alone,
                cost,
            ),
            observer=LaneMetrics(self._metrics, name, version),
        )
        return Model(name, version, folder, promise, lane, can_explain(file))

    def _load_resident(self, file: Path, num_rows: int, resolved: Resolved) -> ResidentEngine | None:
        """Return an engine with its states on the device; None for a graph that has to take them from the host."""
        try:
            from longshort_service.resident_engine import ResidentEngine  # noqa: PLC0415
            from longshort_service.resident_graph import UnsuitableGraph  # noqa: PLC0415
        except ImportError as error:
            raise ModelError(
                f"the {self._config.provider} provider needs the package onnx: {error}"
            ) from error
        try:
            return ResidentEngine(
                file,
                provider=self._config.provider,
                intra_op_num_threads=self._config.intra_op_num_threads,
                num_rows=num_rows,
                signature=resolved.signature,
                arrays=resolved.arrays,
            )
        except UnsuitableGraph as error:
            logger.warning("states of %s stay in main memory: %s", file, error)
            return None

    def loaded(self, model: Model, repository: Repository) -> None:
        """Tell of a version that serves from now on."""
        provider = model.lane.provider
        self._metrics.model_loaded(model.name, model.version, model.signature.fingerprint, provider)
        self._metrics.watch_queue(model.name, partial(repository.num_queued_steps, model.name))
        self._metrics.watch_state_bytes(model.name, partial(repository.num_state_bytes, model.name))
        logger.info("model loaded", extra={"fields": {"model": f"{model.name}/{model.version}"}})

    def unloaded(self, model: Model) -> None:
        """Tell of a version that is gone."""
        self._metrics.model_unloaded(model.name, model.version)
        logger.info("model unloaded", extra={"fields": {"model": f"{model.name}/{model.version}"}})


def _run_alone_where_needed(engine: Engine) -> tuple[str, ...]:
    """Have an engine run rows, or steps, alone that depend on their company; return what an operator should read."""
    engine.check_results()
    findings = probe_rows(engine, exact=engine.provider == PROVIDERS["cpu"])
    engine.use_signature(findings.applied_to(engine.signature))
    return findings.warnings
