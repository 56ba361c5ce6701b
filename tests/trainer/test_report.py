"""``report.html``: one page that says what came of a run, and asks nothing of a network."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import trainer
from cognate.artifact import sha256_file
from cognate.errors import CognateError
from cognate.records import Record
from trainer.evaluations import load_evaluation, load_similarities
from trainer.job import Job
from trainer.report import reproducing_command, rewrite_report
from trainer.similarities import similarities

OPTIONS = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "k": 5, "loss_options": {"margin": 0.3}}
HOSTILE = '<script>alert("x")</script><img src="http://example.org/x">'


class Page(HTMLParser):
    """The tags, their attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def run(data: Path, tiny_model: Path, tmp_path: Path) -> trainer.RunFolder:
    """A finished run over texts that are somebody's, tags and all."""
    for name in ("queries", "index"):
        lines = (data / f"{name}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            record["text"] += HOSTILE
            record["label"] += HOSTILE
        (data / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    trainer.fit(
        str(tiny_model),
        data / "train.jsonl",
        queries=data / "queries.jsonl",
        index=data / "index.jsonl",
        run="a",
        runs_dir=tmp_path / "runs",
        **OPTIONS,
    )
    return trainer.get_run("a", tmp_path / "runs")


def test_the_report_tells_of_the_run_and_asks_nothing_of_a_network(run: trainer.RunFolder) -> None:
    text = (run.folder / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == 3
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    # A name of a namespace is not asked for.
    asked = [value for name, value in page.attributes if name in ("src", "href", "xlink:href") and value]
    assert all(value.startswith("#") for value in asked)
    assert not re.search(r"@import|url\((?!#)", text)
    shown = " ".join(page.texts)
    assert HOSTILE in shown
    before, after = (load_evaluation(run.evaluation_file(epoch)) for epoch in (0, 2))
    for evaluation in (before, after):
        assert f"{evaluation.metrics['average_precision']:.4f}" in shown
    changed = before.per_query["average_precision"] != after.per_query["average_precision"]
    assert page.tags.count("details") == changed.sum() > 0
    assert "30 records of 10 labels" in shown
    assert sha256_file(Path(run.config()["train_data"][0])) in shown


def test_a_report_is_written_again_as_it_was_but_not_over_other_data(
    run: trainer.RunFolder, data: Path
) -> None:
    path = run.folder / "report.html"
    first = path.read_text()
    path.unlink()
    assert rewrite_report(run) == path
    assert path.read_text() == first
    with (data / "index.jsonl").open("a") as file:
        file.write('{"text": "another", "label": "x"}\n')
    with pytest.raises(CognateError, match="content of .*index.jsonl is another; the one from before is"):
        rewrite_report(run)


def test_a_run_without_evaluation_has_a_report_and_one_that_did_not_finish_has_none(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    kept = {"runs_dir": tmp_path / "runs", **OPTIONS}
    trainer.fit(str(tiny_model), data / "train.jsonl", run="bare", **kept)
    page = (tmp_path / "runs/bare/report.html").read_text()
    assert "Nothing was evaluated" in page
    assert Page(page).tags.count("svg") == 1
    with pytest.raises(CognateError, match="nothing to train"):
        trainer.fit(str(tiny_model), data / "train.jsonl", run="failed", **kept, freeze=9)
    with pytest.raises(CognateError, match="has no report: it is failed"):
        rewrite_report(trainer.get_run("failed", tmp_path / "runs"))


def test_a_run_of_before_cosines_were_kept_has_a_report_without_them_and_a_damaged_one_says_what(
    run: trainer.RunFolder,
) -> None:
    for epoch in (0, 2):
        path = run.evaluation_file(epoch)
        with safe_open(path, framework="numpy") as file:
            kept = {name: file.get_tensor(name) for name in set(file.keys()) - {"positives", "negatives"}}
            metadata = file.metadata()
        save_file(kept, path, metadata=metadata)
    page = rewrite_report(run).read_text()
    assert "kept no cosines" in page
    assert Page(page).tags.count("svg") == 2
    run.evaluation_file(2).write_bytes(b"damaged")
    with pytest.raises(CognateError, match="epoch-2.safetensors cannot be read"):
        rewrite_report(run)


def test_similarities_are_of_every_positive_but_the_query_itself(run: trainer.RunFolder) -> None:
    kept = load_similarities(run.evaluation_file(0))
    assert kept.positives.sum() == 5 * 2
    assert 0 < kept.negatives.sum() <= 5 * 64
    records = [Record("a", "x"), Record("b", "x"), Record("c", "y")]
    vectors = np.array([[1, 0], [0.6, 0.8], [-1, 0]], np.float32)
    found = similarities(records[:1], records, vectors[:1], vectors)
    assert found.positives.sum() == 1
    assert np.flatnonzero(found.positives).tolist() == [64]
    assert np.flatnonzero(found.negatives).tolist() == [0]


def test_the_command_gives_the_options_of_another_loss_even_where_they_equal_the_default_ones() -> None:
    options = trainer.TrainingOptions(loss="MarginLoss", loss_options={"margin": 0.2}, miner="none")
    job = Job(
        model="minilm", train_data=["a.jsonl"], queries=None, index=None, out=None, options=options, sha256={}
    )
    words = shlex.split(reproducing_command(job, "again"))
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert given == {"loss": "MarginLoss", "loss_options": '{"margin": 0.2}', "miner": "none"}
