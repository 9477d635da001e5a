"""A model file from outside, before anything reads its graph: its size, its metadata, whether weights lie elsewhere.

Walks the outermost fields of the file and skips what they hold, so that a hostile or huge file costs nothing and a
file that carries its signature is read without the package onnx. Format: onnx/onnx.proto, message ModelProto.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from longshort_service.graph_check import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What protobuf reads in one piece, and so what onnxruntime and onnx take: graph and weights together.
MAX_MODEL_BYTES: Final = 2**31 - 1
MAX_METADATA_BYTES: Final = 16 * 2**20  # of all texts together; a signature of 10,000 channels has 1 MB

_GRAPH: Final = 7
_METADATA: Final = 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_MAX_VARINT_BYTES: Final = 10
# How other files begin, in small letters, that people take for models.
_MARKS: Final = {
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` brings the file itself",
    b"<!doctype html": "a page of HTML: the download went wrong",
    b"<html": "a page of HTML: the download went wrong",
    b"pk\x03\x04": "an archive, as torch.save writes them: export the model to ONNX",
}
_LONGEST_MARK: Final = 64


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the outside of a file says. `may_have_external_data`: a tensor of it could lie in another file."""

    num_bytes: int
    metadata: dict[str, str]
    may_have_external_data: bool


class _Damaged(ValueError):
    """Bytes that are no protobuf message."""


def look_at(file: Path) -> ModelFile:
    """Return what a model file says on its outside.

    Raises ModelError where it is over 2 GB or no ONNX, OSError where it cannot be read.
    """
    num_bytes = file.stat().st_size
    if num_bytes > MAX_MODEL_BYTES:
        raise too_large(file, num_bytes)
    if not num_bytes:
        raise ModelError(f"{file}: is no ONNX file: it is empty")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        try:
            return _look(memory)
        except (_Damaged, UnicodeDecodeError) as error:
            kind = _kind_of(memory[:_LONGEST_MARK])
            what = f"but {kind}" if kind else f"or not all of one ({error}): copy it again"
            raise ModelError(f"{file}: is no ONNX file, {what}") from None


def _kind_of(begin: bytes) -> str:
    """Return what a file is by its first bytes, "" for what nobody takes for a model."""
    return next((kind for mark, kind in _MARKS.items() if begin.lower().lstrip().startswith(mark)), "")


def too_large(file: Path, num_bytes: int) -> ModelError:
    """Return the refusal of a model whose files have so many bytes."""
    return ModelError(
        f"{file}: {num_bytes} bytes with its weights; files over 2 GB ({MAX_MODEL_BYTES} bytes) are not served"
    )


def _look(memory: mmap.mmap) -> ModelFile:
    metadata: dict[str, str] = {}
    has_graph, left = False, MAX_METADATA_BYTES
    for number, begin, end in _fields(memory, 0, len(memory)):
        has_graph |= number == _GRAPH
        if number == _METADATA:
            left -= end - begin
            if left < 0:
                raise _Damaged(f"its metadata has more than {MAX_METADATA_BYTES} bytes")
            entry = {n: memory[b:e].decode() for n, b, e in _fields(memory, begin, end)}
            metadata[entry.get(1, "")] = entry.get(2, "")
    if not has_graph:
        raise _Damaged("it has no graph")
    # A tensor that lies elsewhere names its place by an entry "location", here in one piece as protobuf writes it.
    return ModelFile(len(memory), metadata, memory.find(b"location") >= 0)


def _fields(memory: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of each field between two places."""
    place = begin
    while place < end:
        key, place = _varint(memory, place, end)
        kind = key & 7
        if kind == _VARINT:
            _, after = _varint(memory, place, end)
        elif kind == _BYTES:
            size, place = _varint(memory, place, end)
            after = place + size
        elif kind in (_FIXED64, _FIXED32):
            after = place + (8 if kind == _FIXED64 else 4)
        else:
            raise _Damaged(f"a field of an unknown kind at byte {place}")
        if after > end or not key >> 3:
            raise _Damaged(f"a field that does not end at byte {place}")
        yield key >> 3, place, after
        place = after


def _varint(memory: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    number = 0
    for k in range(min(_MAX_VARINT_BYTES, end - place)):
        byte = memory[place + k]
        number |= (byte & 127) << 7 * k
        if byte < 128:
            return number, place + k + 1
    raise _Damaged(f"a number that does not end at byte {place}")
