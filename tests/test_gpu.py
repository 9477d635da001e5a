"""The CUDA provider: the same answers as the CPU's within the stated tolerance, and the same rules of states.

Runs where there is a device. That states on a device follow the rules at all is in test_resident_engine.py, which runs
the same code on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import longshort
import numpy as np
import pytest
from longshort_model.synthetic import write_random_model
from longshort_service.engine import Engine
from longshort_service.graph_check import ModelError
from longshort_service.resident_engine import ResidentEngine
from oracle import OracleModel, OracleSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.gpu

SHIPPED = Path(__file__).parents[1] / "service" / "longshort_service" / "models"
PROVIDER = "cuda"
# docs/design/0001-contract.md: answers elsewhere than on one kind of CPU agree within 1e-5 relative. An answer near
# zero is the difference of larger numbers, so that it is held to the largest of its batch.
RELATIVE_TOLERANCE = 1e-5
NUM_ROWS = 5000


@pytest.fixture(scope="module", autouse=True)
def _device(repository) -> None:
    try:
        Engine(repository / "metro" / "1" / "model.onnx", provider=PROVIDER, intra_op_num_threads=1)
    except ModelError as error:
        pytest.skip(f"no CUDA device with onnxruntime-gpu here: {error}")


@pytest.fixture(scope="module", params=["metro", "wide", "deep", "large", "shipped metro", "shipped parking"])
def path(request, repository, tmp_path_factory) -> Path:
    name = request.param
    if name == "large":
        written = tmp_path_factory.mktemp("large") / "model.onnx"
        write_random_model(written, hidden=256, layers=2, name="large")
        return written
    if name.startswith("shipped "):
        return SHIPPED / name.removeprefix("shipped ") / "1" / "model.onnx"
    return repository / name / "1" / "model.onnx"


def on_device(path: Path, num_rows: int = NUM_ROWS) -> ResidentEngine:
    engine = ResidentEngine(path, provider=PROVIDER, intra_op_num_threads=1, num_rows=num_rows)
    engine.states.initialise(np.arange(num_rows))
    return engine


def on_cpu(path: Path) -> Engine:
    return Engine(path, provider="cpu", intra_op_num_threads=1)


def assert_agree(mine: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    largest = max(1.0, float(np.abs(right).max()))
    np.testing.assert_allclose(mine, right, rtol=RELATIVE_TOLERANCE, atol=RELATIVE_TOLERANCE * largest)


def values_for(engine: Engine, random: np.random.Generator, batch: int, time: int) -> NDArray[np.float32]:
    width = len(engine.signature.features)
    return random.normal(size=(batch, time, width)).astype(np.float32)


def test_copied_states_give_the_cpu_s_answers_over_200_carried_steps(path):
    engines = [Engine(path, provider=provider, intra_op_num_threads=1) for provider in ("cpu", PROVIDER)]
    random = np.random.default_rng(0)
    states = [engine.initial_states(16) for engine in engines]
    for _ in range(200):
        values = values_for(engines[0], random, 16, 1)
        right, states[0] = engines[0].run(values, None, states[0])
        mine, states[1] = engines[1].run(values, None, states[1])
        assert_agree(mine, right)


def test_resident_states_give_the_cpu_s_answers_over_500_carried_steps(path):
    device, cpu = on_device(path), on_cpu(path)
    random = np.random.default_rng(1)
    rows = random.permutation(NUM_ROWS)[:16]
    states = cpu.initial_states(16)
    for _ in range(500):
        values = values_for(cpu, random, 16, 1)
        right, states = cpu.run(values, None, states)
        mine, finite = device.run(values, None, rows, rows)
        assert finite.all()
        assert_agree(mine, right)
    for position, row in enumerate(rows):
        for mine, state, spec in zip(device.states.read(row), states, cpu.signature.states, strict=True):
            assert_agree(mine, state.take(position, axis=spec.batch_axis))


@pytest.mark.parametrize("batch", [1, 2, 3, 32, 127, 512, 4096])
def test_every_batch_size_gives_the_cpu_s_answers(path, batch):
    device, cpu = on_device(path), on_cpu(path)
    random = np.random.default_rng(2)
    rows = random.permutation(NUM_ROWS)[:batch]
    states = cpu.initial_states(batch)
    for _ in range(3):
        values = values_for(cpu, random, batch, 1)
        right, states = cpu.run(values, None, states)
        assert_agree(device.run(values, None, rows, rows)[0], right)


def test_long_messages_of_unequal_length_give_the_cpu_s_answers(path):
    device, cpu = on_device(path), on_cpu(path)
    random = np.random.default_rng(3)
    counts = np.array([512, 1, 77, 300], np.int32)
    values = values_for(cpu, random, 4, 512)
    rows = np.arange(4)
    right, states = cpu.run(values, counts, cpu.initial_states(4))
    mine, finite = device.run(values, counts, rows, np.array([0, 1, -1, -1]))
    assert finite.all()
    for row, count in enumerate(counts):
        assert_agree(mine[row, :count], right[row, :count])
    for row in (0, 1):
        for found, state, spec in zip(device.states.read(row), states, cpu.signature.states, strict=True):
            assert_agree(found, state.take(row, axis=spec.batch_axis))
    for row in (2, 3):
        assert not any(state.any() for state in device.states.read(row))


def test_batching_and_order_do_not_reach_over_to_other_rows(repository):
    """On a device a batch's size may choose another kernel, so that this holds within the tolerance, not to the bit."""
    path = repository / "deep" / "1" / "model.onnx"
    device = on_device(path, 64)
    random = np.random.default_rng(4)
    sessions = [OracleSession(OracleModel(path)) for _ in range(64)]
    for _ in range(100):
        rows = random.permutation(64)[: random.integers(1, 65)]
        values = random.normal(size=(len(rows), 1, 1)).astype(np.float32)
        mine, _ = device.run(values, None, rows, rows)
        for position, row in enumerate(rows):
            assert_agree(mine[position], sessions[row].feed(values[position]))


