"""The index artifact: vectors in FAISS, records by row and by what they hold, and cosine search over them."""

import errno
import functools
import itertools
import json
import logging
import queue
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import faiss
import numpy as np
import pydantic
from numpy.typing import NDArray

from cognate.artifact import Manifest, manifest_digest
from cognate.bundle import Bundle
from cognate.devices import IndexDevice, IndexGpus, check_device
from cognate.errors import ArtifactError, CognateError
from cognate.exact import exact_top_k
from cognate.filters import Filter, check, to_sql
from cognate.gpu_index import DeviceVectors, GpuIndex, NotOnGpuError, gpu_count, to_gpus
from cognate.index_kinds import (
    CODED,
    EXACT_SHARE,
    SUBSET_FACTOR,
    Approximate,
    Layout,
    SearchParameters,
    build_approximate,
    write_approximate,
)
from cognate.index_tuning import TradeoffPoint, choose, try_out
from cognate.matching import Matching
from cognate.narrowing import NOTHING, Narrowing, narrowed_hits
from cognate.processors import available_cores
from cognate.record_file import RecordFile, RecordFileWriter, line
from cognate.records import LARGE_INTEGER, Accuracy, Hit, Record, has_large_integer
from cognate.searchable import check_fingerprint, check_search, check_shape

VECTORS = "index.faiss"
APPROXIMATE = "approximate.faiss"
LOOKUP = "lookup.sqlite"
RECALL_QUERIES = 100
RECALL_K = 10
RECALL_SCORES = 64 * 1024 * 1024
FILTER_CACHE_BYTES = 32 * 1024 * 1024
"""Of the rows that the last filters matched, a bit for each record."""

SPLIT_BYTES = 12 * 1024 * 1024
"""An exact search for fewer queries than cores reads so many bytes of vectors, or more, in a thread for each
core. Less lies in the caches, and takes FAISS no longer than waking the threads."""

_ONE = np.float32(1)

_log = logging.getLogger(__name__)


class IndexManifest(Manifest):
    """An index's manifest.

    Attributes:
        kind: How it is searched: "flat" compares with every vector; "hnsw", "ivf_flat", "ivf_pq",
            "ivf_fastscan", "cagra" or "factory" with some of them.
        parameters: Of the kind: the FAISS factory string; none where only full vectors are searched.
        metric: "cosine".
        dimension: Components of a vector.
        count: How many records it holds.
        fingerprint: Of the bundle that its vectors are of.
        model: The name of that bundle's model, for people.
        recall_at_10: Of "balanced" searches against exact search, over records sampled from the index; None
            where it holds none.
        storage: Number format that is searched in; full vectors score the candidates again.
        recall_target: The recall that the parameters of "balanced" were chosen for.
        search: Parameters of "fast" and "balanced" searches; none where all are exact.
        tradeoff: What was measured with these parameters and the others that were tried.
    """

    KIND: ClassVar[str] = "index"
    FORMAT_VERSION: ClassVar[int] = 2
    LIBRARIES: ClassVar[tuple[str, ...]] = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "onnxruntime")

    kind: str
    parameters: dict[str, int | float | str]
    metric: Literal["cosine"]
    dimension: int = pydantic.Field(ge=1)
    count: int = pydantic.Field(ge=0)
    fingerprint: str
    model: str
    recall_at_10: float | None
    storage: str = "fp32"
    recall_target: float | None = None
    search: dict[Literal["fast", "balanced"], SearchParameters] = {}  # noqa: RUF012, as pydantic copies it
    tradeoff: list[TradeoffPoint] = []  # noqa: RUF012


