"""The service as a process: start, signals, ports, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time

import grpc
import pytest
from longshort.v1 import model_pb2, model_pb2_grpc


def test_service_answers_within_three_seconds_of_its_start(start_server):
    begin_s = time.monotonic()
    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        models = model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
    assert [model.name for model in models.models] == ["deep", "metro", "wide"]
    assert time.monotonic() - begin_s < 3


@pytest.mark.parametrize("number", [15, 2])
def test_signal_ends_an_idle_service_with_exit_code_zero(start_server, number):
    assert start_server().stop(number) == 0


def test_taken_port_is_one_line_and_exit_code_two(start_server, repository):
    server = start_server()
    command = [sys.executable, "-m", "longshort_service", "serve", str(repository), "--metrics-port", "0"]
    done = subprocess.run(
        [*command, "--grpc-port", str(server.port)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert f"port {server.port} of 127.0.0.1 is taken" in done.stderr.splitlines()[-1]


def test_missing_repository_is_one_line_and_exit_code_two(tmp_path):
    command = [
        sys.executable,
        "-m",
        "longshort_service",
        "serve",
        str(tmp_path / "nowhere"),
        "--grpc-port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "no such folder of models" in done.stderr.splitlines()[-1]


def test_empty_repository_is_one_line_and_exit_code_two(tmp_path):
    command = [sys.executable, "-m", "longshort_service", "serve", str(tmp_path), "--grpc-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "no <name>/<version>/model.onnx" in done.stderr.splitlines()[-1]
