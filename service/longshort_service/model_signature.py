"""Which signature a model has: its file's own, what signature.toml beside it says, and what is inferred of its graph.

Owns the order of these three and puts them together; what each means is known to rooms of their own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from longshort_service import model_file as model_files
from longshort_service import signature_file
from longshort_service.answer_axes import find_answer_axes
from longshort_service.fingerprint import fingerprint_of, what_changes_numbers
from longshort_service.graph_check import ModelError
from longshort_service.shape_probe import ShapeProbe
from longshort_service.signature import SignatureError
from longshort_service.signature_axes import find_axes
from longshort_service.signature_build import DYNAMIC_QUANTISATION, build, check_costs, read_arrays
from longshort_service.signature_file import Said
from longshort_service.signature_json import METADATA_KEY, from_json
from longshort_service.signature_merge import merged, said_of
from longshort_service.signature_roles import roles_of
from longshort_service.signature_text import asked, table
from longshort_service.version_folder import SIGNATURE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from longshort_service.graph_facts import GraphFacts
    from longshort_service.model_file import ModelFile
    from longshort_service.signature import Signature
    from longshort_service.signature_axes import Found
    from longshort_service.signature_roles import Question, Roles

T = TypeVar("T")


class NotInferred(ModelError):
    """A model of which something has to be said. `asked` holds the questions, with lines that would answer them."""

    def __init__(self, summary: str, asked: str) -> None:
        super().__init__(f"{summary}\n\n{asked}")
        self.summary = summary
        self.asked = asked


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


@dataclass(frozen=True, slots=True)
class Understanding:
    """What is known of a model's graph, and what has to be asked. `base` is its file's own signature."""

    name: str
    facts: GraphFacts
    roles: Roles
    found: Found
    said: Said
    base: Signature | None

    @property
    def questions(self) -> tuple[Question, ...]:
        """What cannot be inferred."""
        return (*self.roles.questions, *self.found.questions)


def resolve(folder: Path, model_file: Path) -> Resolved:
    """Return the signature of the model in `folder`.

    What signature.toml says goes before what the file's metadata says, and that before what is inferred. Blocks; reads
    files of the folder only, and runs the graph only where the shape of an output cannot be known otherwise. Raises
    ModelError with what to write where something cannot be inferred, and where the file is refused; OSError where it
    cannot be read.
    """
    outside = model_files.look_at(model_file)
    signed = _own_signature(outside, model_file)
    if signed is not None and not (folder / SIGNATURE_FILE).exists():
        if outside.may_have_external_data:
            _facts(model_file, outside)  # for its refusals: weights may lie anywhere
        return _labelled(model_file, lambda: _signed(signed, folder))
    known = understand(folder, model_file, outside)
    if known.questions:
        raise NotInferred(
            f"{model_file}: not all of it can be inferred: say it in {folder / SIGNATURE_FILE}, which "
            f"`longshort describe {folder} --write` begins",
            asked(known.questions),
        )
    return _labelled(model_file, lambda: _resolved(known, folder, model_file))


def understand(folder: Path, model_file: Path, outside: ModelFile | None = None) -> Understanding:
    """Return what is known of a model's graph from its file and signature.toml. Raises as `resolve` does."""
    outside = outside or model_files.look_at(model_file)
    facts = _facts(model_file, outside)
    base = _own_signature(outside, model_file)
    toml = folder / SIGNATURE_FILE
    said = signature_file.read(toml) if toml.exists() else Said()
    if base is not None:
        said = merged(said, said_of(base, facts))
    name = folder.parent.name if folder.name.isdecimal() and folder.parent.name else folder.resolve().name

    def look() -> Understanding:
        roles = roles_of(facts, said)
        found = find_axes(roles, said)
        if not (roles.questions or found.questions):
            find_answer_axes(roles, said, found, ShapeProbe(model_file, facts, roles, said))
        return Understanding(name or "model", facts, roles, found, said, base)

    return _labelled(model_file, look)


def _signed(signature: Signature, folder: Path) -> Resolved:
    check_costs(signature.inputs, signature.answers, signature.states, signature.constants)
    return Resolved(signature, read_arrays(signature, folder))


def _resolved(known: Understanding, folder: Path, model_file: Path) -> Resolved:
    said, base = known.said, known.base
    signature, reasons = build(known.facts, known.roles, known.found, said, known.name)
    if said.steps_alone or {name for _, name in known.facts.operators} & DYNAMIC_QUANTISATION:
        signature = dataclasses.replace(signature, single_steps=True)
    if base is not None:
        order = [state.input for state in base.states]
        states = sorted(
            signature.states, key=lambda s: order.index(s.input) if s.input in order else len(order)
        )
        signature = dataclasses.replace(
            signature, states=tuple(states), trained_on=base.trained_on, scores=base.scores
        )
    arrays = read_arrays(signature, folder)
    fingerprint = fingerprint_of(signature, arrays, (model_file, *known.facts.external_files))
    if base is not None and what_changes_numbers(base, arrays) == what_changes_numbers(signature, arrays):
        fingerprint = base.fingerprint
    by_shape = [
        f"{pair.input.name} and {pair.output.name} were paired by their shapes alone"
        for pair in known.roles.states
        if pair.how == "shape"
    ]
    return Resolved(
        dataclasses.replace(signature, fingerprint=fingerprint),
        arrays,
        (*reasons, *by_shape),
        table(known.roles, known.found, said),
    )


def _own_signature(outside: ModelFile, model_file: Path) -> Signature | None:
    text = outside.metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        return from_json(text)
    except SignatureError as error:
        raise ModelError(f"{model_file}: {error}") from error


def _facts(model_file: Path, outside: ModelFile) -> GraphFacts:
    try:
        from longshort_service.model_checks import read_facts  # noqa: PLC0415  onnx: signed files need none
    except ImportError as error:
        raise ModelError(
            f"{model_file}: a file without a signature needs the package onnx: {error}"
        ) from error
    return read_facts(model_file, outside.num_bytes)


def _labelled(model_file: Path, work: Callable[[], T]) -> T:
    """Do `work` and have its refusals name the file."""
    try:
        return work()
    except ModelError as error:
        if str(error).startswith(str(model_file)):
            raise
        raise ModelError(f"{model_file}: {error}") from error
