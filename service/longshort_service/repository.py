"""The model repository: which versions there are on disk, which are loaded, and loading the new ones.

A repository is a folder `<name>/<version>/model.onnx`; versions are integers and the highest serves by default.
Knows no sessions: who uses a version is asked when one is to be unloaded.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from longshort_service import errors
from longshort_service.engine import Engine, ModelError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from longshort_service.arena import Arena
    from longshort_service.columns import SessionColumns
    from longshort_service.lane import Lane
    from longshort_service.signature import Signature

logger = logging.getLogger(__name__)

MODEL_FILE: Final = "model.onnx"
EXPLAIN_FILE: Final = "explain.onnx"
_VERSION: Final = re.compile("[1-9][0-9]{0,17}")  # one folder a version: 1 and 01 would be two


@dataclass(slots=True, eq=False)
class Model:
    """One loaded version of a model. Compared by identity."""

    name: str
    version: int
    folder: Path
    file_mtime_ns: int
    lane: Lane
    _explain: Engine | None = None

    @property
    def signature(self) -> Signature:
        """What its numbers mean."""
        return self.lane.engine.signature

    @property
    def arena(self) -> Arena:
        """Its state rows."""
        return self.lane.arena

    @property
    def columns(self) -> SessionColumns:
        """What is known of the sessions in them."""
        return self.lane.columns

    def piece_steps(self, num_rows: int) -> int:
        """Return the number of steps above which messages of so many sessions take more than one run."""
        return self.lane.policy.piece(num_rows)

    @property
    def can_explain(self) -> bool:
        """Whether an explain.onnx lies beside it."""
        return (self.folder / EXPLAIN_FILE).is_file()

    def explain_engine(self) -> Engine:
        """Return the engine of explain.onnx, loaded on first use. Blocks; raises ExplainUnavailable."""
        if self._explain is None:
            if not self.can_explain:
                raise errors.ExplainUnavailable(
                    f"{self.name}/{self.version} has no {EXPLAIN_FILE}: export it with longshort",
                    model=self.name,
                )
            try:
                self._explain = Engine(self.folder / EXPLAIN_FILE, provider="cpu", intra_op_num_threads=1)
            except ModelError as error:
                raise errors.ExplainUnavailable(str(error), model=self.name) from error
        return self._explain


@dataclass(slots=True)
class ReloadResult:
    """What a look at the repository changed, as name/version."""

    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class RepositoryObserver(Protocol):
    """Who is told of models that come and go, at the moment they do."""

    def loaded(self, model: Model, repository: Repository) -> None:
        """Note that a version serves from now on."""

    def unloaded(self, model: Model) -> None:
        """Note that a version is gone."""


class Repository:
    """The loaded models. `load` makes a Model of a version's folder; it may block and raise ModelError."""

    def __init__(
        self, root: Path, load: Callable[[str, int, Path], Model], observer: RepositoryObserver
    ) -> None:
        self.root = root
        self._load = load
        self._observer = observer
        self._models: dict[str, dict[int, Model]] = {}
        self._reloading = asyncio.Lock()

    def get(self, name: str, version: int = 0) -> Model:
        """Return a loaded version, the highest for 0. Raises ModelNotFound, naming what there is."""
        versions = self._models.get(name)
        if not versions:
            known = ", ".join(sorted(self._models)) or "none"
            raise errors.ModelNotFound(f"no model {name!r} is loaded; there are: {known}", model=name)
        model = versions.get(version or max(versions))
        if model is None:
            known = ", ".join(map(str, sorted(versions)))
            raise errors.ModelNotFound(
                f"model {name} has no version {version}; there are: {known}", model=name, version=version
            )
        return model

    def models(self) -> list[Model]:
        """Return every loaded version by name and version."""
        return [
            self._models[name][version]
            for name in sorted(self._models)
            for version in sorted(self._models[name])
        ]

    def is_serving(self, model: Model) -> bool:
        """Whether new sessions get this version by default."""
        return model.version == max(self._models[model.name])

    def num_queued_steps(self, name: str) -> int:
        """Return how many steps wait for any version of a model. Scrapes call it from another thread."""
        return sum(model.lane.num_queued_steps for model in list(self._models.get(name, {}).values()))

    def num_state_bytes(self, name: str) -> int:
        """Return how many bytes of state the sessions of a model hold."""
        arenas = [model.arena for model in list(self._models.get(name, {}).values())]
        return sum(arena.num_held * arena.row_bytes for arena in arenas)

    async def reload(self, is_in_use: Callable[[Model], Awaitable[bool]]) -> ReloadResult:
        """Load versions that are new on disk, unload those that are gone and unused. What fails changes nothing."""
        async with self._reloading:
            result = ReloadResult()
            found = await asyncio.to_thread(self._scan)
            for (name, version), folder in sorted(found.items()):
                await self._refresh(name, version, folder, result)
            for model in self.models():
                if (model.name, model.version) not in found and not await is_in_use(model):
                    del self._models[model.name][model.version]
                    if not self._models[model.name]:
                        del self._models[model.name]
                    self._observer.unloaded(model)
                    result.unloaded.append(f"{model.name}/{model.version}")
            return result

    async def _refresh(self, name: str, version: int, folder: Path, result: ReloadResult) -> None:
        label = f"{name}/{version}"
        have = self._models.get(name, {}).get(version)
        try:
            if have is not None:
                if (folder / MODEL_FILE).stat().st_mtime_ns != have.file_mtime_ns:
                    result.failed[label] = "the file has changed: a new model needs a new version number"
                return
            model = await asyncio.to_thread(self._load, name, version, folder)
        except (ModelError, OSError) as error:
            result.failed[label] = str(error)
            logger.error("model not loaded", extra={"fields": {"model": label, "cause": str(error)}})  # noqa: TRY400
            return
        self._models.setdefault(name, {})[version] = model
        self._observer.loaded(model, self)
        result.loaded.append(label)

    def _scan(self) -> dict[tuple[str, int], Path]:
        """Return the folder of every version that has a model file. Blocks."""
        return {
            (path.parent.parent.name, int(path.parent.name)): path.parent
            for path in self.root.glob(f"*/*/{MODEL_FILE}")
            if _VERSION.fullmatch(path.parent.name)
        }
