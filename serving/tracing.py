"""Whether calls are traced: the standard ``OTEL_*`` environment variables say so."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.spans import Spans

_log = logging.getLogger(__name__)


def spans_to(environment: Mapping[str, str]) -> "Spans | None":
    """What makes spans of calls, where an environment asks for traces; OpenTelemetry is imported only then.

    An environment that cannot be had is a warning and no traces: often it is set for a whole cluster.

    Args:
        environment: Asks for traces with OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
            OTEL_TRACES_EXPORTER=otlp, unless OTEL_SDK_DISABLED is true.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER")
    endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environment.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (exporter or endpoint):
        return None
    if exporter not in (None, "", "otlp"):
        if exporter != "none":
            _log.warning("no traces are sent: OTEL_TRACES_EXPORTER is %r; otlp is the one there is", exporter)
        return None
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    if protocol not in (None, "", "grpc"):
        _log.warning(
            "no traces are sent: OTEL_EXPORTER_OTLP_PROTOCOL is %r; set it to grpc, "
            "and the endpoint to the collector's gRPC port, mostly 4317",
            protocol,
        )
        return None
    try:
        from serving.spans import Spans
    except ModuleNotFoundError as error:
        _log.warning("no traces are sent: %s is not installed: pip install 'cognate[otel]'", error.name)
        return None
    try:
        return Spans()
    # Whatever OpenTelemetry raises on a value that it cannot read: each of its variables has its own.
    except Exception as error:
        _log.warning("no traces are sent: OpenTelemetry refuses its OTEL_ variables: %s", error)
        return None
