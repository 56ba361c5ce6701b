"""Indexes, beside their peers: ``python benchmarks/index.py``.

Every index has a process of its own and the same vectors, queries and cores. They take turns, round after
round, so that what else the machine does meets them all; figures are medians over the rounds. The vectors
are a mixture fitted to those of real questions (``index_data.py`` says how); what the queries should find
is found exactly.
"""

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss  # type: ignore[import-untyped]
import numpy as np
from encode import OWN_ENVIRONMENTS, QUORA, ROOT, SAMPLE, System, console, environment, processor
from index_data import Mixture, neighbours, read_texts
from numpy.typing import NDArray
from rich.table import Table

import cognate
from cognate.exact import exact_top_k
from cognate.processors import available_cores

HERE = Path(__file__).parent
HELD_BACK = 500
"""Real questions that the mixture is fitted with."""

K = 10
TARGETS = (0.95, 0.99)
FITTED_ON = 30_000
EXACT_CHUNK = 100_000

PARTS = ("curves", "opening", "exact", "filters", "updates")
SYSTEMS = {
    "cognate": "cognate, ivf_fastscan",
    "cognate_hnsw": "cognate, hnsw",
    "bare": "the same FAISS index, bare",
    "plain_faiss": "FAISS HNSW, defaults",
    "hnswlib": "hnswlib",
    "usearch": "usearch",
}
DEFAULT = [name for name in SYSTEMS if name != "cognate_hnsw"]
PEERS = ("plain_faiss", "hnswlib", "usearch")
RERANKS = (4, 8, 16)
"""Candidates that ours score again for each hit."""

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 512)
"""Candidates of a graph, for every graph."""

OWN_ENVIRONMENTS |= {"hnswlib": ["hnswlib>=0.8", "numpy"], "usearch": ["usearch>=2.16", "numpy"]}


