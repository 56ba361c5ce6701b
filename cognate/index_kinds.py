"""Kinds of index: which FAISS index each is, how it is learnt from the vectors, and how it is searched.

Every index keeps its full vectors in a flat FAISS file, which is exact. A kind that is quicker or smaller
is a second file beside it, which finds candidates; where its own vectors are of low precision, the full ones
score the candidates again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np
import pydantic
from numpy.typing import NDArray

from cognate.errors import CognateError
from cognate.gpu_index import build_cagra, check_cagra, why_failed
from cognate.memory import usable_memory
from cognate.processors import available_cores

_faiss: Any = faiss
"""The stubs of faiss lack what its Python wrappers take."""

# From so many numbers in its queries on, FAISS compares by matrix products, which read the vectors once for
# many queries. 1.15 waits for 128,000 (333 queries of 384 numbers), which pays with dozens of threads alone;
# 800 a thread is of FAISS's own measurements (facebookresearch/faiss, pull request 5109). Before 1.15 the
# number was one of queries, 20.
_faiss.cvar.distance_compute_blas_threshold = min(
    _faiss.cvar.distance_compute_blas_threshold, 800 * available_cores()
)

Kind = Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_pq", "ivf_fastscan", "cagra"]
Storage = Literal["fp32", "fp16", "int8"]

FLAT_BYTES = 64 * 1024 * 1024
"""Full vectors up to so many bytes stay flat under "auto": reading all of them takes milliseconds."""

MEMORY_SHARE = 0.5
"""Of the memory, what "auto" lets the codes of fastscan take, which are held in it."""

LINKS = 32
"""Links of a vector in a graph, twice as many on its lowest level."""

EF_CONSTRUCTION = 128
"""Candidates that a vector's links are chosen from."""

LISTS_PER_ROOT = 4
"""An inverted file has so many lists, times the square root of the number of vectors."""

MIN_PER_LIST = 39
"""Vectors that FAISS wants for each list that it learns."""

TRAIN_PER_LIST = 64
MIN_TRAIN = 20_000
"""Vectors that are learnt from: so many a list, or where there are more, this many."""

PQ_CODES = 256
"""Codes of a product quantiser's byte, and so the fewest vectors that it can be learnt from."""

FASTSCAN_CODES = 16
"""Codes of half a byte, and so the fewest vectors for fastscan."""

GRAPH_LISTS = 1000
"""From so many lists on, a graph of their centroids finds those of a query sooner than comparing with all."""

GRAPH_QUERIES = 8
"""From so many queries at once on, comparing with all centroids is quicker after all."""

GRAPH_SHARE = 40
"""Where more than one in so many of the lists is read, such as with a filter, likewise."""

GRAPH_WIDTH = 2
"""Candidates that are kept in that graph, for each list that is read."""

MAX_KEPT_PARAMETERS = 64
"""Choices of top_k and parameters whose FAISS object is kept."""

CHUNK = 65536
"""Vectors that are added at a time."""

EF_SEARCHES = (16, 32, 64, 128, 256, 512, 1024)
"""Candidates to keep while a graph is walked, to try."""

RERANKS: dict[str, tuple[int, ...]] = {"fp16": (2,), "int8": (2, 4), "codes": (4, 16, 64)}
"""Candidates for each hit to try, by the precision that they were found with."""

EXACT_SHARE = 10
"""Where a search asks for more than one in so many of the vectors, it reads all of them."""

SUBSET_FACTOR = 1024
"""Where a filter leaves no more than the square root of so many times the vectors (32,000 of a million), each
of them is compared: a graph would look at as many, with 32 candidates, of which the filter leaves its share,
and 32 links of each."""

CODED = ("ivf_pq", "ivf_fastscan")
"""Kinds that hold codes."""

_CODES = {"fp32": "Flat", "fp16": "SQfp16", "int8": "SQ8"}
_CAGRA = "CAGRA"
"""Instead of a string of faiss.index_factory, which knows no CAGRA."""

