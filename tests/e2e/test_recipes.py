"""The recipes of examples/: options that exist, compared over seeds, and what they are said to reach."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import trainer
from tests.e2e.conftest import run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "examples/recipes").glob("*.toml"))
BANKING77 = ROOT.parent / "shared/data/banking77"
QUORA = ROOT.parent / "shared/data/quora"
VERBS = ("open", "close", "reset", "learn", "buy", "sell")
THINGS = ("door", "printer", "password", "lock")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_of_options_that_exist(recipe: Path) -> None:
    trainer.TrainingOptions(**tomllib.loads(recipe.read_text()))


def test_recipes_are_compared_over_seeds_and_trained_once(tiny_model: Path, tmp_path: Path) -> None:
    records = [
        {"text": text, "label": f"{verb} {thing}"}
        for verb in VERBS
        for thing in THINGS
        for text in (f"how do i {verb} the {thing}", f"{verb} {thing} ?", f"what {verb}s a {thing}")
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "plain.toml").write_text("epochs = 1\nbatch_size = 16\nlearning_rate = 1e-3\n")
    (tmp_path / "averaged.toml").write_text((tmp_path / "plain.toml").read_text() + "average_last = 0.5\n")
    command: list[object] = [sys.executable, "examples/compare_recipes.py"]
    command += [tmp_path / "plain.toml", tmp_path / "averaged.toml", "--seeds", "0", "1"]
    command += ["--model", tiny_model, "--out", tmp_path / "out"]
    for side in ("--train", "--queries", "--index"):
        command += [side, tmp_path / "records.jsonl"]

    def compare() -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    finished = compare()
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("training ") == 4
    assert "averaged, better than plain by" in finished.stdout
    assert finished.stdout.count("average_precision") == 2
    again = compare()
    assert again.stdout == finished.stdout
    assert "training " not in again.stderr
    (tmp_path / "plain.toml").write_text("epochs = 2\n")
    refused = compare()
    assert refused.returncode == 1
    assert "plain-0 was trained with other options" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_recipe_of_few_labels_reaches_what_it_is_said_to(tmp_path: Path) -> None:
    """Some ten minutes on two cores."""
    if not BANKING77.is_dir():
        pytest.skip("needs ../shared/data/banking77")
    files = ("--queries", BANKING77 / "queries.jsonl", "--index", BANKING77 / "train.jsonl")
    recipe = ("--config", ROOT / "examples/recipes/banking77.toml", "--out", tmp_path / "checkpoint")
    trained = run("train", BANKING77 / "train.jsonl", *recipe)
    assert trained.returncode == 0, trained.stderr
    evaluated = run("evaluate", tmp_path / "checkpoint", *files, "--json")
    metrics = json.loads(evaluated.stdout)["metrics"]
    assert metrics["precision_at_k"] >= 0.895
    assert metrics["reciprocal_rank"] >= 0.945


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_recipe_of_many_labels_reaches_what_it_is_said_to(tmp_path: Path) -> None:
    """Some ten minutes on two cores."""
    if not QUORA.is_dir():
        pytest.skip("needs ../shared/data/quora")
    files = ("--queries", QUORA / "queries.jsonl", "--index", QUORA / "index.jsonl")
    recipe = ("--config", ROOT / "examples/recipes/quora.toml", "--out", tmp_path / "checkpoint")
    trained = run("train", QUORA / "train.jsonl", *recipe)
    assert trained.returncode == 0, trained.stderr
    evaluated = run("evaluate", tmp_path / "checkpoint", *files, "--json")
    metrics = json.loads(evaluated.stdout)["metrics"]
    assert metrics["average_precision"] >= 0.9805
    assert metrics["recall_at_k"] >= 0.9975
    assert metrics["hit_at_k"] >= 0.999
