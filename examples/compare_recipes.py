r"""Train a model by several recipes, over several seeds, and compare them: with confidence intervals.

    python examples/compare_recipes.py examples/recipes/quora-plain.toml examples/recipes/quora.toml \
        --train train.jsonl --queries queries.jsonl --index index.jsonl --out compared

A recipe is a file of options, as ``cognate train --config`` takes it. Printed are the nine metrics of the
model before training and of each recipe, the mean with its 95 % interval (Student's t over the seeds), then
how much better each recipe is than the first one, seed by seed. What was trained lies in OUT, and is not
trained again.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import trainer
from cognate.errors import CognateError
from cognate.evaluation import evaluate
from cognate.metrics import METRICS
from cognate.records import Record, read_records

K = 20
CONFIDENCE = 0.95


def main(
    recipes: list[Path], train: Path, queries: Path, index: Path, out: Path, model: str, seeds: list[int]
) -> None:
    """Train what is not there yet, measure, and print the tables."""
    searched = list(read_records(queries)), list(read_records(index))
    before = measured(model, *searched)
    columns = {
        recipe.stem: [trained(recipe, train, out, model, seed, searched) for seed in seeds]
        for recipe in recipes
    }
    print(f"\n{'metric at k = ' + str(K):20}{'before':>10}" + "".join(f"{name:>22}" for name in columns))
    for name in METRICS:
        cells = [interval([run[name] for run in runs]) for runs in columns.values()]
        print(f"{name:20}{before[name]:10.5f}" + "".join(f"{cell:>22}" for cell in cells))
    first, *others = columns
    for other in others:
        print(f"\n{other}, better than {first} by")
        for name in METRICS:
            pairs = zip(columns[first], columns[other], strict=True)
            print(f"{name:20}{interval([mine[name] - its[name] for its, mine in pairs]):>22}")


def trained(
    recipe: Path, train: Path, out: Path, model: str, seed: int, searched: tuple[list[Record], list[Record]]
) -> dict[str, float]:
    """The metrics of a model trained by a recipe, which are kept beside its checkpoint."""
    options: dict[str, Any] = {**tomllib.loads(recipe.read_text(encoding="utf-8")), "seed": seed}
    checkpoint = out / f"{recipe.stem}-{seed}"
    if not checkpoint.exists():
        print(f"training {checkpoint} …", file=sys.stderr)
        trainer.fit(model, train, out=checkpoint, **options)
    asked = trainer.TrainingOptions(**options).model_dump(mode="json")
    if json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))["options"] != asked:
        raise CognateError(f"{checkpoint} was trained with other options than {recipe} has; remove it")
    kept = out / f"{recipe.stem}-{seed}.json"
    if not kept.exists():
        kept.write_text(json.dumps(measured(str(checkpoint), *searched), indent=2), encoding="utf-8")
    metrics: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return metrics


def measured(model: str, queries: list[Record], index: list[Record]) -> dict[str, float]:
    """The nine metrics of a model."""
    return evaluate(trainer.load_encoder(model), queries, index, k=K).metrics


def interval(values: list[float]) -> str:
    """The mean, and how far its confidence interval goes to both sides; nan for one value."""
    half = (
        stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
    )
    return f"{np.mean(values):.5f} ± {half:.5f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipes", type=Path, nargs="+", metavar="RECIPE.toml", help="the first is compared with"
    )
    parser.add_argument("--train", type=Path, required=True, help="records to train on")
    parser.add_argument("--queries", type=Path, required=True, help="records to measure with")
    parser.add_argument("--index", type=Path, required=True, help="records that they are searched in")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the checkpoints")
    parser.add_argument("--model", default="minilm", help="minilm, a model folder, or a hub id")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    try:
        main(**vars(parser.parse_args()))
    except CognateError as error:
        sys.exit(f"error: {error}")
