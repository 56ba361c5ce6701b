"""An index of FAISS on GPUs: what can be there, whether it fits, and searching it.

Written against FAISS 1.15 (faiss-gpu, and for CAGRA faiss-gpu-cuvs). All but the copy to the GPU and the
building of a CAGRA graph is also run on CPUs, by the tests.
"""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from cognate.devices import IndexGpus
from cognate.errors import CognateError

_faiss: Any = faiss
"""The stubs of faiss are those of faiss-cpu."""

MAX_K = 2048
"""Hits of a query, and lists that are read for it, up to which FAISS searches on a GPU."""

WORKSPACE = 1536 * 1024 * 1024
"""Bytes that FAISS takes on each GPU to work in, whatever the indexes there."""

LIST_GROUP = 32
"""Vectors that a list on a GPU is filled up to a multiple of."""

CAGRA_DEGREE = 64
"""Links of a vector in a graph that is built on a GPU."""

_LOCK = threading.RLock()
"""What FAISS works with on a GPU is for one thread at a time, whatever it searches, copies or frees."""


_RESOURCES: dict[int, Any] = {}
"""What FAISS works with on each GPU, once for all indexes there: each would take a workspace of its own."""


class NotOnGpuError(CognateError):
    """An index that cannot be searched on a GPU: there is none, it is of no such kind, or does not fit."""


class DeviceVectors(Protocol):
    """Vectors where a device calculated them: an ``onnxruntime.OrtValue`` of ``forward_on_device``."""

    def shape(self) -> Sequence[int]:
        """(vectors, dimension)."""

    def data_ptr(self) -> int:
        """The address of the first, float32, one after another."""

    def numpy(self) -> NDArray[np.float32]:
        """A copy in the host's memory."""


