"""The port that metrics are read from, with threads of its own: it answers whatever the calls do."""

import socket
import threading
from http.server import ThreadingHTTPServer

from prometheus_client import MetricsHandler
from prometheus_client.registry import Collector

from cognate.errors import CognateError

SLOW_SECONDS = 10.0
"""After which a reader that says nothing, or takes nothing, is dropped."""


class MetricsPort:
    """Publishes a registry over HTTP, for Prometheus and ``cognate top``, until closed.

    Attributes:
        port: That it listens on; the one that was found where 0 was asked for.
    """

    def __init__(self, registry: Collector, host: str, port: int) -> None:
        """Listen.

        Args:
            registry: What to publish.
            host: The address to listen on.
            port: 0 takes any that is free.

        Raises:
            CognateError: The port cannot be listened on.
        """
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": SLOW_SECONDS})
        kind = _Http6 if ":" in host else _Http
        try:
            self._http = kind((host, port), handler)
        except OSError as error:
            raise CognateError(
                f"metrics cannot be published on port {port} of {host}: {error.strerror or error}; "
                "give another with --metrics-port and --metrics-host"
            ) from None
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; answers under way are not waited for."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that went away is nobody's concern."""


class _Http6(_Http):
    address_family = socket.AF_INET6
