"""Making a served model of a file: engine, warm-up, rows, lane; and telling metrics and log of what is loaded."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from longshort_service.arena import Arena
from longshort_service.batching import BatchPolicy
from longshort_service.columns import SessionColumns
from longshort_service.engine import Engine
from longshort_service.host_states import HostStates, StateLayout
from longshort_service.lane import Lane
from longshort_service.observers import LaneMetrics
from longshort_service.repository import MODEL_FILE, Model
from longshort_service.signature import MissingValue

if TYPE_CHECKING:
    from pathlib import Path

    from longshort_service.config import ServeConfig
    from longshort_service.metrics import Metrics
    from longshort_service.repository import Repository

logger = logging.getLogger(__name__)

# Rows beside those of sessions, for long messages and forecasts under way.
SCRATCH_ROWS: Final = 8192


class ModelLoader:
    """Loads models as the configuration says. Also the repository's observer."""

    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics

    def load(self, name: str, version: int, folder: Path) -> Model:
        """Load one version and warm it up. Blocks; raises ModelError."""
        config, file = self._config, folder / MODEL_FILE
        engine = Engine(file, provider=config.provider, intra_op_num_threads=config.intra_op_num_threads)
        cost = engine.warm_up(config.max_batch_rows, config.piece_steps)
        signature = engine.signature
        layouts = [StateLayout(state.shape, state.batch_axis, state.initial) for state in signature.states]
        num_rows = config.max_sessions + SCRATCH_ROWS
        states = HostStates(layouts, num_rows)
        lane = Lane(
            name=name,
            engine=engine,
            arena=Arena(states, num_rows),
            states=states,
            columns=SessionColumns(
                num_rows,
                len(signature.features),
                len(signature.outputs),
                repeats_last=signature.missing is MissingValue.REPEAT_LAST,
            ),
            policy=BatchPolicy(
                config.max_batch_rows, config.piece_steps, signature.sequence_lens is not None, cost
            ),
            observer=LaneMetrics(self._metrics, name, version),
        )
        return Model(name, version, folder, file.stat().st_mtime_ns, lane)

    def loaded(self, model: Model, repository: Repository) -> None:
        """Tell of a version that serves from now on."""
        provider = model.lane.engine.provider
        self._metrics.model_loaded(model.name, model.version, model.signature.fingerprint, provider)
        self._metrics.watch_queue(model.name, partial(repository.num_queued_steps, model.name))
        self._metrics.watch_state_bytes(model.name, partial(repository.num_state_bytes, model.name))
        logger.info("model loaded", extra={"fields": {"model": f"{model.name}/{model.version}"}})

    def unloaded(self, model: Model) -> None:
        """Tell of a version that is gone."""
        self._metrics.model_unloaded(model.name, model.version)
        logger.info("model unloaded", extra={"fields": {"model": f"{model.name}/{model.version}"}})
