"""``cognate top``: what a running server does, read from its metrics port."""

import contextlib
import dataclasses
import http.client
import math
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from cognate.cli.terminal import needs, out, print_json
from cognate.errors import CognateError

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

TARGET = "localhost:9464"

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""What answers more publishes something else."""

PHASES = ("tokenize", "queue", "encode", "search")


@dataclasses.dataclass(frozen=True)
class Method:
    """Calls of a method since the last reading.

    Attributes:
        calls_per_second: That ended.
        errors_per_second: Of these, those that did not end in OK.
        p50_ms: Half of them took no longer. None where there were none.
        p99_ms: 99 of 100 took no longer.
    """

    calls_per_second: float
    errors_per_second: float
    p50_ms: float | None
    p99_ms: float | None


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a phase took since the last reading; None where no call went through it."""

    p50_ms: float | None
    p99_ms: float | None


@dataclasses.dataclass(frozen=True)
class View:
    """What a server does, and has.

    Attributes:
        server: Of what runs: version, model, device, …
        uptime_seconds: Since the process started.
        seconds: That the rates and percentiles are of.
        methods: By name, those called since the server's start.
        phases: By name.
        codes_per_second: By code, those that calls ended in since the server's start.
        calls_under_way: Now.
        texts_per_second: Answered.
        queue_tokens: Waiting now.
        queue_limit_tokens: Over which calls are refused.
        batch_texts: Mean of a batch. None where none ran.
        batch_tokens: Mean of a batch, without padding.
        padding_share: Of the tokens that the model ran, those that were padding.
        model_busy_share: Of the batches that the model may run at once, how many it ran; of several workers,
            the mean.
        cache_hit_rate: Of the look-ups in caches. None where there was none.
        memory_bytes: Resident.
        gpu_memory_bytes: Used of each GPU, by number.
        indexes: Of each: kind, version, records.
    """

    server: dict[str, str]
    uptime_seconds: float
    seconds: float
    methods: dict[str, Method]
    phases: dict[str, Phase]
    codes_per_second: dict[str, float]
    calls_under_way: int
    texts_per_second: float
    queue_tokens: int
    queue_limit_tokens: int
    batch_texts: float | None
    batch_tokens: float | None
    padding_share: float | None
    model_busy_share: float
    cache_hit_rate: float | None
    memory_bytes: int
    gpu_memory_bytes: dict[str, int]
    indexes: dict[str, dict[str, str | int]]


class Reading:
    """The metrics of a server at one time.

    Attributes:
        at: When they were read, by ``time.monotonic``.
    """

    def __init__(self, samples: Iterable["Sample"], at: float) -> None:
        self.at = at
        self._samples: dict[str, list[Sample]] = {}
        for sample in samples:
            self._samples.setdefault(sample.name, []).append(sample)

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there is none."""
        return sum(sample.value for sample in self.samples(name, **labels))

    def samples(self, name: str, **labels: str) -> "list[Sample]":
        """A metric's samples that have these labels."""
        return [
            sample
            for sample in self._samples.get(name, ())
            if all(sample.labels.get(label) == value for label, value in labels.items())
        ]

    def values(self, name: str, label: str) -> list[str]:
        """The values of a metric's label, sorted."""
        return sorted({sample.labels.get(label, "") for sample in self.samples(name)})

    def names(self, end: str) -> list[str]:
        """The names of metrics that end so."""
        return [name for name in self._samples if name.endswith(end)]


def top(
    target: Annotated[
        str, typer.Option(help="HOST:PORT of the server's metrics.", envvar="COGNATE_METRICS_TARGET")
    ] = TARGET,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between readings.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one interval, and exit.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON document for each interval, a line each.")
    ] = False,
) -> None:
    """Show what a running server does: rates, times by phase, queue, batches, memory, indexes.

    The server must publish its metrics: cognate serve … --metrics-port 9464. Ctrl-C ends it.

    Example: cognate top --target localhost:9464
    """
    with needs("serve"):
        import prometheus_client.parser  # noqa: F401
    # The command line's own handler says that nothing was left half-written, which nobody asked here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _show(target, interval, once=once, as_json=as_json)
    except KeyboardInterrupt:
        return


