"""Triton's own clients, unchanged, against the service: tritonclient's four ways to call, and perf-analyzer.

They come from tools/fetch_triton_clients.py, which `make test` runs, and each runs in a process of its own: their stubs
have the names of the service's.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from longshort_service.errors import SessionNotFound
from public_models import MODELS, write_repository
from servers import running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from public_models import PublicModel
    from servers import Server

CLIENTS = Path(__file__).parent.parent / "build" / "triton-clients"
SCENARIOS = Path(__file__).parent / "support" / "triton_scenarios.py"
PATIENCE_S = 60
# With a window and a constant of the server's; a state of rank 4; a constant of each sequence; unsigned.
PUBLIC = ("silero", "dtln-1", "voicefilter", "riann")


def triton(name: str, server: Server, argument: str | Path = "") -> Any:
    """Run a scenario of tritonclient and return what it tells."""
    assert (CLIENTS / "made").exists(), f"{CLIENTS} is not there: run tools/fetch_triton_clients.py"
    command = [CLIENTS / "bin" / "python", SCENARIOS, name, server.address, argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_client_learns_what_the_server_and_its_models_are(adder_server: Server):
    told = triton("server_and_models", adder_server)
    assert (told["live"], told["ready"]) == (True, True)
    assert (told["models"], told["versions"]) == ([True, False], [True, False])
    assert told["server"]["name"] == "longshort"
    assert "sequence" in told["server"]["extensions"]
    assert told["metadata"] == {
        "name": "adder",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "-1", "1"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "-1", "1"]}],
    }
    config = told["config"]
    assert config["sequence_batching"]["state"] == [
        {"input_name": "s0", "output_name": "sn", "data_type": "TYPE_FP32", "dims": ["1"]}
    ]
    assert config["sequence_batching"]["oldest"]["max_candidate_sequences"] == 100_000
    assert config["max_batch_size"] == 2048
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", "1"]}]
    assert {"name": "passing", "version": "1", "state": "READY"} in told["index"]
    assert all(int(count) >= 1 for count in told["counted"])


def test_unary_calls_step_sequences_by_number_and_by_text(adder_server: Server):
    told = triton("unary", adder_server)
    assert told["said"] == {
        "7": [["7/0", 1], ["7/1", 3], ["7/2", 6]],
        "seven": [["seven/0", 10], ["seven/1", 20], ["seven/2", 30]],
    }
    status, message = told["after"]
    assert status == "StatusCode.NOT_FOUND"
    assert "oip/adder/u/7" in message
    assert "sequence_start" in message


def test_packed_messages_are_taken(adder_server: Server):
    assert triton("compressed", adder_server) == [40, 40]


def test_calls_without_a_sequence_are_answered_side_by_side(adder_server: Server):
    assert triton("asynchronous", adder_server) == [[n, n, 2 * n] for n in range(20)]


def test_a_stream_carries_many_sequences_each_in_order(adder_server: Server):
    told = triton("streaming", adder_server)
    assert told["said"] == {str(n): [n * step for step in range(1, 11)] for n in range(1, 9)}
    assert told["final"] == [True]


def test_the_asyncio_client_steps_and_streams_sequences(adder_server: Server):
    told = triton("aio", adder_server)
    assert told["unary"] == [[n, 2 * n, 3 * n, 4 * n] for n in range(1, 6)]
    assert told["stream"] == {str(n): [n, 2 * n, 3 * n, 4 * n] for n in range(1, 4)}


def test_an_error_on_a_stream_is_in_band_or_its_status_as_the_header_says(adder_server: Server):
    told = triton("stream_errors", adder_server)
    first, (status, message), last = told["in band"]
    assert (first, last) == ([1], [2])
    assert status is None
    assert message.startswith(SessionNotFound.reason)
    first, (status, message) = told["status"]
    assert first == [1]
    assert status == "StatusCode.NOT_FOUND"
    assert "sequence_start" in message


def test_refusals_have_the_codes_that_clients_expect_and_say_why(adder_server: Server):
    told = triton("refusals", adder_server)
    assert told.pop("loaded") is None
    codes = {name: status.removeprefix("StatusCode.") for name, (status, _) in told.items()}
    assert codes == {
        "unknown model": "NOT_FOUND",
        "wrong width": "INVALID_ARGUMENT",
        "two rows": "INVALID_ARGUMENT",
        "log": "UNIMPLEMENTED",
        "trace": "UNIMPLEMENTED",
        "memory": "UNIMPLEMENTED",
        "cuda": "UNIMPLEMENTED",
        "load": "NOT_FOUND",
        "config": "UNIMPLEMENTED",
        "unload": "UNIMPLEMENTED",
    }
    assert "--log-level" in told["log"][1]
    assert "[-1, -1, 1], not [1, 1, 2]" in told["wrong width"][1]


def test_a_sequence_is_a_session_that_outlives_the_server(
    adders: Path, start_server: Callable[..., Server], tmp_path: Path
):
    store = ("--store", f"sqlite:///{tmp_path}/sessions.db")
    first = start_server(*store, models=adders)
    assert triton("start", first, "pump 3") == [1, 3]
    first.process.kill()  # the answer was given: it is stored
    first.process.wait()
    second = start_server(*store, models=adders)
    assert triton("go_on", second, "pump 3") == [7]
    shown = sessions(second, "get", "oip/adder/s/pump%203")
    assert (shown["step"], shown["model"]) == (3, "adder")


@pytest.mark.parametrize(
    ("mode", "by", "answers"),
    [
        ("triton", "nothing", [[3], [5]]),
        ("triton", "id", [[3], [5]]),
        ("triton", "step", [[3], [3]]),
        ("strict", "nothing", [[3], [5]]),
        ("strict", "id", [[3], [3]]),
        ("strict", "step", [[3], [3]]),
    ],
)
def test_a_request_sent_again_counts_as_its_sender_says(
    mode: str, by: str, answers: list[list[float]], both_modes: dict[str, Server]
):
    assert triton("send_again", both_modes[mode], f"{by}/{uuid.uuid4()}") == answers


@pytest.fixture(scope="module")
def both_modes(
    adders: Path, adder_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """A service of the adders for either mode of sequences."""
    log = tmp_path_factory.mktemp("log") / "strict.log"
    with running_server(adders, log, "--sequence-mode", "strict") as strict:
        yield {"triton": adder_server, "strict": strict}
        assert strict.errors() == []


def test_a_numbered_request_sent_again_to_a_server_that_came_back_is_answered_again(
    adders: Path, start_server: Callable[..., Server], tmp_path: Path
):
    store = ("--store", f"sqlite:///{tmp_path}/sessions.db")
    first = start_server(*store, models=adders)
    assert triton("send_again", first, "step/pump") == [[3], [3]]
    first.process.kill()
    first.process.wait()
    assert triton("send_once_more", start_server(*store, models=adders), "pump") == [[3], True]


def sessions(server: Server, *words: str) -> Any:
    """Return what `longshort sessions` says of the service, as JSON."""
    command = [sys.executable, "-m", "longshort_service", "sessions", *words, "--address", server.address]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def public_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service of some files of public packages."""
    root = tmp_path_factory.mktemp("public")
    write_repository(root)
    for name in MODELS.keys() - set(PUBLIC):
        shutil.rmtree(root / name)
    with running_server(
        root, tmp_path_factory.mktemp("log") / "public.log", "--max-sessions", "500"
    ) as server:
        yield server
        assert server.errors() == []