_FULL = (faiss.IndexHNSWFlat, _faiss.IndexHNSWCagra, faiss.IndexIVFFlat, faiss.IndexFlat)


class SearchParameters(pydantic.BaseModel, frozen=True):
    """How an index is searched; None where its kind has no such parameter.

    Attributes:
        ef_search: Of a graph: candidates that are kept while it is walked.
        nprobe: Of an inverted file: lists that are read.
        rerank: Candidates for each hit that full vectors score again.
    """

    ef_search: int | None = None
    nprobe: int | None = None
    rerank: int | None = None

    def __str__(self) -> str:
        return " ".join(f"{name} {value}" for name, value in self if value is not None) or "—"

    def widened(self, factor: float, k: int) -> "SearchParameters":
        """Parameters that look at more vectors, of which fewer can be found.

        Args:
            factor: How many there are for each that can be found.
            k: How many are asked for.
        """
        candidates = max(2, self.rerank or 1) * k
        return SearchParameters(
            ef_search=None if self.ef_search is None else math.ceil(factor * max(self.ef_search, candidates)),
            nprobe=None if self.nprobe is None else math.ceil(factor * self.nprobe),
            rerank=self.rerank,
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """What kind of index is asked for.

    Attributes:
        kind: "auto" chooses by the number of vectors, their size and the memory.
        storage: Number format that vectors are searched in; "ivf_pq" has its own.
        factory: A string of faiss.index_factory instead of a kind.
        recall: recall@10 against exact search that "balanced" searches shall have.
    """

    kind: Kind = "flat"
    storage: Storage = "fp32"
    factory: str | None = None
    recall: float = 0.99

    def check(self, dimension: int) -> None:
        """Refuse what cannot be built, before any vector is there.

        Args:
            dimension: Components of a vector.

        Raises:
            CognateError: No components, an unknown kind or storage, two that exclude each other, a factory
                string that FAISS does not take, or a recall out of range.
        """
        if dimension < 1:
            raise CognateError(f"the vectors have {dimension} components; an index needs at least 1")
        if self.kind not in get_args(Kind):
            raise CognateError(
                f"there is no kind of index {self.kind!r}; choose one of {', '.join(get_args(Kind))}"
            )
        if self.storage not in get_args(Storage):
            raise CognateError(
                f"there is no storage {self.storage!r}; choose one of {', '.join(get_args(Storage))}"
            )
        if not 0 < self.recall <= 1:
            raise CognateError(f"the recall asked for is {self.recall:g}; it must be above 0, at most 1")
        if self.kind in CODED and self.storage != "fp32":
            raise CognateError(f"{self.kind} has its own storage, codes; leave it out")
        if self.kind == "cagra":
            if self.storage != "fp32":
                raise CognateError("cagra walks full vectors; leave the storage out")
            check_cagra()
        if self.factory is not None:
            if self.kind not in ("auto", "flat") or self.storage != "fp32":
                raise CognateError("a factory string says both kind and storage; give it without them")
            new_index(self.factory, dimension)

    def resolve(self, count: int, dimension: int) -> "Layout":
        """Choose the kind where "auto" leaves it open.

        Small ones stay flat. Fastscan is the quickest, where its codes fit in memory; else codes on disk.
        """
        if self.kind != "auto" or self.factory is not None:
            return self
        size = 4 * dimension * count
        if size <= FLAT_BYTES:
            return Layout("flat", self.storage, None, self.recall)
        if self.storage != "fp32":
            return Layout("hnsw", self.storage, None, self.recall)
        # Half a byte for four numbers, and the row.
        fits = (dimension // 8 + 8) * count <= MEMORY_SHARE * usable_memory()
        return Layout("ivf_fastscan" if fits else "ivf_pq", "fp32", None, self.recall)

    def factory_string(self, count: int, dimension: int) -> str | None:
        """The FAISS index that finds candidates.

        Returns:
            A string of faiss.index_factory, or "CAGRA"; None where the full vectors are all that is needed.

        Raises:
            CognateError: There are too few vectors to learn the kind from.
        """
        if self.factory is not None:
            return self.factory
        lists = max(1, min(round(LISTS_PER_ROOT * math.sqrt(count)), count // MIN_PER_LIST))
        if self.kind == "cagra":
            return _CAGRA
        if self.kind == "hnsw":
            return f"HNSW{LINKS},{_CODES[self.storage]}"
        if self.kind == "ivf_flat":
            return f"IVF{lists},{_CODES[self.storage]}"
        if self.kind == "ivf_pq":
            if count < PQ_CODES:
                raise CognateError(
                    f"ivf_pq is learnt from at least {PQ_CODES} records, and there are {count}; "
                    "use another kind, or auto"
                )
            # np: without the codes for comparing by bits, which nothing here does and which take minutes.
            return f"IVF{lists},PQ{_codes_of(dimension)}np"
        if self.kind == "ivf_fastscan":
            if count < FASTSCAN_CODES:
                raise CognateError(
                    f"ivf_fastscan is learnt from at least {FASTSCAN_CODES} records, and there are {count}; "
                    "use another kind, or auto"
                )
            return f"IVF{lists},PQ{_codes_of(dimension)}x4fs"
        return None if self.storage == "fp32" else _CODES[self.storage]


def _codes_of(dimension: int) -> int:
    """How many codes a vector has: one for four numbers, or for as many more as divide the dimension."""
    return next(codes for codes in range(max(1, dimension // 4), 0, -1) if dimension % codes == 0)


def new_index(factory: str, dimension: int) -> faiss.Index:
    """Make an empty FAISS index over cosines.

    Raises:
        CognateError: FAISS does not take the string.
    """
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, TypeError) as error:
        raise CognateError(
            f"FAISS makes no index of {dimension} dimensions from the factory string {factory!r}: "
            f"{why_failed(error)}"
        ) from None


def build_approximate(factory: str, vectors: NDArray[np.float32]) -> faiss.Index:
    """Learn an index from a sample of vectors, and add all of them.

    Args:
        factory: Of faiss.index_factory, or "CAGRA".
        vectors: float32, shape (count, dimension), count at least 1; may be memory-mapped.

    Raises:
        CognateError: FAISS cannot build it, such as from too few vectors.
    """
    if factory == _CAGRA:
        return build_cagra(vectors)
    index = learn_approximate(factory, vectors)
    try:
        for start in range(0, len(vectors), CHUNK):
            index.add(np.ascontiguousarray(vectors[start : start + CHUNK]))
    except RuntimeError as error:
        raise _not_built(factory, vectors, error) from None
    return index


def learn_approximate(factory: str, vectors: NDArray[np.float32]) -> faiss.Index:
    """Learn an index from a sample of vectors, and leave it empty; arguments and errors as above."""
    index = new_index(factory, vectors.shape[1])
    graph = faiss.downcast_index(index)
    if isinstance(graph, faiss.IndexHNSW):
        graph.hnsw.efConstruction = EF_CONSTRUCTION
    inverted = faiss.try_extract_index_ivf(index)
    lists = inverted.nlist if inverted else 0
    if inverted:
        # FAISS would warn on standard error where a list or code has few vectors; that is then measured.
        inverted.cp.min_points_per_centroid = 1
        inner = faiss.downcast_index(inverted)
        if isinstance(inner, (faiss.IndexIVFPQ, faiss.IndexIVFPQFastScan)):
            inner.pq.cp.min_points_per_centroid = 1
    try:
        if not index.is_trained:
            wanted = min(len(vectors), max(MIN_TRAIN, TRAIN_PER_LIST * lists))
            rows = np.sort(np.random.default_rng(0).choice(len(vectors), wanted, replace=False))
            index.train(np.ascontiguousarray(vectors[rows]))
    except RuntimeError as error:
        raise _not_built(factory, vectors, error) from None
    return index


def link_lists(index: faiss.Index) -> None:
    """Let a fastscan index of many lists find those of a query by a graph of their centroids.

    Others keep comparing with all of them, as they do it on a GPU.
    """
    lists = _faiss.downcast_index(index)
    if not isinstance(lists, _faiss.IndexIVFPQFastScan) or lists.nlist < GRAPH_LISTS:
        return
    centroids = _faiss.downcast_index(lists.quantizer)
    graph = _faiss.IndexHNSWFlat(lists.d, LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    graph.add(centroids.reconstruct_n(0, lists.nlist))
    lists.quantizer = graph
    # Each is freed by who has it now.
    graph.this.disown()
    centroids.this.own(True)


def write_approximate(index: faiss.Index, path: Path) -> None:
    """Write an index; a graph over full vectors without them, for they are in a file of their own."""
    link_lists(index)
    _faiss.write_index(index, str(path), faiss.IO_FLAG_SKIP_STORAGE if _borrows(index) else 0)


class Approximate:
    """An index that finds candidates among the vectors of a flat one. Safe to use from several threads.

    Attributes:
        reranks: Whether its own vectors are of low precision, so that the full ones score again.
    """

    def __init__(self, index: faiss.Index, flat: faiss.Index) -> None:
        """Put the two together.

        Args:
            index: As ``build_approximate`` gave it, or FAISS read what ``write_approximate`` wrote.
            flat: The full vectors, in the same order.
        """
        self._index = _faiss.downcast_index(index)
        # FAISS only points at them.
        self._kept: tuple[Any, ...] = (index, flat)
        if _borrows(index):
            self._index.own_fields = False
            self._index.storage = flat
        self.reranks = not isinstance(self._index, _FULL)
        self._refined = faiss.IndexRefine(self._index, flat) if self.reranks else self._index
        self._inverted = faiss.try_extract_index_ivf(self._index)
        self._lists = int(self._inverted.nlist) if self._inverted else 0
        self._of_many = self._refined
        if (lists := _with_all_centroids(self._index)) is not None:
            self._kept += (lists,)
            self._of_many = faiss.IndexRefine(lists, flat)
        # To make them takes as long as a search of a small index; searches only read them.
        self._kept_parameters: dict[tuple[int | None, ...], Any] = {}

    @property
    def count(self) -> int:
        """How many vectors it holds."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return int(self._index.d)

    @property
    def index(self) -> faiss.Index:
        """What finds candidates, without the full vectors that score them again."""
        found: faiss.Index = self._index
        return found

    @property
    def borrows(self) -> bool:
        """Whether it reads the full vectors while it searches, not only to score again."""
        return _borrows(self._index)

    def points(self) -> Iterator[list[SearchParameters]]:
        """Parameters to try: one series for each reranking, from the quickest to the most accurate."""
        reranks: tuple[int | None, ...] = (None,)
        if self.reranks:
            bits = self._bits()
            reranks = RERANKS["fp16" if bits >= 16 else "int8" if bits >= 8 else "codes"]
        for rerank in reranks:
            if self._inverted:
                lists = self._inverted.nlist
                steps = (part << power for power in range(lists.bit_length()) for part in (2, 3))
                probes = sorted({1, *(min(lists, step) for step in steps)})
                yield [SearchParameters(nprobe=nprobe, rerank=rerank) for nprobe in probes]
            elif isinstance(self._index, faiss.IndexHNSW):
                yield [SearchParameters(ef_search=ef, rerank=rerank) for ef in EF_SEARCHES]
            else:
                yield [SearchParameters(rerank=rerank)]

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        parameters: SearchParameters,
        selector: faiss.IDSelector | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the nearest rows.

        Args:
            vectors: float32, shape (queries, dimension).
            k: How many.
            parameters: How.
            selector: The rows that may be found; None for all.

        Returns:
            Cosines and rows, shape (queries, k), best first; rows of -1 at the end where it found fewer.
        """
        # Not the parameters as they are: pydantic takes its time to hash them.
        key = (k, parameters.ef_search, parameters.nprobe, parameters.rerank)
        told = self._kept_parameters.get(key) if selector is None else None
        if told is None:
            told = self._told(k, parameters, selector)
            if selector is None and len(self._kept_parameters) < MAX_KEPT_PARAMETERS:
                self._kept_parameters[key] = told
        few = len(vectors) < GRAPH_QUERIES and (parameters.nprobe or 0) * GRAPH_SHARE <= self._lists
        scores, rows = (self._refined if few else self._of_many).search(vectors, k, params=told)
        return scores, rows

    def _told(self, k: int, parameters: SearchParameters, selector: faiss.IDSelector | None = None) -> Any:
        rerank = parameters.rerank or 1
        inner = self._parameters(self._index, parameters, max(2, rerank) * k, selector)
        if not self.reranks:
            return inner
        return _faiss.IndexRefineSearchParameters(k_factor=float(rerank), base_index_params=inner)

    def _parameters(
        self,
        index: faiss.Index,
        parameters: SearchParameters,
        candidates: int,
        selector: faiss.IDSelector | None,
    ) -> Any:
        """FAISS's own parameters; a graph keeps as many candidates as are scored again, or twice top_k."""
        index = faiss.downcast_index(index)
        sel = {} if selector is None else {"sel": selector}
        if isinstance(index, faiss.IndexPreTransform):
            inner = self._parameters(index.index, parameters, candidates, selector)
            return None if inner is None else _faiss.SearchParametersPreTransform(index_params=inner)
        if isinstance(index, faiss.IndexIVF):
            nprobe = parameters.nprobe or 1
            # Read by a graph alone.
            width = _faiss.SearchParametersHNSW(efSearch=max(EF_SEARCHES[0], GRAPH_WIDTH * nprobe))
            return _faiss.SearchParametersIVF(nprobe=nprobe, quantizer_params=width, **sel)
        if isinstance(index, faiss.IndexHNSW):
            return _faiss.SearchParametersHNSW(efSearch=max(parameters.ef_search or 0, candidates), **sel)
        return _faiss.SearchParameters(**sel) if sel else None

    def _bits(self) -> float:
        """Bits of a number as the index holds it."""
        index = self._index
        if isinstance(index, faiss.IndexHNSW):
            index = faiss.downcast_index(index.storage)
        size = self._inverted.code_size if self._inverted else getattr(index, "code_size", None)
        # What is not known is taken for a rough code.
        return 8 * size / self.dimension if size else 1


def _with_all_centroids(index: Any) -> Any:
    """An index of the same lists that compares with all centroids; None where this one does.

    Args:
        index: Downcast; its lists must outlive what is returned.
    """
    if not isinstance(index, _faiss.IndexIVFPQFastScan):
        return None
    graph = faiss.downcast_index(index.quantizer)
    if not isinstance(graph, faiss.IndexHNSW):
        return None
    centroids: Any = graph.storage
    lists = _faiss.IndexIVFPQFastScan(
        centroids, index.d, index.nlist, index.M, index.nbits, index.metric_type, index.bbs
    )
    lists.pq = index.pq
    lists.by_residual = index.by_residual
    lists.ntotal, lists.is_trained = index.ntotal, True
    lists.replace_invlists(index.invlists, False)
    return lists


def _borrows(index: faiss.Index) -> bool:
    return isinstance(faiss.downcast_index(index), (faiss.IndexHNSWFlat, _faiss.IndexHNSWCagra))


def _not_built(factory: str, vectors: NDArray[np.float32], error: Exception) -> CognateError:
    return CognateError(f"FAISS cannot build {factory!r} from {len(vectors)} records: {why_failed(error)}")
