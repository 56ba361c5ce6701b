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
SHARED = ROOT.parent / "shared/data"
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
@pytest.mark.parametrize(
    ("data", "index", "least"),
    [
        ("banking77", "train.jsonl", {"precision_at_k": 0.895, "reciprocal_rank": 0.945}),
        (
            "quora",
            "index.jsonl",
            {"average_precision": 0.9805, "recall_at_k": 0.9975, "hit_at_k": 0.999},
        ),
    ],
)
def test_a_recipe_reaches_what_it_is_said_to(
    data: str, index: str, least: dict[str, float], tmp_path: Path
) -> None:
    """Some ten minutes each, on two cores."""
    folder = SHARED / data
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/data/{data}")
    files = ("--queries", folder / "queries.jsonl", "--index", folder / index)
    recipe = ("--config", ROOT / f"examples/recipes/{data}.toml", "--out", tmp_path / "checkpoint")
    trained = run("train", folder / "train.jsonl", *recipe)
    assert trained.returncode == 0, trained.stderr
    evaluated = run("evaluate", tmp_path / "checkpoint", *files, "--json")
    metrics = json.loads(evaluated.stdout)["metrics"]
    for name, bound in least.items():
        assert metrics[name] >= bound, name
