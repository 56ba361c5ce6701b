"""The metrics of several processes that serve one port, put together in one place."""

import http.client
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

TIMEOUT_SECONDS = 2.0
"""For a worker's answer; one that does not give it is left out."""


class WorkerMetrics(Collector):
    """The metrics of workers, each sample with a label ``worker``; for the parent's ``MetricsPort``.

    What is summed over ``worker`` is the server's. ``cognate_worker_up`` tells which ones answered.
    """

    def __init__(self, ports: Callable[[], Mapping[int, int | None]]) -> None:
        """Make it.

        Args:
            ports: The metrics port of each worker, on 127.0.0.1, by its number; None where it is down. Asked
                anew each time.
        """
        self._ports = ports

    def collect(self) -> Iterable[Metric]:
        """Read every worker's metrics."""
        up = GaugeMetricFamily("cognate_worker_up", "Whether a worker tells its metrics.", labels=["worker"])
        families: dict[str, Metric] = {}
        for number, port in sorted(self._ports().items()):
            worker = str(number)
            if port is None:
                up.add_metric([worker], 0)
                continue
            try:
                read = _read(port)
            except (OSError, http.client.HTTPException):
                up.add_metric([worker], 0)
                continue
            up.add_metric([worker], 1)
            for family in read:
                whole = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    whole.samples.append(sample._replace(labels={**sample.labels, "worker": worker}))
        return [up, *families.values()]


def _read(port: int) -> list[Metric]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/metrics")
        return list(text_string_to_metric_families(connection.getresponse().read().decode()))
    finally:
        connection.close()
