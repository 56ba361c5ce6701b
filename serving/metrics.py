"""What a server measures, in a registry of its own: nothing here is shared between two servers."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from cognate.artifact import installed_versions
from cognate.encoder import Encoder
from cognate.searchable import Searchable
from serving.batcher import Batcher
from serving.observing import Answer, ObservedCall, Observer

PHASES = ("tokenize", "queue", "encode", "search")
"""In the order of ``Answer``, which is that of time."""

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
)  # fmt: skip
"""Bounds of the histograms of times."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
"""Bounds of the histograms of texts and tokens of a batch."""


class CacheCounts(NamedTuple):
    """What a cache has counted since the server's start, and the bytes that it holds."""

    hits: int
    misses: int
    size_bytes: int


class Metrics(Observer):
    """Measures a server. docs/operate.md says what each metric means.

    Attributes:
        registry: What is measured, to be published.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._calls = Counter(
            "cognate_calls", "Calls that ended, by code.", ["method", "code"], registry=self.registry
        )
        self._call_seconds = Histogram(
            "cognate_call_seconds",
            "From the request read to the answer written; of a stream, all of it.",
            ["method"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._phase_seconds = Histogram(
            "cognate_phase_seconds",
            "Where the time of an answer went: tokenize, queue, encode, search.",
            ["method", "phase"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._texts = Counter(
            "cognate_texts", "Texts and queries answered.", ["method"], registry=self.registry
        )
        self._under_way = 0
        under_way = Gauge("cognate_calls_under_way", "Calls being answered.", registry=self.registry)
        under_way.set_function(lambda: self._under_way)
        self._batch_texts = Histogram(
            "cognate_batch_texts", "Texts of a batch.", buckets=SIZES, registry=self.registry
        )
        self._batch_tokens = Histogram(
            "cognate_batch_tokens",
            "Tokens of a batch, without padding.",
            buckets=SIZES,
            registry=self.registry,
        )
        self._padding_tokens = Counter(
            "cognate_batch_padding_tokens", "Tokens of padding that the model ran.", registry=self.registry
        )
        self._batch_seconds = Counter(
            "cognate_batch_seconds",
            "Time that the model was busy: that of its batches, divided by how many may run at once.",
            registry=self.registry,
        )
        # labels() costs as much as the counting.
        self._by_code: dict[tuple[str, grpc.StatusCode], tuple[Counter, Histogram]] = {}
        self._by_method: dict[str, tuple[Counter, Sequence[Histogram]]] = {}

    def began(self) -> None:
        """A call began."""
        self._under_way += 1

    def answered(self, method: str, answer: Answer) -> None:
        """A request was answered."""
        known = self._by_method.get(method)
        if known is None:
            known = self._by_method[method] = (
                self._texts.labels(method),
                [self._phase_seconds.labels(method, phase) for phase in PHASES],
            )
        texts, histograms = known
        texts.inc(answer.texts)
        for histogram, microseconds in zip(histograms, answer[2:], strict=True):
            # 0 is a phase that the answer did not go through.
            if microseconds:
                histogram.observe(microseconds * 1e-6)

    def ended(self, call: ObservedCall) -> None:
        """The call ended."""
        self._under_way -= 1
        known = self._by_code.get((call.method, call.code))
        if known is None:
            known = self._by_code[call.method, call.code] = (
                self._calls.labels(call.method, call.code.name),
                self._call_seconds.labels(call.method),
            )
        known[0].inc()
        known[1].observe(call.seconds)

    def batch_ran(self, texts: Sequence[Sequence[int]], padded_tokens: int, seconds: float) -> None:
        """The model ran a batch.

        Args:
            texts: The token ids of each of its texts.
            padded_tokens: Its tokens, padding included.
            seconds: That it kept the model busy.
        """
        tokens = sum(map(len, texts))
        self._batch_texts.observe(len(texts))
        self._batch_tokens.observe(tokens)
        self._padding_tokens.inc(padded_tokens - tokens)
        self._batch_seconds.inc(seconds)

    def watch_server(self, encoder: Encoder) -> None:
        """Tell what runs, and the memory of the GPUs where the model runs on one."""
        info = Info("cognate_server", "What runs.", registry=self.registry)
        manifest = encoder.bundle.manifest
        info.info(
            {
                "version": installed_versions("cognate").get("cognate", ""),
                "model": manifest.model,
                "fingerprint": manifest.fingerprint,
                "precision": manifest.precision,
                "device": encoder.device,
            }
        )
        if encoder.device != "cpu":
            # Without NVIDIA's library there is no telling.
            with contextlib.suppress(ImportError):
                from serving.gpu_memory import GpuMemory

                self.registry.register(GpuMemory())

    def watch_queue(self, batcher: Batcher) -> None:
        """Tell how full the queue is."""
        waiting = Gauge("cognate_queue_tokens", "Tokens waiting for the model.", registry=self.registry)
        waiting.set_function(lambda: batcher.queue_tokens)
        limit = Gauge(
            "cognate_queue_limit_tokens",
            "Tokens waiting, over which calls are refused.",
            registry=self.registry,
        )
        limit.set(batcher.max_queue_tokens)

    def watch_indexes(self, indexes: Callable[[], Mapping[str, Searchable]]) -> None:
        """Tell which indexes there are, asking anew each time."""
        self.registry.register(_Indexes(indexes))

    def watch_cache(self, name: str, counts: Callable[[], CacheCounts]) -> None:
        """Tell how a cache does.

        Args:
            name: A word for it, such as ``query``: the metrics are cognate_query_cache_hits_total and so on.
            counts: Asked each time, from another thread.
        """
        self.registry.register(_Cache(name, counts))


class _Indexes(Collector):
    def __init__(self, indexes: Callable[[], Mapping[str, Searchable]]) -> None:
        self._indexes = indexes

    def collect(self) -> Iterable[Metric]:
        info = InfoMetricFamily(
            "cognate_index", "An index that is searched.", labels=["index", "kind", "version"]
        )
        records = GaugeMetricFamily("cognate_index_records", "Records of an index.", labels=["index"])
        created = GaugeMetricFamily(
            "cognate_index_created_timestamp_seconds", "When an index was built.", labels=["index"]
        )
        for name, index in sorted(self._indexes().items()):
            manifest = index.manifest
            info.add_metric([name, manifest.kind, index.version], {})
            records.add_metric([name], index.count)
            created.add_metric([name], manifest.created_at.timestamp())
        return [info, records, created]


class _Cache(Collector):
    def __init__(self, name: str, counts: Callable[[], CacheCounts]) -> None:
        self._name = name
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        counts = self._counts()
        prefix = f"cognate_{self._name}_cache"
        return [
            CounterMetricFamily(f"{prefix}_hits", "Look-ups that found something.", counts.hits),
            CounterMetricFamily(f"{prefix}_misses", "Look-ups that found nothing.", counts.misses),
            GaugeMetricFamily(f"{prefix}_bytes", "That the cache holds.", counts.size_bytes),
        ]