def gpu_count() -> int:
    """How many GPUs FAISS sees: 0 without a driver, or with faiss-cpu."""
    return int(_faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def gpu_bytes(index: faiss.Index) -> int:
    """The memory that an index takes on a GPU, but for the workspace; reckoned, not measured.

    Args:
        index: On the CPU.

    Raises:
        NotOnGpuError: FAISS has no such kind on GPUs.
    """
    # Under another name: the caller's may be all that keeps it.
    known = _faiss.downcast_index(index)
    if isinstance(known, faiss.IndexPreTransform):
        return gpu_bytes(known.index)
    full = 4 * known.d
    if isinstance(known, faiss.IndexFlat):
        return int(known.ntotal * full)
    if isinstance(known, faiss.IndexScalarQuantizer) and known.sq.qtype == faiss.ScalarQuantizer.QT_fp16:
        return int(known.ntotal * full // 2)
    if isinstance(known, _faiss.IndexHNSWCagra):
        return int(known.ntotal * (full + 4 * known.hnsw.nb_neighbors(0)))
    if isinstance(known, (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)):
        lists = known.nlist * (full + LIST_GROUP * known.code_size)
        return int(known.ntotal * (known.code_size + 8) + lists)
    raise NotOnGpuError(
        "no GPU searches an index of this kind; build it with --kind cagra, ivf_flat or ivf_pq, or flat with "
        "--storage fp32 or fp16"
    )


def check_memory(index: faiss.Index, gpus: IndexGpus, memory: Sequence[tuple[int, int]]) -> None:
    """Refuse an index that would not fit, before any of it is copied.

    Args:
        index: On the CPU.
        gpus: How it is spread.
        memory: Free and total bytes of each GPU that it goes to, the workspace not yet taken.

    Raises:
        NotOnGpuError: It does not fit, or is of no kind that is on GPUs.
    """
    whole = gpu_bytes(index)
    share = -(-whole // len(memory)) if gpus == "shards" else whole
    for gpu, (free, total) in enumerate(memory):
        if share + WORKSPACE <= free:
            continue
        each = -(-whole // gpu_count()) if gpus != "shards" and gpu_count() > 1 else share
        advice = ["build it with --kind ivf_pq or --storage fp16", "use --index-device cpu"]
        if each < share:
            advice.insert(0, f"spread it with --index-gpus shards ({_gigabytes(each)} on each)")
        raise NotOnGpuError(
            f"it takes {_gigabytes(share)} on a GPU and {_gigabytes(WORKSPACE)} to work in, and of the "
            f"{_gigabytes(total)} of GPU {gpu} {_gigabytes(free)} are free; {', '.join(advice[:-1])}, or "
            f"{advice[-1]}"
        )


class GpuIndex:
    """An index that finds rows on GPUs. Safe to use from several threads; they take turns.

    Attributes:
        gpus: How many it is on.
    """

    def __init__(self, index: faiss.Index, *, gpus: int = 1, full: faiss.Index | None = None) -> None:
        """Take an index that is on GPUs.

        Args:
            index: As ``to_gpus`` copies it; one on the CPU is searched in the same way.
            gpus: How many it is on.
            full: The full vectors, on the CPU, which score the hits again; None where the index has them.
        """
        self.gpus = gpus
        self._index: Any = index
        self._full: Any = None if full is None else faiss.downcast_index(full)
        self._parameters = getattr(faiss, "GpuParameterSpace", faiss.ParameterSpace)()
        self._nprobe: int | None = None
        self._cagra = type(index).__name__ == "GpuIndexCagra"

    def close(self) -> None:
        """Free its memory. No search may be under way, and none can come after."""
        with _LOCK:
            self._index = None

    def takes(self, k: int, *, nprobe: int | None = None, rerank: int | None = None) -> bool:
        """Whether such a search is within what FAISS does on a GPU."""
        return k * (rerank or 1) <= MAX_K and (nprobe or 1) <= MAX_K

    def search(
        self,
        vectors: NDArray[np.float32] | DeviceVectors,
        k: int,
        *,
        nprobe: int | None = None,
        ef_search: int | None = None,
        rerank: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the nearest rows.

        Args:
            vectors: float32, shape (queries, dimension), contiguous; those on a GPU stay there, unless full
                vectors score again.
            k: How many; ``takes`` says whether it may be.
            nprobe: Lists to read, where it has lists.
            ef_search: Candidates to keep while a graph is walked, where it is one.
            rerank: Candidates for each hit that full vectors score again.

        Returns:
            Cosines and rows, shape (queries, k), best first; rows of -1 at the end where it found fewer.
        """
        host = isinstance(vectors, np.ndarray)
        count = len(vectors) if isinstance(vectors, np.ndarray) else vectors.shape()[0]
        found = k * (rerank or 1)
        scores, rows = np.empty((count, found), np.float32), np.empty((count, found), np.int64)
        address: Any
        if isinstance(vectors, np.ndarray):
            address = faiss.swig_ptr(vectors)
        else:
            address = _faiss.cast_integer_to_float_ptr(vectors.data_ptr())
        with _LOCK:
            if nprobe is not None and nprobe != self._nprobe:
                # Replicas and shards take no parameters with a search.
                self._parameters.set_index_parameter(self._index, "nprobe", nprobe)
                self._nprobe = nprobe
            self._index.search_c(
                count,
                address,
                found,
                faiss.swig_ptr(scores),
                faiss.swig_ptr(rows),
                self._walk(ef_search, found),
            )
        if rerank is None or self._full is None:
            return scores, rows
        queries = np.ascontiguousarray(vectors if host else vectors.numpy())  # type: ignore[union-attr]
        self._full.compute_distance_subset(
            count, faiss.swig_ptr(queries), found, faiss.swig_ptr(scores), faiss.swig_ptr(rows)
        )
        scores[rows < 0] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)

    def _walk(self, ef_search: int | None, found: int) -> Any:
        if not self._cagra or ef_search is None:
            return None
        parameters = _faiss.SearchParametersCagra()
        # Its word for candidates that are kept; it takes multiples of 32.
        parameters.itopk_size = -(-max(ef_search, found) // 32) * 32
        return parameters


def to_gpus(index: faiss.Index, gpus: IndexGpus, *, full: faiss.Index | None = None) -> GpuIndex:
    """Copy an index to the first GPU, or to all of them.

    Args:
        index: On the CPU; it stays there as it is.
        gpus: "one", or all of them: "replicas" share the queries, "shards" the vectors.
        full: As ``GpuIndex`` has it.

    Raises:
        NotOnGpuError: There is no GPU, it does not fit, or FAISS has no such kind on GPUs.
    """
    number = gpu_count() if gpus != "one" else min(1, gpu_count())
    if not number:
        what = "no GPU or no driver" if hasattr(faiss, "get_num_gpus") else "no GPUs, being faiss-cpu"
        raise NotOnGpuError(
            f"this faiss sees {what}; install cognate[serve-gpu] in an environment of its own, or use "
            "--index-device cpu"
        )
    options = _faiss.GpuMultipleClonerOptions()
    options.shard = gpus == "shards"
    # Tables of PQ in float32 are larger than the memory that a block of a GPU shares, from 56 codes on.
    options.useFloat16 = faiss.try_extract_index_ivf(index).__class__.__name__ == "IndexIVFPQ"
    with _LOCK:
        check_memory(index, gpus, [_memory(gpu) for gpu in range(number)])
        resources = [_resources(gpu) for gpu in range(number)]
        try:
            if gpus == "one":
                copied = _faiss.index_cpu_to_gpu(resources[0], 0, index, options)
            else:
                copied = _faiss.index_cpu_to_gpu_multiple_py(resources, index, options)
        except RuntimeError as error:
            raise NotOnGpuError(
                f"FAISS cannot copy it there ({why_failed(error)}); build it of another kind, use "
                "--index-gpus one, or --index-device cpu"
            ) from None
    return GpuIndex(copied, gpus=number, full=full)


def check_cagra() -> None:
    """Refuse to build a CAGRA graph where that cannot be.

    Raises:
        CognateError: This FAISS has no CAGRA, or sees no GPU.
    """
    if not hasattr(faiss, "GpuIndexCagra") or not gpu_count():
        raise CognateError(
            "kind cagra is built on a GPU, by faiss-gpu-cuvs, and "
            + ("this faiss has no CAGRA" if gpu_count() else "this faiss sees no GPU")
            + "; build it where that is installed (CPUs search it too), or use --kind hnsw"
        )


def build_cagra(vectors: NDArray[np.float32]) -> faiss.Index:
    """Build a graph on the first GPU.

    Args:
        vectors: float32, shape (count, dimension), in the host's memory.

    Returns:
        A graph on the CPU, which any FAISS reads and searches, and ``to_gpus`` copies back.

    Raises:
        CognateError: FAISS cannot, such as for too few vectors or too little memory.
    """
    check_cagra()
    config = _faiss.GpuIndexCagraConfig()
    config.graph_degree = CAGRA_DEGREE
    config.intermediate_graph_degree = 2 * CAGRA_DEGREE
    graph = _faiss.IndexHNSWCagra(vectors.shape[1], CAGRA_DEGREE // 2, faiss.METRIC_INNER_PRODUCT)
    # Without the levels above, which would be built on the CPU, vector by vector.
    graph.base_level_only = True
    with _LOCK:
        try:
            built = _faiss.GpuIndexCagra(
                _resources(0),
                vectors.shape[1],
                faiss.METRIC_INNER_PRODUCT,
                config,
            )
            built.train(vectors)
            built.copyTo(graph)
        except RuntimeError as error:
            raise CognateError(
                f"FAISS cannot build a CAGRA graph of {len(vectors)} records: {why_failed(error)}"
            ) from None
    return graph  # type: ignore[no-any-return]


def _resources(gpu: int) -> Any:
    return _RESOURCES.setdefault(gpu, _faiss.StandardGpuResources())


def _memory(gpu: int) -> tuple[int, int]:
    """Free and total bytes of a GPU, a workspace that is taken counted as free.

    By CUDA's runtime, not by NVIDIA's management library, which numbers GPUs in another way than
    CUDA_VISIBLE_DEVICES.
    """
    runtime = ctypes.CDLL(None)
    before, free, total = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
    runtime.cudaGetDevice(ctypes.byref(before))
    runtime.cudaSetDevice(gpu)
    failed = runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    runtime.cudaSetDevice(before)
    if failed:
        raise NotOnGpuError(
            f"GPU {gpu} does not answer (CUDA error {failed}); see nvidia-smi, or use --index-device cpu"
        )
    return free.value + (WORKSPACE if gpu in _RESOURCES else 0), total.value


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def why_failed(error: Exception) -> str:
    """The end of FAISS's message: what it says before is where in its source."""
    return str(error).strip().splitlines()[-1].rpartition("Error: ")[2].rpartition("failed: ")[2]
