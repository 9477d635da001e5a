"""The demo against the real service: its figures, its manners, and what it reads from /metrics."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import longshort
import pytest
from longshort_model import baselines, dataset, evaluation
from longshort_service.demo import latency
from longshort_service.signature_json import METADATA_KEY, from_json

SHIPPED = Path(__file__).parent.parent / "service" / "longshort_service" / "models"
DEMO = (sys.executable, "-m", "longshort_service", "demo")
FREE_PORTS = ("--grpc-port", "0", "--metrics-port", "0")
NO_MODEL = "the demo needs the model metro or parking"
WAY_OUT = "`longshort demo` alone runs with the shipped ones"
FIGURES = {
    "metro": {"mae", "weekly_naive_mae", "coverage"},
    "parking": {"mae", "weekly_naive_mae"},
    "steps_per_second": None,
    "p50_ms": None,
    "p99_ms": None,
}


def demo(*arguments: str):
    return subprocess.run([*DEMO, *arguments], capture_output=True, text=True, timeout=100, check=False)


def scores_in_the_file(name: str) -> dict[str, float]:
    import onnxruntime

    session = onnxruntime.InferenceSession(SHIPPED / name / "1" / "model.onnx")
    text = session.get_modelmeta().custom_metadata_map[METADATA_KEY]
    return from_json(text).scores


def test_demo_scores_what_came_over_the_wire_twice_and_leaves_nothing_behind(start_server, tmp_path):
    server = start_server(models=SHIPPED)
    there = ("--address", server.address, "--metrics", f"http://127.0.0.1:{server.metrics_port}/metrics")
    runs = []
    for name in ("first", "second"):  # the second does not stumble over the sessions of the first
        done = demo(*there, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        runs.append(json.loads((tmp_path / name / "demo.json").read_text()))
        for picture in ("demo-metro.png", "demo-parking.png"):
            assert (tmp_path / name / picture).read_bytes().startswith(b"\x89PNG")
        assert "linear autoregression" in done.stdout
        assert "streaming" in done.stderr  # the progress
        with longshort.Client(server.address) as client:
            assert list(client.sessions()) == []
    for figures in runs:
        assert {
            key: set(part) if isinstance(part, dict) else None for key, part in figures.items()
        } == FIGURES
        for name in ("metro", "parking"):
            data = dataset.load(name)
            weekly = baselines.seasonal_naive(data.values, data.week)
            expected = evaluation.point_errors(data, weekly, data.validation_end).mae
            assert figures[name]["weekly_naive_mae"] == pytest.approx(expected, rel=1e-12)
            # The file's scores were computed by running it; the demo's went over gRPC, a value at a time.
            assert figures[name]["mae"] == pytest.approx(scores_in_the_file(name)["mae"], rel=1e-5)
        assert figures["metro"]["coverage"] == pytest.approx(
            scores_in_the_file("metro")["coverage"], abs=1e-3
        )
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
        assert figures["steps_per_second"] > 0
    steps = sum(
        data.values[:, data.validation_end - 1 :].size for data in (dataset.metro(), dataset.parking())
    )
    counted = latency.buckets(server.metrics(), ("metro", "parking"))
    assert counted[math.inf] >= 2 * steps


def only(model: str, repository: Path, root: Path) -> str:
    shutil.copytree(repository / model, root / "models" / model)
    return str(root / "models")


def test_demo_goes_on_serving_models_of_the_users_own_until_control_c(repository, tmp_path):
    command = [*DEMO, only("deep", repository, tmp_path), "--serve", *FREE_PORTS, "--out", str(tmp_path)]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        address = process.stdout.readline().split()[2].strip(",")
        assert process.stdout.readline() == f"no demo: {NO_MODEL}; there are: deep; {WAY_OUT}\n"
        assert process.stdout.readline() == f"still serving on {address}; Ctrl-C ends it\n"
        with longshort.Client(address) as client, client.session("s", "deep") as session:
            session.step(1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert '"message": "stopped"' in (tmp_path / "service.log").read_text()  # it drained, and has gone
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()


def test_demo_ends_its_service_on_sigterm(repository, tmp_path):
    command = [*DEMO, only("deep", repository, tmp_path), "--serve", *FREE_PORTS, "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in {0, 130}
    assert '"message": "stopped"' in (tmp_path / "service.log").read_text()


def test_demo_with_a_taken_port_is_one_line_and_exit_code_two(server, tmp_path):
    for taken, ports in (
        (server.port, ("--grpc-port", str(server.port), "--metrics-port", "0")),
        (server.metrics_port, ("--grpc-port", "0", "--metrics-port", str(server.metrics_port))),
    ):
        done = demo(*ports, "--out", str(tmp_path))
        assert done.returncode == 2
        assert f"port {taken} of 127.0.0.1 is taken" in done.stderr
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1


def test_demo_without_the_models_it_streams_is_the_callers_mistake(repository, tmp_path):
    done = demo(only("wide", repository, tmp_path), *FREE_PORTS, "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"Error: {NO_MODEL}; there are: wide; {WAY_OUT}\n"


def test_demo_streams_what_there_is_a_model_for(tmp_path):
    done = demo(only("parking", SHIPPED, tmp_path), *FREE_PORTS, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "28 clients at once" in done.stdout
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["parking"]["mae"] == pytest.approx(scores_in_the_file("parking")["mae"], rel=1e-5)
    assert "metro" not in figures


@pytest.mark.parametrize("path", ["/healthz", "/nowhere"])
def test_demo_with_a_wrong_metrics_address_fails_in_one_line(start_server, tmp_path, path):
    server = start_server(models=SHIPPED)
    url = f"http://127.0.0.1:{server.metrics_port}{path}"
    done = demo("--address", server.address, "--metrics", url, "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"Error: {url}: ")
    assert "Traceback" not in done.stderr
    with longshort.Client(server.address) as client:
        assert list(client.sessions()) == []


def test_demo_never_runs_a_model_itself():
    code = "import sys, longshort_service.demo.streaming, longshort_service.demo.results\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"onnxruntime", "torch"} & set(done.stdout.split())


# Latencies


def test_quantile_is_linear_within_its_bucket_as_prometheus_has_it():
    counted = {0.1: 10.0, 0.2: 30.0, math.inf: 40.0}
    assert latency.quantile(counted, 0.125) == pytest.approx(0.05)
    assert latency.quantile(counted, 0.25) == pytest.approx(0.1)
    assert latency.quantile(counted, 0.5) == pytest.approx(0.15)
    assert latency.quantile(counted, 0.99) == 0.2  # beyond the greatest bound nothing is known


def test_quantile_of_nothing_is_no_number():
    assert math.isnan(latency.quantile({0.1: 0.0, math.inf: 0.0}, 0.5))
    assert math.isnan(latency.quantile({}, 0.5))


def test_only_what_was_added_between_two_scrapes_counts():
    before = {0.1: 5.0, math.inf: 5.0}
    assert latency.added(before, {0.1: 5.0, math.inf: 9.0}) == {0.1: 0.0, math.inf: 4.0}


def test_buckets_are_those_of_the_whole_way_summed_over_the_models():
    def line(model: str, stage: str, bound: str, count: int) -> str:
        labels = f'le="{bound}",model="{model}",stage="{stage}"'
        return f"longshort_step_seconds_bucket{{{labels}}} {count}\n"

    page = "# TYPE longshort_step_seconds histogram\n"
    page += line("a", "total", "0.1", 1) + line("a", "total", "+Inf", 2) + line("a", "run", "+Inf", 50)
    page += line("b", "total", "0.1", 3) + line("b", "total", "+Inf", 4) + line("c", "total", "+Inf", 50)
    assert latency.buckets(page, ("a", "b")) == {0.1: 4.0, math.inf: 6.0}
    with pytest.raises(latency.ScrapeError):
        latency.buckets(page, ("nobody",))
    with pytest.raises(latency.ScrapeError):
        latency.buckets("<html>", ("a",))
