"""A vector index in a process of its own, told what to do on standard input.

Run by ``index.py`` as ``python index_peers.py NAME JSON``, in the environment that the peer needs, so nothing
but that peer may be imported here. Answers are one JSON document a line on standard output.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K = 10
CHUNK = 10_000

Search = Callable[[Any, Any], Any]
"""Queries and a parameter to rows, shape (queries, K), or to hits with their records."""


class TooSlowError(Exception):
    """Building would take longer than it may."""


def add_all(vectors: Any, add: Callable[[int, Any], Any], minutes: float) -> None:
    """Add vectors in chunks, and give up where all of them would take longer than so many minutes."""
    started = time.perf_counter()
    for start in range(0, len(vectors), CHUNK):
        add(start, np.ascontiguousarray(vectors[start : start + CHUNK]))
        done = start + CHUNK
        expected = (time.perf_counter() - started) / done * len(vectors) / 60
        # The first are quick to add; what is expected only grows.
        if done >= min(5 * CHUNK, len(vectors) // 4) and expected > minutes:
            raise TooSlowError(f"building would take over {expected:.0f} minutes (--build-minutes)")


def cognate(options: dict[str, Any], kind: str = "ivf_fastscan") -> tuple[Search, str]:
    """This project, records fetched."""
    from index_ours import build, open_index

    from cognate.index_kinds import SearchParameters

    folder = build(options, kind)
    index: Any = open_index(folder)
    last: dict[str, int] = {}

    def search(queries: Any, parameter: dict[str, int]) -> Any:
        nonlocal last
        if parameter != last:
            balanced = {"balanced": SearchParameters(**parameter)}
            index.manifest = index.manifest.model_copy(update={"search": balanced})
            last = parameter
        return index.search(queries, K)

    return search, str(folder)


def cognate_hnsw(options: dict[str, Any]) -> tuple[Search, str]:
    """The same, of kind hnsw."""
    return cognate(options, "hnsw")


def bare(options: dict[str, Any], kind: str = "ivf_fastscan") -> tuple[Search, str]:
    """The FAISS index that ours holds, as one would search it by hand: no records."""
    import faiss  # type: ignore[import-untyped]
    from index_ours import build

    from cognate.index_kinds import GRAPH_SHARE, GRAPH_WIDTH

    folder = build(options, kind)
    flat = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
    lists = faiss.read_index(str(folder / "approximate.faiss"), faiss.IO_FLAG_MMAP_IFC)
    refined = faiss.IndexRefine(lists, flat)
    inverted: Any = faiss.downcast_index(lists)
    graph: Any = faiss.downcast_index(inverted.quantizer)
    centroids = graph.storage if isinstance(graph, faiss.IndexHNSW) else graph
    centroids.this.disown()

    def search(queries: Any, parameter: dict[str, int]) -> Any:
        # As ours: the graph for one that reads few lists, else all centroids.
        few = len(queries) == 1 and parameter["nprobe"] * GRAPH_SHARE <= inverted.nlist
        inverted.quantizer = graph if few else centroids
        width = faiss.SearchParametersHNSW(efSearch=GRAPH_WIDTH * parameter["nprobe"])
        inner = faiss.SearchParametersIVF(nprobe=parameter["nprobe"], quantizer_params=width)
        outer = faiss.IndexRefineSearchParameters(
            k_factor=float(parameter["rerank"]), base_index_params=inner
        )
        return refined.search(queries, K, params=outer)[1]

    return search, str(folder)


def plain_faiss(options: dict[str, Any]) -> tuple[Search, str]:
    """FAISS's graph with its defaults."""
    import faiss

    path = Path(options["cache"]) / "plain.faiss"

    def make() -> None:
        index = faiss.IndexHNSWFlat(options["dimension"], 32, faiss.METRIC_INNER_PRODUCT)
        add_all(np.load(options["vectors"], "r"), lambda _, some: index.add(some), options["minutes"])
        faiss.write_index(index, str(path))

    timed(path, make)
    index = faiss.read_index(str(path))

    def search(queries: Any, parameter: int) -> Any:
        return index.search(queries, K, params=faiss.SearchParametersHNSW(efSearch=parameter))[1]

    return search, str(path)


def hnswlib(options: dict[str, Any]) -> tuple[Search, str]:
    """Search with hnswlib, with the M and ef_construction of its examples."""
    import hnswlib as library  # type: ignore[import-not-found]

    path = Path(options["cache"]) / "hnswlib.bin"

    def make() -> None:
        vectors = np.load(options["vectors"], "r")
        index = library.Index("ip", options["dimension"])
        index.init_index(len(vectors), M=16, ef_construction=200)
        index.set_num_threads(options["threads"])

        def add(start: int, some: Any) -> None:
            index.add_items(some, np.arange(start, start + len(some)))

        add_all(vectors, add, options["minutes"])
        index.save_index(str(path))

    timed(path, make)
    index = library.Index("ip", options["dimension"])
    index.load_index(str(path))
    index.set_num_threads(options["threads"])

    def search(queries: Any, parameter: int) -> Any:
        index.set_ef(parameter)
        return index.knn_query(queries, K)[0]

    return search, str(path)


def usearch(options: dict[str, Any]) -> tuple[Search, str]:
    """Search with usearch, with its defaults, bfloat16 among them."""
    from usearch.index import Index  # type: ignore[import-not-found]

    path = Path(options["cache"]) / "index.usearch"

    def make() -> None:
        index = Index(ndim=options["dimension"], metric="cos")

        def add(start: int, some: Any) -> None:
            index.add(np.arange(start, start + len(some)), some, threads=options["threads"])

        add_all(np.load(options["vectors"], "r"), add, options["minutes"])
        index.save(str(path))

    timed(path, make)
    index = Index.restore(str(path))

    def search(queries: Any, parameter: int) -> Any:
        index.expansion_search = parameter
        return index.search(queries, K, threads=options["threads"]).keys

    return search, str(path)


def timed(path: Path, make: Callable[[], None]) -> None:
    """Make what is not there yet, and keep how long it took beside it."""
    told = path.with_name(path.name + ".seconds")
    if not told.exists():
        started = time.perf_counter()
        make()
        told.write_text(str(time.perf_counter() - started))


def rows_of(found: Any) -> Any:
    """Rows as they are, or the ids of hits, which are their rows."""
    if isinstance(found, list):
        found = [[int(hit.id) for hit in hits] for hits in found]
    return np.asarray(found, np.int64)


def size(path: str) -> int:
    """Bytes of a file or folder, but for records."""
    files = Path(path).iterdir() if Path(path).is_dir() else [Path(path)]
    return sum(file.stat().st_size for file in files if file.name.split(".")[0] not in ("records", "lookup"))


def main() -> None:
    """Build or load the index, and search as told until the input ends."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        search, path = globals()[name](options)
    except TooSlowError as error:
        sys.exit(str(error))
    queries = np.load(options["queries"])
    search(queries[:1], options["parameters"][name][0])
    told = float(Path(f"{path}.seconds").read_text())
    ready = {"ready": time.time(), "build_seconds": told, "bytes": size(path)}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        parameter = options["parameters"][name][order["parameter"]]
        # A query at a time, or all at once.
        parts = [queries[number : number + 1] for number in range(len(queries))]
        answer: dict[str, Any] = {"seconds": []}
        found = []
        for part in parts if "one_by_one" in order else [queries]:
            started = time.perf_counter()
            found.append(search(part, parameter))
            answer["seconds"].append(time.perf_counter() - started)
        np.save(order["rows"], np.concatenate([rows_of(some) for some in found]))
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