@pytest.mark.parametrize("name", PUBLIC)
def test_public_models_answer_tritons_client_as_their_makers_do(
    name: str, public_server: Server, tmp_path: Path
):
    model: PublicModel = MODELS[name]
    said = model.steps(model)
    file = tmp_path / "steps.npz"
    told: dict[str, Any] = {"values": said.values, "model": model.name}
    if said.initial is not None:
        (constant,) = said.initial[0]
        told |= {"constant": constant, "constants": np.asarray([each[constant] for each in said.initial])}
    np.savez(file, **told)
    triton("many", public_server, file)
    with np.load(file) as found:
        np.testing.assert_array_equal(found["answers"].reshape(said.answers.shape), said.answers)


MODES = {
    "streaming, sequences": ("--streaming", "--sequence-length", "12"),
    "unary, sequences": ("--sequence-length", "12"),
    "unary, asynchronous, sequences": ("--async", "--sequence-length", "12"),
}


@pytest.mark.parametrize("mode", MODES)
def test_perf_analyzer_measures_sequences(mode: str, adder_server: Server, tmp_path: Path):
    report = tmp_path / "report.csv"
    done = subprocess.run(
        [
            *(CLIENTS / "bin" / "perf-analyzer", "-m", "adder", "-u", adder_server.address, "-i", "grpc"),
            *("--shape", "x:1,1", "--concurrency-range", "4", "--request-count", "240", "-f", report),
            *MODES[mode],
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Failed" not in done.stdout + done.stderr
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
