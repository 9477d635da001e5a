"""The manifests of Kubernetes: rendered by kustomize, held against the schemas, and against what they speak of."""

from __future__ import annotations

import copy
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import longshort
import pytest
import valkey
import yaml
from deployment import ROOT, prometheus_scraping, run_tool, tool
from longshort_service import config
from longshort_service.option_kinds import TIME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MANIFESTS = ROOT / "deploy" / "kubernetes"
# The oldest in which a preStop may sleep without a feature gate, and the newest that the package knows.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
ADAPTER = yaml.safe_load((MANIFESTS / "prometheus-adapter.yaml").read_text())["rules"]["custom"]

Manifest = dict[str, Any]


def rendered(folder: str) -> list[Manifest]:
    output = run_tool(tool("kubectl"), "kustomize", MANIFESTS / folder)
    return list(yaml.safe_load_all(output))


@pytest.fixture(scope="module", params=["base", "overlays/example"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(request.param)


def the(manifests: list[Manifest], kind: str, name: str = "longshort") -> Manifest:
    (found,) = (m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


def pods(manifests: list[Manifest]) -> list[Manifest]:
    return [m["spec"]["template"] for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]


def settings(manifests: list[Manifest]) -> dict[str, str]:
    (found,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap")
    return dict(found)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_fits_the_schema_of_its_kind(manifests: list[Manifest], version: str):
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_a_field_that_there_is_not():
    deployment = copy.deepcopy(the(rendered("base"), "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_the_settings_are_settings_of_the_service(manifests: list[Manifest]):
    read = config.load({}, settings(manifests))
    assert read.store.startswith("redis://longshort-valkey:6379")
    the(manifests, "Service", "longshort-valkey")


def test_a_drain_has_the_time_that_it_may_take(manifests: list[Manifest]):
    spec = the(manifests, "Deployment")["spec"]["template"]["spec"]
    pause_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = TIME.read(settings(manifests)["LONGSHORT_DRAIN_TIMEOUT"])
    assert spec["terminationGracePeriodSeconds"] > pause_s + drain_s


def test_every_selector_finds_pods_and_every_port_is_one_of_theirs(manifests: list[Manifest]):
    def chosen(labels: dict[str, str]) -> list[Manifest]:
        found = [pod for pod in pods(manifests) if labels.items() <= pod["metadata"]["labels"].items()]
        assert len(found) == 1, labels
        return found

    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Service":
            ((container,),) = (pod["spec"]["containers"] for pod in chosen(spec["selector"]))
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert {port["targetPort"]: port["port"] for port in spec["ports"]}.items() <= ports.items()
        elif manifest["kind"] == "PodDisruptionBudget":
            chosen(spec["selector"]["matchLabels"])
        elif manifest["kind"] == "NetworkPolicy":
            chosen(spec["podSelector"]["matchLabels"])
        elif manifest["kind"] == "HorizontalPodAutoscaler":
            the(manifests, spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])


def test_every_pod_keeps_to_the_restricted_standard(manifests: list[Manifest]):
    """What Kubernetes asks of a namespace with pod-security.kubernetes.io/enforce: restricted, and more."""
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_the_service_runs_as_the_user_of_its_image():
    context = the(rendered("base"), "Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in (ROOT / "Dockerfile").read_text()


def test_the_example_names_an_image_of_its_own_and_its_namespace():
    manifests = rendered("overlays/example")
    (container,) = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/longshort:0.1.0"
    namespaces = {m["metadata"].get("namespace") for m in manifests if m["kind"] != "Namespace"}
    assert namespaces == {the(manifests, "Namespace", "forecasting")["metadata"]["name"]}
    assert the(manifests, "HorizontalPodAutoscaler")["spec"]["maxReplicas"] == 24


def test_valkey_is_run_alike_on_kubernetes_and_on_compose_and_keeps_what_it_is_given(tmp_path: Path):
    (container,) = the(rendered("base"), "StatefulSet", "longshort-valkey")["spec"]["template"]["spec"][
        "containers"
    ]
    program, *options = container["args"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["valkey"]
    assert compose["command"] == container["args"]
    assert compose["image"] == container["image"]
    assert program == "valkey-server"
    server = valkey.start(tmp_path, 0, *options)
    try:
        report = valkey_info(server)
        assert report["aof_enabled"] == "1"
        assert report["maxmemory_policy"] == "noeviction"
        assert report["maxmemory"] == str(1 << 30)
        assert server.call("SET", "session", "kept") == "+OK"
        assert server.call("WAITAOF", "1", "0", "5000") == "*2"
        server.kill()
        server.restart()
        assert server.call("EXISTS", "session") == ":1"
    finally:
        server.kill()


def valkey_info(server: valkey.Valkey) -> dict[str, str]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"INFO\r\nQUIT\r\n")
        text = connection.makefile("rb").read().decode()
    return dict(re.findall(r"^(\w+):(\S*)\r$", text, re.MULTILINE))


# -- autoscaling


def query_of(rule: dict[str, Any], **labels: str) -> str:
    """Return the query of a rule as the adapter would ask it about one pod."""
    matchers = ",".join(f'{name}=~"{value}"' for name, value in labels.items())
    return str(rule["metricsQuery"]).replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", matchers)


def test_the_autoscaler_asks_for_the_metrics_that_the_adapter_offers():
    metrics = the(rendered("base"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    names = [metric["pods"]["metric"]["name"] for metric in metrics]
    assert names == [rule["name"]["as"] for rule in ADAPTER]


def test_the_adapters_queries_find_the_live_sessions_and_the_queue_of_a_real_service(
    start_server: Callable[..., Any], tmp_path: Path
):
    server = start_server()
    labels = {"namespace": "forecasting", "pod": "longshort-0"}
    text = ", ".join(f"{name}: {value}" for name, value in labels.items())
    with prometheus_scraping(server.metrics_port, tmp_path, text) as prometheus:
        live, queue = (query_of(rule, **labels) for rule in ADAPTER)

        def value_of(query: str) -> float | None:
            found = prometheus.query(query.replace("[2m]", "[3s]"))
            assert all(result["metric"] == {"pod": "longshort-0"} for result in found)
            return float(found[0]["value"][1]) if found else None

        await_that(lambda: value_of(queue) == 0)  # no step yet: nothing waits
        with longshort.Client(server.address) as client, client.session("s", "metro") as session:
            await_that(lambda: value_of(live) == 1)
            for _ in range(20):
                session.step([1.0])
                time.sleep(0.05)  # so that scrapes see steps come
            await_that(lambda: (value_of(queue) or 0) > 0)
        await_that(lambda: value_of(live) == 0)
        await_that(lambda: value_of(queue) == 0)
        for rule in ADAPTER:
            assert prometheus.get("series", **{"match[]": rule["seriesQuery"]})


def await_that(holds: Callable[[], bool], within_s: float = 15.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
