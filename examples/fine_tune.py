"""The reference recipe: from a file of pairs to a tuned model, exported, indexed and searched.

BERT-base, from the hub:   python examples/fine_tune.py quora_duplicate_questions.tsv --out tuned
MiniLM, with no network:   the same, and --model minilm

CUDA is used where there is one, by the same lines. What is made lies in the folder of --out: the data, the
run with its checkpoint and report.html, the bundle, and the index.
"""

import argparse
import sys
from pathlib import Path

import exporter
import indexer
import trainer
from cognate import Encoder, Index
from cognate.errors import CognateError
from cognate.evaluation import Evaluation
from cognate.metrics import METRICS
from cognate.pairs import write_dataset
from cognate.records import read_records

K = 20
RUN = "recipe"
SEARCHES = 3


def main(pairs: Path, out: Path, model: str, epochs: int, batch_size: int) -> None:
    """Make all of it, and print the metrics before and after, and what a few searches find."""
    data = write_dataset(pairs, out / "data").counts
    print(f"{data.train:,} records to train on, {data.queries:,} queries, {data.index:,} records to search")
    run = trainer.fit(
        model,
        out / "data/train.jsonl",
        queries=out / "data/queries.jsonl",
        index=out / "data/index.jsonl",
        run=RUN,
        runs_dir=out / "runs",
        loss="TripletMarginLoss",
        miner="TripletMarginMiner",
        optimizer="adam",
        learning_rate=1e-5,
        scheduler="constant",
        epochs=epochs,
        batch_size=batch_size,
        k=K,
        on_progress=tell_progress,
        on_evaluation=tell_evaluation,
    )
    print_table(run.evaluations[0], run.evaluations[-1])
    print(f"{out / 'runs' / RUN / 'report.html'} tells more")

    exporter.export(run.checkpoint, out / "bundle")
    indexer.build(out / "data/index.jsonl", out / "bundle", out / "index")

    encoder = Encoder(out / "bundle")
    index = Index(out / "index", fingerprint=encoder.fingerprint)
    texts = [record.text for record in read_records(out / "data/queries.jsonl")][:SEARCHES]
    for text, hits in zip(texts, index.search(encoder.encode(texts, "query"), 3), strict=True):
        print(f"\n{text}")
        for hit in hits:
            print(f"  {hit.score:.3f}  {hit.text}")


def tell_progress(progress: trainer.Progress) -> None:
    """Say how far training is, a hundred times at most."""
    if progress.step % max(1, progress.steps // 100) == 0:
        print(f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}", file=sys.stderr)


def tell_evaluation(epoch: int, evaluation: Evaluation) -> None:
    """Say how good the model is after an epoch."""
    precision = evaluation.metrics["average_precision"]
    print(f"after epoch {epoch}: average_precision {precision:.4f}", file=sys.stderr)


def print_table(before: Evaluation, after: Evaluation) -> None:
    """Print the nine metrics, before and after."""
    print(f"\n{'metric at k = ' + str(K):20}{'before':>10}{'after':>10}{'gain':>10}")
    for name in METRICS:
        first, last = before.metrics[name], after.metrics[name]
        print(f"{name:20}{first:10.4f}{last:10.4f}{last - first:+10.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, help="TSV or CSV: question1, question2, is_duplicate")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--model", default="bert-base-uncased", help="minilm, a model folder, or a hub id")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    try:
        main(**vars(parser.parse_args()))
    except CognateError as error:
        sys.exit(f"error: {error}")