def parameters(records: int) -> dict[str, list[Any]]:
    """What each system is searched with, from the quickest on."""
    lists = 4 * records**0.5
    # The fewer records, the larger is the share of the lists that it takes.
    shares = (0.002, 0.003, 0.004, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
    probes = sorted({max(1, round(lists * share)) for share in shares})
    # For each list that is read, the quicker ones are the first.
    ours = [{"nprobe": nprobe, "rerank": rerank} for nprobe in probes for rerank in RERANKS]
    graphs = {name: list(WIDTHS) for name in PEERS}
    return {"cognate": ours, "bare": ours, "cognate_hnsw": [{"ef_search": w} for w in WIDTHS], **graphs}


def make_vectors(options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Write vectors, queries, what they should find, texts and a bundle, where they are not there yet."""
    told = cache / "neighbours.json"
    if told.exists():
        return dict(json.loads(told.read_text()))
    import exporter
    from cognate.encoder import Encoder

    cache.mkdir(parents=True, exist_ok=True)
    bundle = options.folder / "bundle"
    if not bundle.exists():
        exporter.export("minilm", bundle)
    texts = read_texts(QUORA if QUORA.exists() else SAMPLE, options.texts)
    real_path = options.folder / f"real-{len(texts)}.npy"
    if not real_path.exists():
        console.print(f"encoding {len(texts)} real questions …")
        np.save(real_path, Encoder(bundle, bulk=True).encode(texts))
    real = np.load(real_path)
    console.print("fitting the mixture …")
    held_back = min(HELD_BACK, len(real) // 8)
    mixture = Mixture(real[held_back:], real[:held_back])
    vectors, queries = mixture.draw(options.records, 1), mixture.draw(options.queries, 2)
    np.save(cache / "vectors.npy", vectors)
    np.save(cache / "queries.npy", queries)
    (cache / "texts.json").write_text(json.dumps(texts))
    best = np.full((len(queries), K), -np.inf, np.float32)
    for start in range(0, len(vectors), EXACT_CHUNK):
        scores, _ = exact_top_k(queries, vectors[start : start + EXACT_CHUNK], K)
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :K]
    np.save(cache / "best.npy", best)
    described = {
        "texts": len(texts),
        "s": mixture.spread,
        "a": mixture.exponent,
        "real": asdict(mixture.real),
        "fitted": asdict(mixture.fitted),
        "drawn": asdict(neighbours(queries[:200], vectors)),
    }
    told.write_text(json.dumps(described))
    return described


def start_systems(names: Sequence[str], settings: dict[str, Any], folder: Path) -> dict[str, System]:
    """Start the systems, one after another: each builds its index where it is not there yet."""
    systems = {}
    for name in names:
        try:
            python = environment(name, folder)
        except subprocess.CalledProcessError as error:
            why = (error.stderr.decode().strip().splitlines() or [str(error)])[-1]
            console.print(f"left out {SYSTEMS[name]}: it cannot be installed: {why}")
            continue
        console.print(f"{SYSTEMS[name]} …")
        system = System(
            name, SYSTEMS[name], [python, str(HERE / "index_peers.py"), name, json.dumps(settings)]
        )
        try:
            system.start()
        except RuntimeError as error:
            console.print(f"left out {system.label}: {error}")
            continue
        systems[name] = system
    return systems


def measure(systems: dict[str, System], settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Search with all queries at once and every parameter, and one by one where a target is reached."""
    vectors, queries = np.load(settings["vectors"], "r"), np.load(settings["queries"])
    best = np.load(Path(settings["cache"]) / "best.npy")
    rows_path = Path(settings["cache"]) / "rows.npy"
    rates: dict[str, list[list[float]]] = {
        name: [[] for _ in settings["parameters"][name]] for name in systems
    }
    recalls: dict[str, list[float]] = {name: [] for name in systems}

    def recall(rows: NDArray[np.int64]) -> float:
        found = vectors[rows.ravel()].reshape(len(queries), K, -1)
        return float((np.einsum("qd,qkd->qk", queries, found) >= best[:, -1:] - 1e-5).mean())

    for turn in range(rounds):
        # Parameter by parameter, so that those who are compared are measured side by side.
        for number in range(max(len(tried) for tried in rates.values())):
            for name, system in systems.items():
                if number >= len(rates[name]):
                    continue
                answer = system.ask(parameter=number, rows=str(rows_path))
                rates[name][number].append(len(queries) / sum(answer["seconds"]))
                if turn == 0:
                    recalls[name].append(recall(np.load(rows_path)))
    figures: dict[str, Any] = {}
    for name in systems:
        curve = [
            {"parameter": parameter, "recall": recall, "queries_per_second": float(np.median(rate))}
            for parameter, recall, rate in zip(
                settings["parameters"][name], recalls[name], rates[name], strict=True
            )
        ]
        figures[name] = {"curve": curve, "at": {str(target): at(curve, target) for target in TARGETS}}
    chosen: dict[tuple[str, float], int] = {}
    for name, system in systems.items():
        for target in TARGETS:
            for number in range(len(recalls[name])):
                if recalls[name][number] < target:
                    continue
                # One by one, ours may go another way, and find less.
                system.ask(parameter=number, one_by_one=True, rows=str(rows_path))
                if recall(np.load(rows_path)) >= target:
                    chosen[name, target] = number
                    break
    singles: dict[tuple[str, float], list[float]] = {}
    for _ in range(rounds):
        for (name, target), number in chosen.items():
            answer = systems[name].ask(parameter=number, one_by_one=True, rows=str(rows_path))
            singles.setdefault((name, target), []).extend(answer["seconds"])
    for (name, target), seconds in singles.items():
        figures[name].setdefault("one_ms", {})[str(target)] = 1e3 * float(np.median(seconds))
    return figures


def at(curve: Sequence[dict[str, Any]], target: float) -> float | None:
    """Queries a second at a recall: between the two points around it, on a line of log rate over recall.

    None where no point has as much.
    """
    reached = [point for point in curve if point["recall"] >= target]
    if not reached:
        return None
    first = min(reached, key=lambda point: point["recall"])
    rate = max(point["queries_per_second"] for point in reached)
    below = [point for point in curve if point["recall"] < target]
    if below:
        last = max(below, key=lambda point: point["recall"])
        share = (target - last["recall"]) / (first["recall"] - last["recall"])
        logs = np.log([last["queries_per_second"], first["queries_per_second"]])
        rate = max(rate, float(np.exp(logs[0] + share * (logs[1] - logs[0]))))
    return float(rate)


def report_curves(figures: dict[str, Any], systems: dict[str, System], count: int) -> dict[str, Any]:
    """Print the curves and the table, and give the ratios."""
    curves = Table("", "recall@10: queries/s, all at once", title="curves")
    for name, figure in figures.items():
        points = (f"{p['recall']:.3f}: {p['queries_per_second']:,.0f}" for p in figure["curve"])
        curves.add_row(SYSTEMS[name], "   ".join(points))
    console.print(curves)
    table = Table("", "build, s", "bytes/record")
    for target in TARGETS:
        table.add_column(f"at {target}, q/s")
    for target in TARGETS:
        table.add_column(f"at {target}, one, ms")
    for name, figure in figures.items():
        ready = systems[name].ready
        figure |= {"build_s": ready["build_seconds"], "bytes_per_record": ready["bytes"] / count}
        rates = [figure["at"][str(target)] for target in TARGETS]
        ones = [figure.get("one_ms", {}).get(str(target)) for target in TARGETS]
        table.add_row(
            SYSTEMS[name],
            f"{figure['build_s']:.0f}",
            f"{figure['bytes_per_record']:.0f}",
            *("" if rate is None else f"{rate:,.0f}" for rate in rates),
            *("" if one is None else f"{one:.2f}" for one in ones),
        )
    console.print(table)
    ratios: dict[str, Any] = {}
    for target in TARGETS:
        key = str(target)
        best = max((figures[n]["at"][key] or 0 for n in PEERS if n in figures), default=0)
        one = min(
            (figures[n]["one_ms"][key] for n in PEERS if key in figures.get(n, {}).get("one_ms", {})),
            default=0,
        )
        for name in ("cognate", "cognate_hnsw"):
            if name in figures and figures[name]["at"][key] and best:
                ratios[f"{name} at {key}, all at once, x best peer"] = figures[name]["at"][key] / best
                if one:
                    ratios[f"{name} at {key}, one by one, x best peer"] = one / figures[name]["one_ms"][key]
    if "cognate" in figures and "bare" in figures:
        pairs = zip(figures["cognate"]["curve"], figures["bare"]["curve"], strict=True)
        costs = [b["queries_per_second"] / ours["queries_per_second"] - 1 for ours, b in pairs]
        ratios["overhead over bare FAISS, all at once, records fetched"] = float(np.median(costs))
        for key in figures["cognate"].get("one_ms", {}):
            cost = figures["cognate"]["one_ms"][key] / figures["bare"]["one_ms"][key] - 1
            ratios[f"overhead at {key}, one by one"] = cost
    return ratios


def main() -> None:
    """Measure, print the tables, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=FITTED_ON, help="real questions that are encoded")
    parser.add_argument("--recall", type=float, default=0.99, help="that our index is built for")
    parser.add_argument(
        "--build-minutes", type=float, default=12.0, help="a peer that takes longer is left out"
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=DEFAULT)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path.home() / ".cache/cognate/benchmarks/index",
        help="keeps vectors and built indexes, for the next run with the same settings",
    )
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache/cognate/benchmarks")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    # So that being told to end ends the processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{HERE}"

    cache = options.folder / f"{options.records}-{options.queries}-{options.texts}-{options.recall:g}"
    described = make_vectors(options, cache)
    console.print(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.machine()}, {processor()}, "
        f"{available_cores()} cores, cognate {cognate.__version__}, faiss {faiss.__version__}, "
        f"{options.records:,} records, {options.queries} queries, rounds {options.rounds}"
    )
    table = Table("", "nearest", "ten nearest", "tenth: 10th, 50th, 90th percentile", "contrast", "dimension")
    for key, label in (
        ("real", f"{described['texts']:,} real questions"),
        ("fitted", "the mixture of an eighth, as many"),
        ("drawn", f"{options.records:,} of the mixture of all"),
    ):
        row = described[key]
        percentiles = ", ".join(f"{each:.2f}" for each in row["tenth"])
        table.add_row(
            label, f"{row['top_1']:.3f}", f"{row['top_10']:.3f}", percentiles,
            f"{row['contrast']:.2f}", f"{row['dimension']:.0f}",
        )  # fmt: skip
    table.title = "cosines of what queries find"
    console.print(table)
    settings = {
        "cache": str(cache),
        "vectors": str(cache / "vectors.npy"),
        "queries": str(cache / "queries.npy"),
        "texts": str(cache / "texts.json"),
        "bundle": str(options.folder / "bundle"),
        "dimension": int(np.load(cache / "queries.npy").shape[1]),
        "threads": available_cores(),
        "recall": options.recall,
        "minutes": options.build_minutes,
        "parameters": parameters(options.records),
    }
    figures: dict[str, Any] = {"neighbours": described, "records": options.records}
    if "curves" in options.parts:
        systems = start_systems(options.systems, settings, options.environments)
        try:
            figures["systems"] = measure(systems, settings, options.rounds)
            figures["ratios"] = report_curves(figures["systems"], systems, options.records)
        finally:
            for system in systems.values():
                system.stop()
    for part in PARTS[1:]:
        if part in options.parts:
            command = [sys.executable, str(HERE / "index_ours.py"), part, json.dumps(settings)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                console.print(f"{part} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
                continue
            figures[part] = json.loads(done.stdout)
    report_targets(figures)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    console.print(
        f"load average {load:.1f} at the end: much above {available_cores()}, others took cores too"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def report_targets(figures: dict[str, Any]) -> None:
    """Print what was measured of ours, with the targets beside it."""
    table = Table("", "measured", "target")
    for name, ratio in figures.get("ratios", {}).items():
        if name.startswith("overhead"):
            table.add_row(name, f"{100 * ratio:.0f} %", "<= 10 %")
        else:
            table.add_row(name, f"{ratio:.2f}", ">= 1.0")
    if opened := figures.get("opening"):
        table.add_row("opening, every file compared with its sha256", f"{opened['open_s']:.2f} s", "<= 1 s")
        table.add_row("… and the first search", f"{opened['first_search_s']:.2f} s", "")
    if read := figures.get("exact"):
        share = 100 * read["exact_gb_s"] / read["machine_gb_s"]
        table.add_row(
            f"exact search: {read['exact_gb_s']:.1f} GB/s of the machine's {read['machine_gb_s']:.1f}",
            f"{share:.0f} %",
            ">= 70 %",
        )
    for share, row in figures.get("filters", {}).items():
        table.add_row(
            f"filter that leaves {share} %: queries/s, recall@10; first seen after",
            f"{row['queries_per_second']:,.0f}, {row['recall']:.3f}; {row['first_s']:.2f} s",
            "",
        )
    if written := figures.get("updates"):
        rates = f"{written['upserts_per_second']:,.0f}, {written['upserts_of_100_per_second']:,.0f}"
        table.add_row("upserts/s on the disk: one at a time, a hundred at a time", rates, "")
        for when in ("before", "during"):
            table.add_row(
                f"search {when} a compaction of {written['records']:,} records, p50 and p99",
                f"{written[f'{when}_p50_ms']:.2f}, {written[f'{when}_p99_ms']:.2f} ms",
                "",
            )
    console.print(table)


if __name__ == "__main__":
    main()
