"""What an index of a million, a hundred million or ten billion records takes, from measured rates.

    python benchmarks/scale.py                          # the tables of docs/scale.md
    python benchmarks/scale.py --texts-per-second 111   # texts of 40 tokens rather than questions
    python benchmarks/scale.py --measure                # the rates of this machine but for the encoder's

Arithmetic over rates, no simulation of a cluster: each rate says which command measures it. The encoder's is
that of ``benchmarks/encode.py``.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

RECORDS = (1_000_000, 100_000_000, 10_000_000_000)
HOUR = 3600
FLAT_SHARE = 0.8
"""Of a machine's memory, what an index may take."""


def options() -> argparse.ArgumentParser:
    """The inputs, with what they were measured or assumed to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    number = {"type": float, "metavar": "N"}
    parser.add_argument("--texts-per-second", **number, default=528, help="of --encode-cores: encode.py")
    parser.add_argument("--encode-cores", **number, default=2, help="that those were measured on")
    parser.add_argument("--gflops", **number, default=209, help="of --encode-cores, sgemm: encode.py")
    parser.add_argument("--job-records-per-second", **number, default=25_000, help="one job: --measure")
    parser.add_argument("--graph-records-per-second", **number, default=2_300, help="a core, hnsw: --measure")
    parser.add_argument("--record-bytes", **number, default=180, help="of the files of records: --measure")
    parser.add_argument("--dimension", type=int, default=384, help="of the vectors")
    parser.add_argument("--machine-cores", **number, default=16, help="of one machine (assumed)")
    parser.add_argument("--machine-memory-gb", **number, default=64, help="of one machine (assumed)")
    parser.add_argument("--machine-price", **number, default=0.80, help="USD an hour of it (assumed)")
    parser.add_argument("--disk-price", **number, default=0.08, help="USD a GB and month (assumed)")
    parser.add_argument("--hours", **number, default=24, help="in which a cluster shall have encoded all")
    parser.add_argument("--measure", action="store_true", help="measure this machine's rates instead")
    return parser


def tables(given: argparse.Namespace) -> str:
    """The page's tables, in Markdown."""
    vector = 4 * given.dimension
    code = given.dimension // 4 + 8
    graph = vector + 272
    encoder = given.texts_per_second / given.encode_cores * given.machine_cores
    gflops = given.gflops / given.encode_cores * given.machine_cores
    memory = FLAT_SHARE * given.machine_memory_gb
    month = 730 * given.machine_price
    sizes, times = [], []
    for count in RECORDS:
        gb = count / 1e9
        disk = gb * (vector + given.record_bytes)
        graphs, codes = (math.ceil(gb * each / memory) for each in (graph, code))
        sizes.append(
            [
                f"{count:,}",
                f"{gb * vector:,.1f}",
                f"{gb * given.record_bytes:,.1f}",
                f"{gb * graph:,.1f}",
                f"{gb * code:,.1f}",
                f"{graphs:,}",
                f"{codes:,}",
                f"{graphs * month + disk * given.disk_price:,.0f}",
                f"{codes * month + disk * given.disk_price:,.0f}",
            ]
        )
        hours = count / encoder / HOUR
        machines = max(1, math.ceil(hours / given.hours))
        jobs = math.ceil(min(machines * encoder, count / given.hours / HOUR) / given.job_records_per_second)
        lists = 4 * math.sqrt(count / jobs)
        times.append(
            [
                f"{count:,}",
                f"{hours:,.1f}",
                f"{hours * given.machine_price:,.2f}",
                f"{machines:,}",
                f"{jobs:,}",
                f"{count / jobs / min(machines * encoder / jobs, given.job_records_per_second) / HOUR:,.1f}",
                f"{count / given.graph_records_per_second / given.machine_cores / HOUR:,.1f}",
                f"{count * 2 * given.dimension * lists / (gflops * 1e9) / HOUR:,.1f}",
            ]
        )
    return "\n\n".join(
        [
            table(
                [
                    "records",
                    "vectors, GB",
                    "records, GB",
                    "memory hnsw, GB",
                    "memory ivf_pq, GB",
                    "machines hnsw",
                    "machines ivf_pq",
                    "USD a month hnsw",
                    "USD a month ivf_pq",
                ],
                sizes,
            ),
            table(
                [
                    "records",
                    "encode or re-embed, machine-hours",
                    "USD",
                    f"machines for {given.hours:g} h",
                    "jobs at once",
                    "then hours",
                    "build hnsw, machine-hours",
                    "fill ivf_pq, machine-hours",
                ],
                times,
            ),
        ]
    )


def table(names: list[str], rows: list[list[str]]) -> str:
    """A table of numbers in Markdown."""
    lines = [names, ["---:"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure() -> None:
    """Print the rates that no other benchmark gives: a job without its encoder, and building a graph."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import faiss
    import numpy as np

    from cognate.index import LOOKUP, IndexWriter
    from cognate.index_kinds import build_approximate
    from cognate.record_file import OFFSETS, RECORDS
    from indexer import Tally, batch_job, open_source
    from indexer.work_folder import WorkFolder

    dimension, count = 384, 400_000

    class NoEncoder:
        """Vectors at once: what is left is the job's own work."""

        device, at_once = "none", 1

        def submit(self, texts: list[str], on_progress: object) -> "Future[object]":
            done: Future[object] = Future()
            done.set_result(np.ones((len(texts), dimension), np.float32))
            return done

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (folder / "records.jsonl").open("w") as file:
            for n in range(count):
                text = f"How do I restart Gatepost number {n} while it rains outside?"
                file.write(json.dumps({"id": f"q{n}", "text": text, "label": "gatepost"}) + "\n")
        source = open_source(folder / "records.jsonl")
        (folder / "index").mkdir()
        started = time.monotonic()
        with WorkFolder(folder / "work", dimension, {}) as work:
            batch_job._Job(NoEncoder(), work, source, None, False, Tally(), None).run(source.read(None))
            with IndexWriter(folder / "index", dimension) as writer:
                for records, vectors in work.chunks(batch_job.CHUNK):
                    writer.add(records, vectors)
        print(f"--job-records-per-second {count / (time.monotonic() - started):.0f}")
        size = sum((folder / "index" / name).stat().st_size for name in (RECORDS, OFFSETS, LOOKUP))
        print(f"--record-bytes {size / count:.0f}")
    random = np.random.default_rng(0)
    made = random.standard_normal((1000, dimension), np.float32)[random.integers(0, 1000, 20_000)]
    made += random.standard_normal(made.shape, np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    # Of one core, which other work does not take: the time of this process.
    faiss.omp_set_num_threads(1)
    started = time.process_time()
    build_approximate("HNSW32,Flat", made)
    print(f"--graph-records-per-second {len(made) / (time.process_time() - started):.0f}")


if __name__ == "__main__":
    arguments = options().parse_args()
    if arguments.measure:
        measure()
    else:
        print(tables(arguments))
