"""The HTTP port: real requests over a real socket."""

from __future__ import annotations

import http.client
import logging
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from longshort_service.config import ConfigError
from longshort_service.http_endpoint import HttpEndpoint
from longshort_service.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families


@dataclass
class Health:
    alive: bool = True
    why_not_ready: str = ""


@dataclass
class Running:
    endpoint: HttpEndpoint
    metrics: Metrics
    health: Health

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        """Return status, content type and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.endpoint.port, timeout=5)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read().decode()
        finally:
            connection.close()


@pytest.fixture
def running() -> Iterator[Running]:
    metrics, health = Metrics(), Health()
    endpoint = HttpEndpoint(
        "127.0.0.1",
        0,
        registry=metrics.registry,
        is_alive=lambda: health.alive,
        why_not_ready=lambda: health.why_not_ready,
    )
    endpoint.start()
    yield Running(endpoint, metrics, health)
    endpoint.stop()


def test_metrics_are_served_as_prometheus_text(running: Running):
    running.metrics.error("WRONG_SHAPE")
    status, content_type, body = running.ask("/metrics")
    assert (status, content_type.partition(";")[0]) == (200, "text/plain")
    assert 'longshort_errors_total{reason="WRONG_SHAPE"} 1.0' in body
    assert {"longshort_moves", "process_cpu_seconds"} <= {
        f.name for f in text_string_to_metric_families(body)
    }


def test_metrics_are_served_as_openmetrics_to_whoever_asks(running: Running):
    status, content_type, body = running.ask(
        "/metrics?x=1", Accept="application/openmetrics-text; version=1.0.0"
    )
    assert (status, content_type.partition(";")[0]) == (200, "application/openmetrics-text")
    assert "longshort_moves" in {family.name for family in parse_openmetrics(body)}
    assert body.endswith("# EOF\n")


def test_healthz_is_200_while_alive_and_503_when_the_engine_is_dead(running: Running):
    assert running.ask("/healthz")[0] == 200
    running.health.alive = False
    assert running.ask("/healthz")[::2] == (503, "the engine is dead\n")


def test_readyz_is_200_only_while_serving_and_says_why_not(running: Running):
    assert running.ask("/readyz")[::2] == (200, "ready\n")
    running.health.why_not_ready = "draining"
    assert running.ask("/readyz")[::2] == (503, "not ready: draining\n")
    assert running.ask("/healthz")[0] == 200


def test_other_paths_are_404_and_other_methods_501(running: Running):
    assert [running.ask(path)[0] for path in ("/", "/metric", "/metrics/", "/../etc/passwd")] == [404] * 4
    assert running.ask("/metrics", method="POST")[0] == 501


def test_head_has_no_body(running: Running):
    assert running.ask("/healthz", method="HEAD")[::2] == (200, "")


def test_a_taken_port_is_an_error_of_one_line(running: Running):
    with pytest.raises(ConfigError) as caught:
        HttpEndpoint(
            "127.0.0.1",
            running.endpoint.port,
            registry=running.metrics.registry,
            is_alive=lambda: True,
            why_not_ready=lambda: "",
        )
    assert f"port {running.endpoint.port} of 127.0.0.1 is taken" in str(caught.value)
    assert running.ask("/healthz")[0] == 200


def test_an_address_that_is_not_ours_is_an_error_of_one_line(running: Running):
    with pytest.raises(ConfigError, match=r"port 0 of 192\.0\.2\.1 cannot be had"):
        HttpEndpoint(
            "192.0.2.1", 0, registry=running.metrics.registry, is_alive=lambda: True, why_not_ready=lambda: ""
        )


def test_it_listens_on_ipv6_where_told_to():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    endpoint = HttpEndpoint(
        "::1", 0, registry=Metrics().registry, is_alive=lambda: True, why_not_ready=lambda: ""
    )
    endpoint.start()
    connection = http.client.HTTPConnection("::1", endpoint.port, timeout=5)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()
    endpoint.stop()


def test_a_silent_connection_holds_up_neither_others_nor_the_end(running: Running):
    with socket.create_connection(("127.0.0.1", running.endpoint.port)) as silent:
        silent.sendall(b"GET /metr")
        assert running.ask("/healthz")[0] == 200
        begin_s = time.monotonic()
        running.endpoint.stop()
        assert time.monotonic() - begin_s < 3


def test_a_failing_gauge_is_logged_and_the_next_scrape_works(
    running: Running, caplog: pytest.LogCaptureFixture
):
    def fail() -> int:
        raise RuntimeError("gauge")

    running.metrics.watch_streams(fail)
    with caplog.at_level(logging.ERROR):
        assert running.ask("/metrics")[0] == 500
    assert "RuntimeError: gauge" in caplog.text
    running.metrics.watch_streams(lambda: 3)
    assert "longshort_streams 3.0" in running.ask("/metrics")[2]


def test_stopping_closes_the_port(running: Running):
    running.endpoint.stop()
    with pytest.raises(ConnectionRefusedError):
        running.ask("/healthz")
