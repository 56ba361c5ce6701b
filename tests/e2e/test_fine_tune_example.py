"""The reference recipe runs from a file of pairs to the hits of a search."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("open", "close", "reset", "learn", "buy", "sell")
THINGS = ("door", "printer", "password", "lock")


def test_the_recipe_goes_from_pairs_to_hits(tiny_model: Path, tmp_path: Path) -> None:
    lines = ["question1\tquestion2\tis_duplicate"]
    for verb in VERBS:
        for thing in THINGS:
            texts = [f"how do i {verb} the {thing}", f"{verb} {thing} ?", f"what {verb}s a {thing}"]
            lines += [f"{texts[0]}\t{texts[1]}\t1", f"{texts[0]}\t{texts[2]}\t1", f"{texts[1]}\tis {verb}\t0"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    small = ("--epochs", "1", "--batch-size", "16")
    command = [sys.executable, "examples/fine_tune.py", tmp_path / "pairs.tsv", "--out", tmp_path / "out"]
    command += ["--model", tiny_model, *small]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    queries = [json.loads(line) for line in (tmp_path / "out/data/queries.jsonl").read_text().splitlines()]
    for shown in ("average_precision", "reciprocal_rank", queries[0]["text"]):
        assert shown in finished.stdout
    assert (tmp_path / "out/runs/recipe/report.html").is_file()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.count("error: ") == 1
    assert "Traceback" not in again.stderr