class IndexWriter:
    """Writes an index as records and vectors come, holding none of them in memory.

    A kind other than flat is built at the end: it learns from a sample and takes the vectors in chunks, but
    is itself in memory until it is written.

    Use as a context manager on an empty folder (see ``cognate.artifact.publishing``), and call
    ``finish`` at the end.
    """

    def __init__(self, folder: Path, dimension: int, layout: Layout | None = None) -> None:
        """Start an index.

        Args:
            folder: Where its files shall be.
            dimension: Components of a vector.
            layout: What kind it shall be; None is flat.

        Raises:
            CognateError: It cannot be of that kind.
        """
        self._layout = layout or Layout()
        self._layout.check(dimension)
        self._folder = folder
        self._dimension = dimension
        self._count = 0
        self._vectors = (folder / VECTORS).open("wb")
        self._vectors.write(_flat_header(dimension, 0))
        self._records = RecordFileWriter(folder)
        self._lookup = sqlite3.connect(folder / LOOKUP, isolation_level=None)
        # The folder is published only when whole, and is synced then: a journal would guard nothing.
        with _os_errors():
            self._lookup.executescript(
                """
                PRAGMA journal_mode = OFF;
                PRAGMA synchronous = OFF;
                CREATE TABLE records (row INTEGER PRIMARY KEY, id TEXT NOT NULL, label TEXT, attributes TEXT);
                CREATE UNIQUE INDEX records_by_id ON records (id);
                """
            )

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its files."""
        self._lookup.close()
        self._records.close()
        self._vectors.close()

    def add(self, records: Sequence[Record], vectors: NDArray[np.float32]) -> None:
        """Append records with their vectors.

        Args:
            records: One without an id gets its row number.
            vectors: float32, shape (records, dimension), unit length. One of zeros is kept: its cosine with
                every query counts as 0.

        Raises:
            CognateError: An id occurs twice, a vector is not finite, or attributes are no JSON object.
            OSError: The disk is full or fails.
        """
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            first = self._count + int(np.argmin(finite)) + 1
            raise CognateError(f"the vector of record {first} has a component that is not finite")
        rows = [
            (
                self._count + offset,
                record.id if record.id is not None else str(self._count + offset),
                record.label,
                attributes_text(record, f"record {self._count + offset + 1}"),
            )
            for offset, record in enumerate(records)
        ]
        with _os_errors():
            self._lookup.execute("BEGIN")
            for row in rows:
                try:
                    self._lookup.execute("INSERT INTO records VALUES (?, ?, ?, ?)", row)
                except sqlite3.IntegrityError:
                    raise CognateError(
                        f"record {row[0] + 1} has the id {row[1]!r}, which an earlier record has (a record "
                        "without an id is numbered from 0); give every record an id of its own"
                    ) from None
            self._lookup.execute("COMMIT")
        self._records.add([line(record, row[1], row[3]) for record, row in zip(records, rows, strict=True)])
        self._vectors.write(np.ascontiguousarray(vectors, "<f4").tobytes())
        self._count += len(records)

    def finish(
        self,
        bundle: Bundle | IndexManifest,
        *,
        build: Callable[[str, NDArray[np.float32]], faiss.Index] = build_approximate,
    ) -> IndexManifest:
        """Complete the index and write its manifest.

        Args:
            bundle: The one whose vectors these are, or the manifest of another index of its.
            build: Does what ``build_approximate`` does, such as on several machines.
        """
        of = bundle.manifest if isinstance(bundle, Bundle) else bundle
        self._vectors.seek(0)
        self._vectors.write(_flat_header(self._dimension, self._count))
        self._vectors.close()
        with _os_errors():
            self._lookup.execute("CREATE INDEX records_by_label ON records (label)")
        self._lookup.close()
        self._records.close()
        flat = _read_faiss(self._folder / VECTORS)
        return IndexManifest.write(
            self._folder,
            metric="cosine",
            dimension=self._dimension,
            count=self._count,
            fingerprint=of.fingerprint,
            model=of.model,
            **_build_kind(self._folder / APPROXIMATE, flat, self._layout, build),
        )


def attributes_text(record: Record, name: str) -> str | None:
    """A record's attributes as JSON; None where it has none.

    Raises:
        CognateError: They are no JSON object, or one with an integer of more than 64 bits; the record is
            called by its name.
    """
    if record.attributes is None:
        return None
    try:
        if has_large_integer(record.attributes):
            raise CognateError(f"{name} has attributes with {LARGE_INTEGER}")
        return json.dumps(record.attributes, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise CognateError(
            f"{name} has attributes that are not made of JSON values (so no NaN, infinity or date)"
        ) from None


def _build_kind(
    path: Path,
    flat: faiss.Index,
    layout: Layout,
    build: Callable[[str, NDArray[np.float32]], faiss.Index],
) -> dict[str, Any]:
    """Build what finds candidates, where the layout has it, and try it out.

    Args:
        path: Where it shall be; nothing is there afterwards where full vectors are all that is needed.
        flat: The full vectors.
        layout: What was asked for.
        build: Makes the FAISS index of a factory string and the vectors.

    Returns:
        What the manifest says of it.
    """
    chosen = layout.resolve(flat.ntotal, flat.d)
    factory = chosen.factory_string(flat.ntotal, flat.d) if flat.ntotal > 1 else None
    if factory is None:
        return {"kind": "flat", "parameters": {}, "recall_at_10": _recall(flat)}
    vectors = _full_vectors(flat)
    with _faiss_errors():
        write_approximate(build(factory, vectors), path)
    points = try_out(Approximate(_read_faiss(path), flat), flat, vectors, path.stat().st_size)
    fast, balanced = choose(points, layout.recall)
    told = {"recall_target": layout.recall, "tradeoff": points}
    if layout.kind == "auto" and layout.factory is None and balanced.recall_at_10 < layout.recall:
        path.unlink()
        return {"kind": "flat", "parameters": {}, "recall_at_10": 1.0, **told}
    return {
        "kind": "factory" if layout.factory is not None else chosen.kind,
        "parameters": {"factory": factory},
        "storage": "codes" if layout.factory is not None or chosen.kind in CODED else chosen.storage,
        "recall_at_10": balanced.recall_at_10,
        "search": {"fast": fast.parameters, "balanced": balanced.parameters},
        **told,
    }


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turn SQLite's word for a full or failing disk into the OSError that other files give."""
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def version_of(folder: Path) -> str:
    """The version of the index in a folder, whose files are not checked: see ``Index.version``.

    Raises:
        ArtifactError: There is no such folder, or no manifest in it.
    """
    return manifest_digest(folder, IndexManifest.KIND)[:12]


