"""The metrics of several servers, read as those of one."""

import http.client
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cognate.v1 import embedding_pb2
from serving.metrics_port import MetricsPort
from serving.worker_metrics import WorkerMetrics
from tests.serving.servers import Running


def test_the_metrics_of_workers_are_told_apart_and_one_that_is_gone_is_left_out(
    serve: Callable[..., Running],
) -> None:
    first, second = serve(metrics_port=0), serve(metrics_port=0)
    for _ in range(2):
        first.stubs.encode(embedding_pb2.EncodeRequest(texts=["open"]), timeout=60)
    second.stubs.encode(embedding_pb2.EncodeRequest(texts=["open"]), timeout=60)
    ports = {number: server.server.metrics_port for number, server in enumerate((first, second))}
    # One that is being started again.
    ports[2] = None
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(lambda: ports))
    published = MetricsPort(registry, "127.0.0.1", 0)

    def read(name: str, **labels: str) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", published.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return {
            sample.labels["worker"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    try:
        assert read("cognate_calls_total", method="Encode", code="OK") == {"0": 2, "1": 1}
        assert read("cognate_call_seconds_bucket", method="Encode", le="+Inf") == {"0": 2, "1": 1}
        assert read("cognate_worker_up") == {"0": 1, "1": 1, "2": 0}
        second.stop()
        assert read("cognate_calls_total", method="Encode", code="OK") == {"0": 2}
        assert read("cognate_worker_up") == {"0": 1, "1": 0, "2": 0}
    finally:
        published.close()
