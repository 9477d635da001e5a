"""From a user's PyTorch module to a folder of the model repository.

Owns the order: look at the module, export it one way after another until a file passes, write that one or nothing.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from longshort_service.ports import Port
from longshort_service.signature import (
    Channel,
    Memory,
    MissingValue,
    Signature,
    SignatureError,
    State,
)
from longshort_service.signature_json import METADATA_KEY, to_json
from onnx import TensorProto, helper

from longshort_model import module_checks, module_parity
from longshort_model.export import ExportError, version_folder, write_version
from longshort_model.exporters import by_dynamo, by_tracing, output_name
from longshort_model.graph import fingerprint
from longshort_model.module_face import BATCH, TIME

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshort_service.signature import Feedback

    from longshort_model.module_calls import Taken
    from longshort_model.module_face import Face
    from longshort_model.module_parity import Parity

LONG_TERM_NAMES: Final = frozenset({"c", "c0", "cx"})
SHORT_TERM_NAMES: Final = frozenset({"h", "h0", "hx"})


@dataclass(frozen=True, slots=True)
class Words:
    """What a signature says that no module knows. Without names, channels are called after their tensors."""

    name: str
    description: str = ""
    features: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    missing: MissingValue = MissingValue.REJECT
    forecast: tuple[Feedback, ...] = ()
    state_family: str = ""


@dataclass(frozen=True, slots=True)
class Exported:
    """A version that was written: how, with what signature, how near to PyTorch, and which ways did not do."""

    folder: Path
    signature: Signature
    way: str
    parity: Parity
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Way:
    name: str
    export: Callable[[Taken], onnx.ModelProto]
    is_one_step: bool


WAYS: Final = (
    _Way("torch.onnx, traced", by_tracing, is_one_step=False),
    _Way("torch.onnx, dynamo", by_dynamo, is_one_step=False),
    # A module that loops over time in Python is unrolled by both: it is served one step a run instead.
    _Way("torch.onnx, traced, one step a run", by_tracing, is_one_step=True),
    _Way("torch.onnx, dynamo, one step a run", by_dynamo, is_one_step=True),
)


def export_module(taken: Taken, words: Words, repository: Path, version: int | None = None) -> Exported:
    """Write `model.onnx` to `<repository>/<name>/<version>/`, and a .npy for each initial state that is no constant.

    Without `version` it is the next one. Raises ExportError, and writes nothing, where the module cannot be served, the
    version exists, or no exporter gives a file that does what the module does.
    """
    folder = version_folder(repository, words.name, version)
    module_checks.check(taken)
    signature_of(taken, words)  # refuses names before the slow part
    refused: list[str] = []
    for way in WAYS:
        if not way.is_one_step and not taken.has_time and taken.one_step() is not taken:
            continue  # some tensor has a time axis and another has none: they are taken step by step
        if way.is_one_step and taken.one_step() is taken:
            continue  # no tensor has one: tried already
        form = taken.one_step() if way.is_one_step else taken
        try:
            model = way.export(form)
            content = _bytes(model)
            _check_half(model, content)
            parity = module_parity.check(form, content)
        except ExportError as error:
            refused.append(f"{way.name}: {error}")
            continue
        signature = dataclasses.replace(signature_of(form, words), fingerprint=fingerprint(model))
        helper.set_model_props(model, {METADATA_KEY: to_json(signature)})
        write_version(folder, {"model.onnx": _bytes(model), **_initial_files(form)})
        return Exported(folder, signature, way.name, parity, tuple(refused))
    raise ExportError("no exporter gives a file that does what the module does. " + ". ".join(refused))


def signature_of(taken: Taken, words: Words) -> Signature:
    """Return what the file promises, without its fingerprint. Raises ExportError where the words contradict it."""
    _check_names(taken)
    try:
        return Signature(
            name=words.name,
            description=words.description,
            features=_channels(taken.inputs, words.features, "--feature"),
            outputs=_channels(taken.answers, words.outputs, "--output"),
            states=tuple(_state(face, taken.states) for face in taken.states),
            missing=words.missing,
            forecast=words.forecast,
            state_family=words.state_family,
            inputs=tuple(_port(face) for face in taken.inputs),
            answers=tuple(_port(face) for face in taken.answers),
        )
    except SignatureError as error:
        raise ExportError(str(error)) from error


def _check_names(taken: Taken) -> None:
    """Raise ExportError where two tensors of the graph would have one name, or one has none."""
    names = [face.name for face in (*taken.inputs, *taken.states, *taken.answers)]
    odd = [name for name in names if not name.isidentifier()]
    if odd:
        raise ExportError(f"{odd[0]!r} cannot be a tensor's name; letters, digits and _ make one")
    names += [output_name(face) for face in taken.states]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ExportError(f"two tensors are named {twice[0]}: --input, --state and --answer give other names")


def _channels(faces: tuple[Face, ...], names: tuple[str, ...], flag: str) -> tuple[Channel, ...]:
    own = []
    for face in faces:
        shape = face.step_shape()
        if int(np.prod(shape)) == 1:
            own.append(face.name)
        else:
            places = itertools.product(*(range(size) for size in shape))
            own += [f"{face.name}[{','.join(map(str, place))}]" for place in places]
    if names and len(names) != len(own):
        raise ExportError(f"{flag} names {len(names)} numbers, there are {len(own)}: {', '.join(own[:8])}")
    return tuple(Channel(name) for name in names or own)


def _port(face: Face) -> Port:
    return Port(face.name, face.step_shape(), face.dtype_name, face.axis(BATCH), face.axis(TIME))


def _state(face: Face, states: tuple[Face, ...]) -> State:
    names = {state.name for state in states}
    memory = None
    if names & LONG_TERM_NAMES and names & SHORT_TERM_NAMES:  # an LSTM's two; a lone h may be anything
        memory = {
            **dict.fromkeys(LONG_TERM_NAMES, Memory.LONG_TERM),
            **dict.fromkeys(SHORT_TERM_NAMES, Memory.SHORT_TERM),
        }.get(face.name)
    constant = _constant(face)
    return State(
        input=face.name,
        output=output_name(face),
        shape=tuple(-1 if size == BATCH else int(size) for size in face.sizes),
        batch_axis=face.sizes.index(BATCH),
        initial=0.0 if constant is None else constant,
        memory=memory,
        dtype=face.dtype_name,
        initial_file=f"{face.name}.npy" if constant is None else "",
    )


def _constant(face: Face) -> float | None:
    """Return the number that every element of a state starts with, None where they differ or it is no float's."""
    if face.initial is None or face.initial.numel() == 0:
        return 0.0
    first = face.initial.flatten()[0].item()
    is_exact = float(first) == first  # not of each int64 beyond 2**53
    return float(first) if is_exact and bool((face.initial == first).all()) else None


def _initial_files(taken: Taken) -> dict[str, bytes]:
    files = {}
    for face in taken.states:
        if _constant(face) is None and face.initial is not None:
            content = io.BytesIO()
            np.save(content, face.initial.contiguous().numpy(), allow_pickle=False)
            files[f"{face.name}.npy"] = content.getvalue()
    return files


def _bytes(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except Exception as error:  # protobuf's own kinds differ between its versions
        raise ExportError(f"the file cannot be written, is it over 2 GB? {error}") from error


def _check_half(model: onnx.ModelProto, content: bytes) -> None:
    """Let a file in float16 be loaded by another process first: some kill onnxruntime."""
    tensors: list[Any] = [*model.graph.input, *model.graph.output]
    if any(t.type.tensor_type.elem_type == TensorProto.FLOAT16 for t in tensors):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(content)
            module_parity.check_loads(path)