def test_row_that_is_not_finite_does_not_move_and_its_neighbours_do(repository):
    device = on_device(repository / "deep" / "1" / "model.onnx", 8)
    rows = np.arange(3)
    device.run(np.ones((3, 1, 1), np.float32), None, rows, rows)
    before = [device.states.read(row) for row in range(3)]
    values = np.array([[[1]], [[np.nan]], [[np.inf]]], np.float32)
    _, finite = device.run(values, None, rows, rows)
    assert finite.tolist() == [True, False, False]
    moved = [
        any(
            mine.tobytes() != old.tobytes()
            for mine, old in zip(device.states.read(row), before[row], strict=True)
        )
        for row in range(3)
    ]
    assert moved == [True, False, False]


def test_states_are_read_and_written_to_the_bit(path):
    states = on_device(path, 8).states
    random = np.random.default_rng(5)
    written = [random.normal(size=state.shape).astype(np.float32) for state in states.read(3)]
    states.write(3, written)
    states.initialise(4)
    assert [state.tobytes() for state in states.read(3)] == [state.tobytes() for state in written]


def test_pool_of_a_million_rows_is_stepped_at_both_its_ends(repository):
    path = repository / "metro" / "1" / "model.onnx"
    device = ResidentEngine(path, provider=PROVIDER, intra_op_num_threads=1, num_rows=1_000_000)
    rows = np.array([0, 999_999])
    device.states.initialise(rows)
    oracle = OracleSession(OracleModel(path))
    for _ in range(20):
        mine, _ = device.run(np.ones((2, 1, 1), np.float32), None, rows, rows)
        right = oracle.feed(np.ones((1, 1), np.float32))
        assert_agree(mine, np.stack([right, right]))


def test_whole_service_on_the_device_answers_as_the_cpu_does(start_server, repository):
    server = start_server("--provider", PROVIDER)
    path = repository / "metro" / "1" / "model.onnx"
    oracle = OracleSession(OracleModel(path))
    values = np.random.default_rng(6).normal(size=(300, 1)).astype(np.float32)
    with longshort.Client(server.address, timeout_s=20) as client, client.session(model="metro") as session:
        for part in (values[:1], values[1:200], values[200:]):
            assert_agree(np.array(session.steps(part)), oracle.feed(part))
        assert_agree(np.array(session.forecast(8)), oracle.forecast(8))
    assert server.errors() == []
