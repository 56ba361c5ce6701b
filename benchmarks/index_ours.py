"""What ``index.py`` asks of our index alone: ``python index_ours.py PART JSON``, in a process of its own.

It prints one JSON document.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cognate.artifact import publishing
from cognate.bundle import Bundle
from cognate.index import Index, IndexWriter
from cognate.index_kinds import Layout
from cognate.narrowing import Narrowing
from cognate.processors import available_cores
from cognate.records import Record
from cognate.updates import IndexUpdates

SHARES = (1, 10, 50)
"""Per cent of the records that a filter leaves."""

UPDATED = 20_000
"""Records of the index that is updated: it is compacted while searches go on."""

CHUNK = 10_000
K = 10


def build(options: dict[str, Any], kind: str, count: int | None = None) -> Path:
    """Build an index of the vectors, with records, where it is not there yet."""
    vectors = np.load(options["vectors"], "r")[:count]
    folder = Path(options["cache"]) / (kind if count is None else f"{kind}-{count}")
    told = folder.with_name(folder.name + ".seconds")
    if told.exists():
        return folder
    texts = json.loads(Path(options["texts"]).read_text())
    started = time.perf_counter()
    with (
        publishing(folder, "index", force=True) as partial,
        IndexWriter(partial, vectors.shape[1], Layout(kind, recall=options["recall"])) as writer,  # type: ignore[arg-type]
    ):
        for start in range(0, len(vectors), CHUNK):
            rows = range(start, min(start + CHUNK, len(vectors)))
            writer.add([record(row, texts) for row in rows], vectors[start : start + CHUNK])
        writer.finish(Bundle.open(options["bundle"]))
    told.write_text(str(time.perf_counter() - started))
    return folder


def record(row: int, texts: list[str]) -> Record:
    """The record of a row: its id is the row, its share is spread evenly over 0 to 99."""
    return Record(texts[row % len(texts)], None, str(row), {"share": row * 7919 % 100})


def open_index(folder: Path) -> Index:
    """Open it as a server does."""
    return Index(folder, device="cpu")


def opening(options: dict[str, Any]) -> dict[str, Any]:
    """Open the index, whose files are in the page cache, and search once."""
    folder = build(options, "ivf_fastscan")
    queries = np.load(options["queries"])
    Index(folder, device="cpu").close()
    started = time.perf_counter()
    index = open_index(folder)
    opened = time.perf_counter() - started
    index.search(queries[:1], K)
    searched = time.perf_counter() - started
    return {"open_s": opened, "first_search_s": searched}


def exact(options: dict[str, Any]) -> dict[str, Any]:
    """Exact search for one query, in bytes of vectors a second, beside what the machine reads."""
    folder = build(options, "ivf_fastscan")
    queries = np.load(options["queries"])[:20]
    vectors = np.load(options["vectors"])
    index = open_index(folder)
    index.search(queries[:1], K, accuracy="exact")
    ours, machine = [], []
    cores = available_cores()
    with ThreadPoolExecutor(cores) as pool:
        parts = np.array_split(vectors.reshape(-1).view(np.int64), cores)

        def read() -> None:
            # No product, only what must be read; numpy adds whole numbers as fast as they come.
            list(pool.map(np.max, parts))

        read()
        for query in queries:
            ours.append(seconds(lambda q=query: index.search(q[None], K, accuracy="exact")))  # type: ignore[misc]
            machine.append(seconds(read))
    gigabytes = vectors.nbytes / 1e9
    return {
        "exact_gb_s": gigabytes / float(np.median(ours)),
        "machine_gb_s": gigabytes / float(np.median(machine)),
        "exact_ms": 1e3 * float(np.median(ours)),
    }


def filters(options: dict[str, Any]) -> dict[str, Any]:
    """Searches with filters that leave a share of the records, and their recall against exact ones."""
    from cognate.filters import parse

    index = open_index(build(options, "ivf_fastscan"))
    queries = np.load(options["queries"])
    figures = {}
    for share in SHARES:
        narrowing = Narrowing(filter=parse(f"share < {share}"))
        matching_s = seconds(lambda n=narrowing: index.matching(n.filter))  # type: ignore[misc,arg-type]
        got = index.search(queries, K, narrowing=narrowing)
        taken = [seconds(lambda n=narrowing: index.search(queries, K, narrowing=n)) for _ in range(3)]  # type: ignore[misc]
        expected = index.search(queries[:200], K, narrowing=narrowing, accuracy="exact")
        figures[str(share)] = {
            "queries_per_second": len(queries) / float(np.median(taken)),
            "recall": recall([[hit.score for hit in hits] for hits in got[:200]], expected),
            "first_s": matching_s,
        }
    return figures


def recall(scores: list[list[float]], expected: list[Any]) -> float:
    """Of scores against exact hits."""
    return float(
        np.mean(
            [
                [score >= best[-1].score - 1e-5 for score in some]
                for some, best in zip(scores, expected, strict=True)
            ]
        )
    )


def updates(options: dict[str, Any]) -> dict[str, Any]:
    """Upserts on the disk a second, and how long a search takes before and during a compaction."""
    import shutil

    vectors = np.load(options["vectors"], "r")
    texts = json.loads(Path(options["texts"]).read_text())
    count = min(UPDATED, len(vectors))
    folder = build(options, "flat", count)
    shutil.rmtree(folder.with_name(folder.name + ".updates"), ignore_errors=True)
    changing = IndexUpdates(folder, device="cpu")
    queries = np.load(options["queries"])

    def upsert(first: int, number: int) -> None:
        rows = range(first, first + number)
        some = np.ascontiguousarray(vectors[np.arange(first, first + number) % len(vectors)])
        changing.apply([record(row, texts) for row in rows], some)

    single = [seconds(lambda n=n: upsert(count + n, 1)) for n in range(200)]  # type: ignore[misc]
    many = [seconds(lambda n=n: upsert(count + 1000 + 100 * n, 100)) for n in range(10)]  # type: ignore[misc]

    def searched(until: Callable[[], bool]) -> NDArray[np.float64]:
        taken = []
        while not until():
            query = queries[len(taken) % len(queries)][None]
            taken.append(seconds(lambda q=query: changing.index.search(q, K)))  # type: ignore[misc]
        return np.array(taken)

    ends = time.perf_counter() + 2
    before = searched(lambda: time.perf_counter() > ends)
    written: list[Any] = []
    compaction = threading.Thread(target=lambda: written.append(changing.write_base()))
    started = time.perf_counter()
    compaction.start()
    during = searched(lambda: not compaction.is_alive())
    took = time.perf_counter() - started
    changing.switch_to(written[0])
    changing.close()
    return {
        "records": count,
        "upserts_per_second": 1 / float(np.median(single)),
        "upserts_of_100_per_second": 100 / float(np.median(many)),
        "before_p50_ms": 1e3 * float(np.percentile(before, 50)),
        "before_p99_ms": 1e3 * float(np.percentile(before, 99)),
        "during_p50_ms": 1e3 * float(np.percentile(during, 50)),
        "during_p99_ms": 1e3 * float(np.percentile(during, 99)),
        "compaction_s": took,
    }


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))))
