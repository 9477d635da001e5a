"""Recurrent files of public packages that nobody here made: served as they are, equal to what their makers' code says.

Those that can be batched are, those that cannot run one by one; either way each stream's answers are bit for bit those
of stepping it alone. The packages come from tools/fetch_public_models.py, which `make test` runs.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import longshort
import numpy as np
import pytest
from longshort_service.graph_check import ModelError
from longshort_service.model_signature import resolve
from public_models import MODELS, NUM_STEPS, write_repository
from servers import running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from public_models import PublicModel, Steps
    from servers import Server

PAGE = Path(__file__).parents[1] / "docs" / "bring-your-own.md"
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
# Their graphs can be served without a word, as ones whose values are a window's and the new ones together.
WINDOW_ONLY = ("silero-openvino", "akiki")


@pytest.fixture(scope="module")
def public_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service of all the files."""
    root = tmp_path_factory.mktemp("public")
    write_repository(root)
    with running_server(
        root, tmp_path_factory.mktemp("log") / "public.log", "--max-sessions", "500"
    ) as server:
        yield server
        assert server.errors() == []


@pytest.fixture(scope="module")
def steps_of() -> Callable[[PublicModel], Steps]:
    """Return what a model's maker says, which is found out once."""
    known: dict[str, Steps] = {}

    def steps(model: PublicModel) -> Steps:
        if model.name not in known:
            known[model.name] = model.steps(model)
        return known[model.name]

    return steps


def check(model: PublicModel, answers: NDArray[np.float32], said: Steps) -> None:
    """Hold answers `[streams, steps, outputs]` against what the maker says, bit for bit."""
    expected = said.answers[:, :NUM_STEPS].reshape(answers.shape)
    assert np.ptp(expected) > 0.01, "a model that says nothing shows nothing"
    assert np.array_equal(model.read(answers), expected)


def rows(said: Steps) -> NDArray[np.float32]:
    """Return the values as rows of numbers, `[streams, steps, features]`."""
    return said.values[:, :NUM_STEPS].reshape(len(said.values), NUM_STEPS, -1)


@each_model
def test_several_streams_at_once_get_what_their_maker_says(
    model: PublicModel, public_server: Server, steps_of: Callable[[PublicModel], Steps]
) -> None:
    said = steps_of(model)
    values = rows(said)

    def follow(stream: int) -> NDArray[np.float32]:
        initial = None if said.initial is None else said.initial[stream]
        with client.session(f"stream-{model.name}-{stream}", model=model.name, initial=initial) as session:
            first = [session.step(value) for value in values[stream, :5]]
            return np.concatenate([first, session.steps(values[stream, 5:])])

    with longshort.Client(public_server.address) as client, ThreadPoolExecutor(len(values)) as pool:
        answers = list(pool.map(follow, range(len(values))))
    check(model, np.asarray(answers), said)


@each_model
def test_streams_in_one_frame_get_what_their_maker_says(
    model: PublicModel, public_server: Server, steps_of: Callable[[PublicModel], Steps]
) -> None:
    said = steps_of(model)
    values = rows(said)
    ids = [f"frame-{model.name}-{stream}" for stream in range(len(values))]
    if said.initial is not None:
        with longshort.Client(public_server.address) as client:
            for session_id, initial in zip(ids, said.initial, strict=True):
                client.session(session_id, model=model.name, initial=initial).close()
    with longshort.Gateway(public_server.address, model.name) as gateway:
        answers = [gateway.steps(ids, values[:, step]) for step in range(NUM_STEPS)]
    check(model, np.stack(answers, axis=1), said)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].lines and name not in WINDOW_ONLY])
def test_a_file_without_its_lines_is_refused_and_told_them(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.symlink_to(MODELS[name].path)
    with pytest.raises(ModelError) as refused:
        resolve(tmp_path, file)
    for section in re.findall(r"^\[.+\]$", MODELS[name].lines, re.MULTILINE):
        assert f"\n{section}\n" in str(refused.value)


@pytest.mark.parametrize("name", WINDOW_ONLY)
def test_a_file_whose_window_nobody_mentions_takes_it_with_its_values(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.symlink_to(MODELS[name].path)
    assert len(resolve(tmp_path, file).signature.features) == 576


@each_model
def test_the_page_says_how_many_lines_each_takes(model: PublicModel) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| {model.title} |")
    ]
    num_lines = len([line for line in model.lines.splitlines() if line])
    file = model.file.rpartition("/")[2]
    assert [file, str(num_lines)] in [[row[1].strip("`"), row[3]] for row in rows]


@pytest.mark.parametrize("name", ["silero", "voicefilter"])
def test_what_the_page_shows_is_what_is_served(name: str) -> None:
    assert f"```toml\n{MODELS[name].lines}```" in PAGE.read_text(encoding="utf-8")
