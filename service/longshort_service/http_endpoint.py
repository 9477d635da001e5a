"""The HTTP port for operators: /metrics for Prometheus, /healthz and /readyz for whoever restarts and routes.

Owns the socket and the thread that serves it. Does not know what is counted or what health means: it is given
a registry and two callables.
"""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.exposition import choose_encoder

from longshort_service.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)
_PLAIN: Final = "text/plain; charset=utf-8"
# A scraper sends its request at once; whoever is silent for so long holds a thread for nothing.
_SILENCE_LIMIT_S: Final = 5.0


class HttpEndpoint:
    """Serves in a daemon thread from `start` to `stop`.

    `is_alive` says whether the process is worth keeping (false: the engine is dead), `why_not_ready` in a few
    words why no new work may be sent here, and nothing where it may. Both are called from other threads and must
    return at once. Construction binds the port, 0 for any free one; ConfigError where it cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        is_alive: Callable[[], bool],
        why_not_ready: Callable[[], str],
    ) -> None:
        try:
            self._server = _Server(host, port, registry, is_alive, why_not_ready)
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise ConfigError(f"metrics_port: port {port} of {host} {why}; give another, or 0") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True
        )

    def start(self) -> None:
        """Begin to answer. Called once."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port; requests being answered are left to end by themselves."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a silent connection must not hold up the end of the process

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        is_alive: Callable[[], bool],
        why_not_ready: Callable[[], str],
    ) -> None:
        self.registry = registry
        self.is_alive = is_alive
        self.why_not_ready = why_not_ready
        self.address_family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        super().__init__(address[:2], _Handler)  # type: ignore[arg-type]  # getaddrinfo is typed loosely

    def server_bind(self) -> None:
        # HTTPServer's asks the resolver for this machine's full name: maybe seconds, and nobody needs it.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  (its signature)
        if isinstance(sys.exception(), OSError):  # the peer went away or fell silent: its business
            return
        logger.error(
            "request failed", exc_info=sys.exception(), extra={"fields": {"peer": client_address[0]}}
        )


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "longshort"
    sys_version = ""
    timeout = _SILENCE_LIMIT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer_metrics()
        elif path == "/healthz":
            self._answer_whether("alive", "" if self.server.is_alive() else "the engine is dead")
        elif path == "/readyz":
            why = self.server.why_not_ready()
            self._answer_whether("ready", f"not ready: {why}" if why else "")
        else:
            self._answer(HTTPStatus.NOT_FOUND, _PLAIN, b"there is /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET  # noqa: N815  (the name that http.server calls)

    def _answer_metrics(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception:
            logger.exception("a metric could not be read")
            self._answer(
                HTTPStatus.INTERNAL_SERVER_ERROR, _PLAIN, b"a metric could not be read; see the log\n"
            )
        else:
            self._answer(HTTPStatus.OK, content_type, body)

    def _answer_whether(self, yes: str, why_not: str) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if why_not else HTTPStatus.OK
        self._answer(status, _PLAIN, f"{why_not or yes}\n".encode())

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (http.server's name)
        logger.debug(format, *args)
