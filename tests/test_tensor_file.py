"""Tensors in files from outside: what is read of them, and what their bytes cannot do."""

from __future__ import annotations

import os
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from longshort_service.graph_check import ModelError
from longshort_service.tensor_file import inside, read_tensor

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n"
NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)


def read(folder: Path, name: str = "a.npy") -> object:
    return read_tensor(folder, name, (2, 3), "float32", "s").tolist()


def write(folder: Path, header: str, content: bytes = bytes(24), version: tuple[int, int] = (1, 0)) -> None:
    raw = header.encode("latin-1")
    length = len(raw).to_bytes(2 if version == (1, 0) else 4, "little")
    (folder / "a.npy").write_bytes(b"\x93NUMPY" + bytes(version) + length + raw + content)


@pytest.mark.parametrize("numbers", [NUMBERS, np.asfortranarray(NUMBERS)], ids=["by rows", "by columns"])
def test_tensor_is_read_as_it_was_written(tmp_path: Path, numbers: np.ndarray):
    np.save(tmp_path / "a.npy", numbers)
    assert read(tmp_path) == NUMBERS.tolist()


def test_header_of_the_second_form_is_read(tmp_path: Path):
    write(tmp_path, HEADER, NUMBERS.tobytes(), (2, 0))
    assert read(tmp_path) == NUMBERS.tolist()


@pytest.mark.parametrize(
    "header",
    [
        *("(" * 9000, "[" * 3000 + "]" * 3000, "-" * 9000 + "1", "'''", "{[]: 1}", "{{1}: 2}", "1", ""),
        *(HEADER.replace("2, 3", size) for size in ("2.0, 3", "02, 3")),
        *(HEADER.replace("'<f4'", descr) for descr in ("None", "['a', ('b',)]", "'|V99999999999'", "b'<f4'")),
        *("\x00", "{'a': 'b, (\n"),
    ],
)
def test_header_that_is_none_is_refused(tmp_path: Path, header: str):
    write(tmp_path, header)
    with pytest.raises(ModelError, match=r"s: a\.npy is no \.npy file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (HEADER.replace("2, 3", "-2, -3"), r"is float32 \[-2, -3\], it must be"),
        (HEADER.replace("2, 3", "9" * 30 + ","), r"is float32 \[9+\], it must be"),
        (HEADER.replace("f4", "f8"), r"is float64 \[2, 3\], it must be float32"),
        (HEADER.replace("<f4", "|O"), "holds pickled objects"),
    ],
    ids=["less than nothing", "huge", "dtype", "objects"],
)
def test_header_of_another_tensor_is_refused(tmp_path: Path, header: str, said: str):
    write(tmp_path, header)
    with pytest.raises(ModelError, match=said):
        read(tmp_path)


def test_file_that_ends_too_early_is_refused(tmp_path: Path):
    write(tmp_path, HEADER, bytes(23))
    with pytest.raises(ModelError, match="ends too early"):
        read(tmp_path)


def test_header_that_claims_two_gigabytes_is_not_read(tmp_path: Path):
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f")
        file.truncate(2**31 + 4096)  # sparse: it takes no room
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=r"has more than the 65560 bytes of float32 \[2, 3\]"):
            read(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "location",
    [
        "/etc/hostname",
        "../outside.npy",
        "out.npy",
        "round.npy",
        "pipe.npy",
        "folder",
        "",
        ".",
        "a\0b",
        "n" * 5000,
    ],
)
def test_path_that_is_no_file_of_the_folder_is_none(tmp_path: Path, location: str):
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    np.save(tmp_path / "outside.npy", NUMBERS)
    (folder / "out.npy").symlink_to(tmp_path / "outside.npy")
    (folder / "round.npy").symlink_to(folder / "round.npy")
    os.mkfifo(folder / "pipe.npy")
    assert inside(folder, location) is None
    with pytest.raises(ModelError, match=r"a \.npy beside the model is needed"):
        read(folder, location)


def test_link_that_stays_in_the_folder_is_followed(tmp_path: Path):
    np.save(tmp_path / "a.npy", NUMBERS)
    (tmp_path / "b.npy").symlink_to("a.npy")
    assert inside(tmp_path, "b.npy") == (tmp_path / "a.npy").resolve()
    assert read(tmp_path, "b.npy") == NUMBERS.tolist()
