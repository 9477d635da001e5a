"""The model repository: which versions are loaded, and following what is on disk.

A repository is a folder `<name>/<version>/model.onnx`; versions are integers and the highest serves by default.
Knows no sessions: who uses a version is asked when one is to be unloaded.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from longshort_service import errors
from longshort_service.explain_file import open_explain
from longshort_service.graph_check import ModelError
from longshort_service.processor import processor_name
from longshort_service.record import Origin
from longshort_service.version_folder import MODEL_FILE, Look, look_at_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from longshort_service.arena import Arena
    from longshort_service.columns import SessionColumns
    from longshort_service.engine import Engine
    from longshort_service.lane import Lane
    from longshort_service.signature import Signature
    from longshort_service.version_folder import VersionFolder

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Model:
    """One loaded version of a model. Compared by identity.

    `promise`: when the files that it was loaded from were written, as `promise_of` its folder. `can_explain`: an
    explain.onnx lies beside it, or can be derived from it.
    """

    name: str
    version: int
    folder: Path
    promise: dict[str, int]
    lane: Lane
    can_explain: bool
    origin: Origin = field(init=False)
    _explain: Engine | None = None
    _unexplained: str = ""

    def __post_init__(self) -> None:
        """Note what the numbers of its sessions come from."""
        engine, signature = self.lane.engine, self.lane.engine.signature
        self.origin = Origin(
            self.name,
            self.version,
            signature.fingerprint,
            self.lane.provider,
            processor_name(),
            engine.build,
            signature.family_of_states(),
        )

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

    def explain_engine(self) -> Engine:
        """Return the engine that explains it, tried once, on first use. Blocks; raises ExplainUnavailable."""
        if self._explain is None and not self._unexplained:
            try:
                self._explain = open_explain(self.folder / MODEL_FILE, self.lane.engine)
            except ModelError as error:
                self._unexplained = f"{self.name}/{self.version} cannot be explained: {error}"
        if self._explain is None:
            raise errors.ExplainUnavailable(self._unexplained, model=self.name)
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

    async def reload(
        self, is_in_use: Callable[[Model], Awaitable[bool]], look: Callable[[Path], Look] = look_at_all
    ) -> ReloadResult:
        """Load what is new on disk and unload what is gone and unused, by a look at the root, which may block.

        What fails changes nothing. Sessions go on meanwhile: looks are taken and models are loaded in a thread.
        """
        async with self._reloading:
            result = ReloadResult()
            try:
                seen = await asyncio.to_thread(look, self.root)
            except OSError as error:
                result.failed[str(self.root)] = f"the repository cannot be read: {error.strerror or error}"
                return result
            for folder in seen.wanted:
                await self._refresh(folder, result)
            for model in self.models():
                if (model.name, model.version) not in seen.present and not await _may_be_used(
                    model, is_in_use
                ):
                    self._unload(model, result)
            return result

    async def _refresh(self, folder: VersionFolder, result: ReloadResult) -> None:
        have = self._models.get(folder.name, {}).get(folder.version)
        if have is not None:
            changed = sorted(name for name, _ in folder.promise.items() ^ have.promise.items())
            if changed:
                cause = (
                    f"{changed[0]} has changed since it was loaded: a new model needs a new version number"
                )
                _note_failure(folder, cause, result)
            return
        try:
            model = await asyncio.to_thread(self._load, folder.name, folder.version, folder.path)
        except (ModelError, OSError) as error:
            _note_failure(folder, str(error), result)
            return
        self._models.setdefault(folder.name, {})[folder.version] = model
        self._observer.loaded(model, self)
        result.loaded.append(folder.label)

    def _unload(self, model: Model, result: ReloadResult) -> None:
        del self._models[model.name][model.version]
        if not self._models[model.name]:
            del self._models[model.name]
        self._observer.unloaded(model)
        result.unloaded.append(f"{model.name}/{model.version}")


def _note_failure(folder: VersionFolder, cause: str, result: ReloadResult) -> None:
    result.failed[folder.label] = cause
    logger.error("model not loaded", extra={"fields": {"model": folder.label, "cause": cause}})


async def _may_be_used(model: Model, is_in_use: Callable[[Model], Awaitable[bool]]) -> bool:
    """Whether a session is on a version, or may be: while the store is away nobody knows."""
    try:
        return await is_in_use(model)
    except errors.StoreUnavailable:
        return True