def _show(target: str, interval: float, *, once: bool, as_json: bool) -> None:
    before = read(target)
    with contextlib.ExitStack() as stack:
        live = None
        if out.is_terminal and not (once or as_json):
            live = stack.enter_context(Live(console=out, screen=True, auto_refresh=False))
        while True:
            time.sleep(interval)
            try:
                now = read(target)
            except CognateError as error:
                # A server that is started anew comes back.
                if live is None:
                    raise
                live.update(str(error), refresh=True)
                continue
            seen = view(before, now)
            if as_json:
                print_json(dataclasses.asdict(seen))
            elif live:
                live.update(render(seen, target), refresh=True)
            else:
                out.print(render(seen, target))
            if once:
                return
            before = now


def read(target: str) -> Reading:
    """Read a server's metrics.

    Args:
        target: HOST:PORT.

    Raises:
        CognateError: Nothing answers there, or what answers is no server of ours.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        connection = http.client.HTTPConnection(target, timeout=5)
    except http.client.InvalidURL:
        raise CognateError(f"{target!r} is no HOST:PORT; give one, such as {TARGET}") from None
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read(MAX_ANSWER_BYTES).decode()
        families = list(text_string_to_metric_families(text)) if answer.status == 200 else []
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise CognateError(
            f"no metrics can be read from {target}: {why}; start the server with --metrics-port, "
            "and name that port with --target"
        ) from None
    except (http.client.HTTPException, ValueError):
        families = []
    finally:
        connection.close()
    reading = Reading((sample for family in families for sample in family.samples), time.monotonic())
    if not reading.samples("cognate_server_info"):
        raise CognateError(
            f"{target} publishes no metrics of cognate; "
            "name the server's --metrics-port, not the port that takes calls"
        )
    return reading


def view(before: Reading, now: Reading) -> View:
    """Put together what happened between two readings, and what is there at the second.

    Samples that differ in labels which are not asked for, such as the worker, are added up.
    """
    seconds = max(now.at - before.at, 1e-9)
    starts, starts_before = (
        {
            sample.labels.get("worker"): sample.value
            for sample in reading.samples("process_start_time_seconds")
        }
        for reading in (now, before)
    )
    started = min(starts.values(), default=0.0)

    def gains(name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        known = {tuple(sorted(sample.labels.items())): sample.value for sample in before.samples(name)}
        for sample in now.samples(name, **labels):
            worker = sample.labels.get("worker")
            was = known.get(tuple(sorted(sample.labels.items())), 0.0)
            # A process that was started anew has counted since.
            yield (
                sample.labels,
                sample.value - (was if starts.get(worker) == starts_before.get(worker) else 0),
            )

    def gain(name: str, **labels: str) -> float:
        return sum(gained for _, gained in gains(name, **labels))

    def percentile(name: str, share: float, **labels: str) -> float | None:
        buckets: dict[float, float] = {}
        for its, gained in gains(f"{name}_bucket", **labels):
            bound = float(its["le"])
            buckets[bound] = buckets.get(bound, 0.0) + gained
        value = quantile(buckets, share)
        return None if value is None else round(1000 * value, 3)

    def rate(name: str, **labels: str) -> float:
        return round(gain(name, **labels) / seconds, 2)

    methods = {}
    for method in now.values("cognate_calls_total", "method"):
        calls = rate("cognate_calls_total", method=method)
        methods[method] = Method(
            calls_per_second=calls,
            errors_per_second=round(calls - rate("cognate_calls_total", method=method, code="OK"), 2),
            p50_ms=percentile("cognate_call_seconds", 0.5, method=method),
            p99_ms=percentile("cognate_call_seconds", 0.99, method=method),
        )
    batches = gain("cognate_batch_tokens_count")
    tokens = gain("cognate_batch_tokens_sum")
    padding = gain("cognate_batch_padding_tokens_total")
    hits = sum(gain(name) for name in now.names("_cache_hits_total"))
    looks = hits + sum(gain(name) for name in now.names("_cache_misses_total"))
    return View(
        server=dict(now.samples("cognate_server_info")[0].labels),
        uptime_seconds=round(time.time() - started) if started else 0,
        seconds=round(seconds, 3),
        methods=methods,
        phases={
            phase: Phase(
                percentile("cognate_phase_seconds", 0.5, phase=phase),
                percentile("cognate_phase_seconds", 0.99, phase=phase),
            )
            for phase in PHASES
        },
        codes_per_second={
            code: rate("cognate_calls_total", code=code) for code in now.values("cognate_calls_total", "code")
        },
        calls_under_way=int(now.total("cognate_calls_under_way")),
        texts_per_second=rate("cognate_texts_total"),
        queue_tokens=int(now.total("cognate_queue_tokens")),
        queue_limit_tokens=int(now.total("cognate_queue_limit_tokens")),
        batch_texts=round(gain("cognate_batch_texts_sum") / batches, 2) if batches else None,
        batch_tokens=round(tokens / batches, 1) if batches else None,
        padding_share=round(padding / (padding + tokens), 4) if tokens else None,
        model_busy_share=round(gain("cognate_batch_seconds_total") / seconds / max(1, len(starts)), 3),
        cache_hit_rate=round(hits / looks, 4) if looks else None,
        memory_bytes=int(now.total("process_resident_memory_bytes")),
        gpu_memory_bytes={
            sample.labels["gpu"]: int(sample.value) for sample in now.samples("cognate_gpu_memory_used_bytes")
        },
        indexes={
            name: _index(now.samples("cognate_index_info", index=name)[0].labels)
            | {"records": int(now.samples("cognate_index_records", index=name)[0].value)}
            for name in now.values("cognate_index_info", "index")
        },
    )


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """A percentile of a histogram, as Prometheus's ``histogram_quantile`` reckons it.

    Args:
        buckets: How many values are no larger than each bound, the last of which is infinite.
        share: Of the values, 0 to 1.

    Returns:
        Between the bounds of its bucket in proportion; the last finite bound where it is beyond it. None
        where there are no values.
    """
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank = share * buckets[bounds[-1]]
    below_bound = below = 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            if math.isinf(bound):
                return below_bound
            return below_bound + (bound - below_bound) * (rank - below) / (buckets[bound] - below)
        below_bound, below = bound, buckets[bound]
    return below_bound


def render(seen: View, target: str) -> RenderableType:
    """Draw a view for a terminal."""
    server = seen.server
    calls = Table("method")
    for name in ("calls/s", "errors/s", "p50 ms", "p99 ms"):
        calls.add_column(name, justify="right")
    for method, told in seen.methods.items():
        calls.add_row(
            method,
            f"{told.calls_per_second:.1f}",
            f"{told.errors_per_second:.1f}",
            _number(told.p50_ms),
            _number(told.p99_ms),
        )
    phases = Table("phase")
    for name in ("p50 ms", "p99 ms"):
        phases.add_column(name, justify="right")
    for phase, times in seen.phases.items():
        phases.add_row(phase, _number(times.p50_ms), _number(times.p99_ms))
    indexes = Table("index", "kind", "version")
    indexes.add_column("records", justify="right")
    for index, its in seen.indexes.items():
        indexes.add_row(index, str(its["kind"]), str(its["version"]), f"{its['records']:,}")
    lines = [
        f"cognate {server.get('version', '')} on {target}, {server.get('model', '')}, "
        f"{server.get('device', '')}, up {_duration(seen.uptime_seconds)}",
        f"queue {seen.queue_tokens:,} of {seen.queue_limit_tokens:,} tokens · "
        f"{seen.calls_under_way} calls under way · {seen.texts_per_second:.1f} texts/s · "
        f"model busy {seen.model_busy_share:.0%}",
        f"batch {_number(seen.batch_texts)} texts, {_number(seen.batch_tokens)} tokens · "
        f"padding {_percent(seen.padding_share)} · cache hits {_percent(seen.cache_hit_rate)} · "
        f"memory {_mebibytes(seen.memory_bytes)}"
        + "".join(f" · GPU {gpu} {_mebibytes(used)}" for gpu, used in seen.gpu_memory_bytes.items()),
    ]
    errors = [f"{code} {rate:.1f}/s" for code, rate in seen.codes_per_second.items() if code != "OK" and rate]
    if errors:
        lines.append("errors: " + ", ".join(errors))
    return Group(*lines, *(table for table in (calls, phases, indexes) if table.row_count))


def _index(labels: Mapping[str, str]) -> dict[str, str | int]:
    return {name: labels[name] for name in ("kind", "version")}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hour} h {minute} min" if hour else f"{minute} min {second} s" if minute else f"{second} s"