class Index:
    """An opened index. Safe to use from several threads.

    It holds its files open: should the folder be replaced or removed, it still answers from what was there
    when it was opened.

    Attributes:
        folder: Where it is.
        manifest: What it says of itself.
        version: What tells it from any other index: the first 12 digits of the sha256 of its manifest.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        fingerprint: str | None = None,
        device: IndexDevice = "auto",
        gpus: IndexGpus = "one",
    ) -> None:
        """Open an index and check every file of it. On the CPU its vectors are memory-mapped.

        Args:
            folder: Where it is.
            fingerprint: Of the bundle that queries are encoded with; None skips that check, for looking
                at an index without its bundle.
            device: "cuda" searches on GPUs; "auto" does so where faiss sees one and the index can be there,
                and else, with a warning where there is a GPU, on the CPU. Searches that are filtered,
                paged, or that ask for more than 2,048 hits or candidates are the CPU's in any case.
            gpus: "one", or all of them: "replicas" share the queries of a search, "shards" the vectors.

        Raises:
            ArtifactError: It is missing, no index, damaged or too new.
            FingerprintError: Its vectors are of another bundle.
            CognateError: There is no such device, or the index cannot be there.
        """
        check_device(device, IndexDevice)
        self.folder = Path(folder)
        self._version = version_of(self.folder)
        self.manifest = IndexManifest.read(self.folder)
        check_fingerprint(self.folder, self.manifest, fingerprint)
        self._flat: Any = _read_faiss(self.folder / VECTORS)
        if self._flat.d != self.manifest.dimension or self._flat.ntotal != self.manifest.count:
            raise ArtifactError(f"{self.folder / VECTORS} does not fit its manifest; build the index again")
        # Kept, as to start a thread, and OpenMP in it, takes milliseconds.
        self._readers = ThreadPoolExecutor(
            available_cores(), "exact-search", initializer=faiss.omp_set_num_threads, initargs=(1,)
        )
        self._approximate: Approximate | None = None
        if self.manifest.search:
            self._approximate = Approximate(_read_faiss(self.folder / APPROXIMATE), self._flat)
            found = self._approximate
            if (found.dimension, found.count) != (self.manifest.dimension, self.manifest.count):
                raise ArtifactError(
                    f"{self.folder / APPROXIMATE} does not fit its manifest; build the index again"
                )
        # Its vectors and lists stay on the CPU too: filtered and paged searches are done there.
        self._gpu = None if device == "cpu" else self._to_gpus(device, gpus)
        kept = max(1, min(1024, FILTER_CACHE_BYTES // max(1, self.manifest.count // 8)))
        # A connection serves one thread at a time. All are opened now: later, another index may be here.
        self._connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._records: RecordFile | None = None
        # Of no method of its own: the index would refer to itself, and not be freed once it is let go.
        self._matching = functools.lru_cache(kept)(
            functools.partial(_match, self._connections, self.manifest.count)
        )
        try:
            self._records = RecordFile(self.folder, self.manifest.count)
            for _ in range(available_cores()):
                self._connections.put(_open_lookup(self.folder / LOOKUP))
            if version_of(self.folder) != self._version:
                raise ArtifactError(f"{self.folder} was replaced while it was being opened; open it again")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close its files and unmap its vectors. No search may be under way, and none can come after."""
        if self._gpu:
            self._gpu.close()
        self._readers.shutdown()
        self._flat = self._approximate = self._gpu = None
        self._matching.cache_clear()
        if self._records:
            self._records.close()
        while not self._connections.empty():
            self._connections.get().close()

    @property
    def location(self) -> Path:
        """Its folder."""
        return self.folder

    @property
    def remote(self) -> bool:
        """False: a search keeps this machine busy."""
        return False

    @property
    def version(self) -> str:
        """What tells it from any other index: the first 12 digits of the sha256 of its manifest."""
        return self._version

    @property
    def device(self) -> str:
        """Where it is searched: "cuda" or "cpu"."""
        return "cuda" if self._gpu else "cpu"

    @property
    def count(self) -> int:
        """How many records it holds."""
        return self.manifest.count

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return self.manifest.dimension

    def search(
        self,
        vectors: NDArray[np.float32],
        top_k: int = 10,
        *,
        min_score: float | None = None,
        accuracy: Accuracy = "balanced",
        narrowing: Narrowing | None = None,
    ) -> list[list[Hit]]:
        """Find the records nearest to each vector by cosine similarity.

        Args:
            vectors: float32, shape (queries, dimension), unit length.
            top_k: Hits for each, at least 1; as many as there are where the index holds fewer.
            min_score: Leave out hits with a smaller cosine.
            accuracy: "exact" compares with every vector, "balanced" has the recall that the index was built
                for, "fast" may find fewer of the nearest. A flat index is exact in any case.
            narrowing: Which records may be found, and which of the hits are given; None for all.

        Returns:
            The hits of each vector, best first, those of equal score in the order of the index. Which of
            the records that share the last hit's score are among them is not defined.

        Raises:
            CognateError: top_k is less than 1, there is no such accuracy, the vectors have another
                dimension or are not finite, or the filter is over a limit.
        """
        if narrowing is None and min_score is None:
            return self._fetched(*self.search_rows(vectors, top_k, accuracy=accuracy))
        return narrowed_hits(
            self, vectors, top_k, narrowing or NOTHING, accuracy=accuracy, min_score=min_score
        )

    def search_on_device(
        self, vectors: DeviceVectors, top_k: int = 10, *, accuracy: Accuracy = "balanced"
    ) -> list[list[Hit]]:
        """``search`` with vectors that a GPU calculated, without a trip of theirs through the host.

        Where the index is not on a GPU, or the search is none for it, they are copied to the host.

        Args:
            vectors: As ``Encoder.forward_on_device`` gives them; finite, which is not looked at.
            top_k: As ``search``.
            accuracy: As ``search``.

        Raises:
            CognateError: As ``search``, but for what is not finite.
        """
        check_shape(tuple(vectors.shape()), top_k, accuracy, self.dimension)
        self._check_open()
        k = min(top_k, self.count)
        parameters = self._parameters(k, accuracy)
        if not k or not self._on_gpu(k, parameters):
            return self.search(vectors.numpy(), top_k, accuracy=accuracy)
        scores, rows = self._search_gpu(vectors, k, parameters)
        if (rows < 0).any():
            return self.search(vectors.numpy(), top_k, accuracy=accuracy)
        scores, rows = _in_order(scores, rows)
        return self._fetched(np.clip(scores, -1.0, 1.0), rows)

    def search_rows(
        self,
        vectors: NDArray[np.float32],
        top_k: int,
        *,
        accuracy: Accuracy = "balanced",
        matching: Matching | None = None,
        stable: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the rows nearest to each vector, without fetching records.

        Args:
            vectors: float32, shape (queries, dimension), unit length.
            top_k: Hits for each, at least 1.
            accuracy: As ``search``.
            matching: The rows that may be found, of this index; None for all.
            stable: Whether the first hits shall be the same whatever top_k is; the search is then exact.

        Returns:
            Cosines, float32, and rows, int64, of shape (queries, min(top_k, rows that may be
            found)), best first.

        Raises:
            CognateError: As ``search``.
        """
        check_search(vectors, top_k, accuracy, self.dimension)
        self._check_open()
        k = min(top_k, self.count if matching is None else matching.count)
        if not len(vectors) or not k:
            return np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
        vectors = np.ascontiguousarray(vectors, np.float32)
        if stable:
            scores, rows = self._stable_of(vectors, k, matching)
        elif matching is None:
            scores, rows = self._nearest(vectors, k, accuracy)
        else:
            scores, rows = self._nearest_of(vectors, k, accuracy, matching)
        scores, rows = _in_order(scores, rows)
        # Not np.clip, which takes as long as fetching a record.
        np.minimum(scores, _ONE, out=scores)
        return np.maximum(scores, -_ONE, out=scores), rows

    def _fetched(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[Hit]]:
        """The hits of as many rows for each query."""
        queries, k = rows.shape
        hits = self.hits(rows.ravel(), scores.ravel())
        return [hits[first * k : (first + 1) * k] for first in range(queries)]

    def _nearest(
        self, vectors: NDArray[np.float32], k: int, accuracy: Accuracy
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        parameters = self._parameters(k, accuracy)
        if self._on_gpu(k, parameters):
            scores, rows = self._search_gpu(vectors, k, parameters)
        elif parameters is None or self._approximate is None:
            return self._exact_of_all(vectors, k)
        else:
            scores, rows = self._approximate.search(vectors, k, parameters)
        # The lists that were read may hold fewer, and a graph may lead to fewer.
        if rows.min() < 0:
            short = np.flatnonzero((rows < 0).any(axis=1))
            scores[short], rows[short] = self._exact_of_all(vectors[short], k)
        return scores, rows

    def _exact_of_all(
        self, vectors: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        count, cores = int(self._flat.ntotal), available_cores()
        # FAISS with several threads of its own reads a third as fast as memory can be read, or slower.
        if len(vectors) < cores and 4 * count * self.dimension >= SPLIT_BYTES:
            edges = np.linspace(0, count, cores + 1).astype(np.int64).tolist()
            if k <= min(end - start for start, end in itertools.pairwise(edges)):
                return _split_search(self._readers, _full_vectors(self._flat), edges, vectors, k)
        exact: tuple[NDArray[np.float32], NDArray[np.int64]] = self._flat.search(vectors, k)
        return exact

    def _parameters(self, k: int, accuracy: Accuracy) -> SearchParameters | None:
        """How a search for k rows is done; None where every vector is compared."""
        if self._approximate is None or accuracy == "exact" or k * EXACT_SHARE > self.count:
            return None
        return self.manifest.search[accuracy]

    def _on_gpu(self, k: int, parameters: SearchParameters | None) -> bool:
        """Whether a search that nothing narrows is done on GPUs: of an approximate index, no exact one."""
        if self._gpu is None or (parameters is None and self._approximate is not None):
            return False
        nprobe, rerank = (parameters.nprobe, parameters.rerank) if parameters else (None, None)
        return self._gpu.takes(k, nprobe=nprobe, rerank=rerank)

    def _search_gpu(
        self, vectors: NDArray[np.float32] | DeviceVectors, k: int, parameters: SearchParameters | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        assert self._gpu is not None  # noqa: S101
        return self._gpu.search(vectors, k, **(parameters.model_dump() if parameters else {}))

    def _to_gpus(self, device: IndexDevice, gpus: IndexGpus) -> GpuIndex | None:
        """Copy what is searched to GPUs; None where it stays on the CPU, as "auto" allows."""
        if device == "auto" and not gpu_count():
            return None
        try:
            if self._approximate is None:
                return to_gpus(self._flat, gpus)
            return to_gpus(
                self._approximate.index, gpus, full=self._flat if self._approximate.reranks else None
            )
        except NotOnGpuError as error:
            why = f"index device cuda was asked for, but {self.folder} cannot be there: {error}"
            if device == "cuda":
                raise NotOnGpuError(why) from None
            _log.warning("%s is searched on the CPU: %s", self.folder, error)
            return None

    def _exact_of(
        self, vectors: NDArray[np.float32], k: int, matching: Matching | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if matching is None:
            return _in_order(*self._exact_of_all(vectors, k))
        parameters: Any = faiss.SearchParameters(sel=matching.selector())  # type: ignore[call-arg]
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = self._flat.search(
            vectors, k, params=parameters
        )
        return _in_order(*found)

    def _stable_of(
        self, vectors: NDArray[np.float32], k: int, matching: Matching | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The first k of all rows in their order, whichever of those of equal score FAISS takes."""
        most = self.count if matching is None else matching.count
        asked = k
        while True:
            asked = min(most, asked + max(1, asked - k))
            scores, rows = self._exact_of(vectors, asked, matching)
            # Of those that share the last score, some may be missing.
            if asked == most or (scores[:, -1] < scores[:, k - 1]).all():
                return scores[:, :k], rows[:, :k]

    def _nearest_of(
        self, vectors: NDArray[np.float32], k: int, accuracy: Accuracy, matching: Matching
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        few = max(k * EXACT_SHARE, int((SUBSET_FACTOR * self.count) ** 0.5))
        if self._approximate is None or accuracy == "exact" or matching.count <= few:
            return self._exact_of(vectors, k, matching)
        parameters = self.manifest.search[accuracy].widened(self.count / matching.count, k)
        scores, rows = self._approximate.search(vectors, k, parameters, matching.selector())
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            scores[short], rows[short] = self._exact_of(vectors[short], k, matching)
        return scores, rows

    def matching(self, filter: Filter) -> Matching:  # noqa: A002
        """The rows that a filter lets through; those of the last filters are kept.

        Raises:
            FilterError: It is over a limit.
        """
        check(filter)
        self._check_open()
        condition, parameters = to_sql(filter)
        return self._matching(condition, tuple(parameters))

    def all_rows(self) -> NDArray[np.int64]:
        """The rows of all its records: int64, ascending."""
        return np.arange(self.count)

    def sample_rows(self, count: int) -> list[int]:
        """Rows of some of its records, spread evenly over it, or of all where it holds fewer."""
        all_rows = self.all_rows()
        spread = np.linspace(0, len(all_rows) - 1, min(count, len(all_rows))).astype(np.int64)
        rows: list[int] = all_rows[np.unique(spread)].tolist()
        return rows

    def records(self, rows: Sequence[int]) -> list[Record]:
        """The records of rows, in their order."""
        self._check_open()
        assert self._records is not None  # noqa: S101
        return self._records.records(rows)

    def hits(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> list[Hit]:
        """The records of rows with their scores, in their order."""
        self._check_open()
        assert self._records is not None  # noqa: S101
        return self._records.hits(rows, scores)

    def labels(self, rows: Iterable[int]) -> dict[int, str | None]:
        """The labels of records by row; None where one has none."""
        return dict(self._looked_up("SELECT row, label FROM records WHERE row", sorted(rows)))

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The rows of records by id; an id that no record has is left out."""
        return dict(self._looked_up("SELECT id, row FROM records WHERE id", sorted(ids)))

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """The vectors of records by row, in the order asked for.

        Returns:
            float32, shape (rows, dimension), unit length or zero.
        """
        self._check_open()
        some: NDArray[np.float32] = _full_vectors(self._flat)[np.asarray(rows, np.int64)]
        return some

    def _check_open(self) -> None:
        if self._flat is None:
            raise CognateError(f"the index {self.folder} is closed; open it again")

    def _looked_up(self, select: str, wanted: Sequence[int | str]) -> Iterator[Any]:
        """What a SELECT that ends in a column gives where the column is one of some values."""
        self._check_open()
        with _taken(self._connections) as connection:
            # In runs of 500: SQLite bounds the parameters of a statement.
            for start in range(0, len(wanted), 500):
                some = wanted[start : start + 500]
                marks = ",".join("?" * len(some))
                with closing(connection.execute(f"{select} IN ({marks})", some)) as cursor:
                    yield from cursor


@contextmanager
def _taken(connections: "queue.SimpleQueue[sqlite3.Connection]") -> Iterator[sqlite3.Connection]:
    connection = connections.get()
    try:
        yield connection
    finally:
        connections.put(connection)


def _match(
    connections: "queue.SimpleQueue[sqlite3.Connection]",
    count: int,
    condition: str,
    parameters: tuple[str | float, ...],
) -> Matching:
    """The rows for which a condition over the columns of ``records`` holds."""
    select = f"SELECT row FROM records WHERE {condition}"  # noqa: S608, filters.to_sql binds all that came
    with _taken(connections) as connection, closing(connection.execute(select, parameters)) as cursor:
        return Matching.of(np.fromiter((row for (row,) in cursor), np.int64), count)


def _open_lookup(path: Path) -> sqlite3.Connection:
    # immutable: no lock, no journal, no file is ever made beside a read-only artifact.
    uri = f"{path.absolute().as_uri()}?immutable=1"
    try:
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            # Mapped as the vectors are: a page of the file is read without a call to the system.
            connection.execute("PRAGMA mmap_size = 0x7fff0000").close()
            connection.execute("SELECT row, id, label, attributes FROM records LIMIT 1").close()
        except sqlite3.Error:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise ArtifactError(f"{path} has no table of records: {error}; build the index again") from None
    return connection


def _flat_header(dimension: int, count: int) -> bytes:
    """The bytes that FAISS writes before the vectors of an IndexFlatIP.

    Made from FAISS's own serialization of an empty one, with the two counts in it set: the number of
    vectors (int64 at byte 8, after the type and the dimension) and of floats (uint64, the last 8 bytes).
    So vectors can be appended to a file without ever being held in memory.
    """
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes())
    header[8:16] = count.to_bytes(8, "little")
    header[-8:] = (count * dimension).to_bytes(8, "little")
    return bytes(header)


def _in_order(
    scores: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Put hits of equal score, which FAISS leaves in any order, into that of the index."""
    if (scores[:, 1:] < scores[:, :-1]).all():
        return scores, rows
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _split_search(
    threads: ThreadPoolExecutor,
    full: NDArray[np.float32],
    edges: Sequence[int],
    vectors: NDArray[np.float32],
    k: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search the runs of rows between some edges in a thread each; each run has at least k."""

    def search(start: int, end: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores, rows = faiss.knn(vectors, full[start:end], k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, rows + start

    found = list(threads.map(search, edges[:-1], edges[1:]))
    scores, rows = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)


def _read_faiss(path: Path) -> faiss.Index:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise ArtifactError(f"{path} is no FAISS index: {why}; build the index again") from None


def _recall(index: faiss.Index) -> float | None:
    """recall@10 of the index against exact search, with records spread evenly over it as queries."""
    if not index.ntotal:
        return None
    vectors = _full_vectors(index)
    # Fewer for a large index: their scores against all of it are held at once.
    queries = max(1, min(RECALL_QUERIES, RECALL_SCORES // index.ntotal))
    sample = np.unique(np.linspace(0, index.ntotal - 1, queries).astype(np.int64))
    k = min(RECALL_K, index.ntotal)
    scores, _ = exact_top_k(vectors[sample], vectors, k)
    found, _ = index.search(np.ascontiguousarray(vectors[sample]), k)
    # By score, not by row: records with equal vectors stand in for each other.
    return float((found >= scores[:, -1:] - 1e-5).mean())


def _full_vectors(flat: faiss.Index) -> NDArray[np.float32]:
    """The vectors of a flat index where they lie, memory-mapped; valid as long as the index is."""
    downcast: Any = faiss.downcast_index(flat)
    data = faiss.rev_swig_ptr(downcast.get_xb(), flat.ntotal * flat.d)
    vectors: NDArray[np.float32] = data.reshape(flat.ntotal, flat.d)
    return vectors


@contextmanager
def _faiss_errors() -> Iterator[None]:
    """Turn FAISS's word for a full disk into the OSError that other files give."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error)) from error
