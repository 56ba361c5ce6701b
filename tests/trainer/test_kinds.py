"""Pairs, pairs with a score and triplets are told by their columns, and trained on."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

import trainer
from cognate.errors import CognateError, RecordError
from trainer.batches import distinct_batches
from trainer.kinds import detect, read_tuples

OPTIONS = {"epochs": 1, "batch_size": 4, "records_per_label": 2, "learning_rate": 1e-3, "k": 5}
THINGS = ["password", "door", "printer", "key", "lock", "book"]
ROWS = {
    "pairs": [{"query": f"how do i open the {t}", "passage": f"open {t} ?"} for t in THINGS],
    "scored pairs": [
        {"sentence1": f"open the {t}", "sentence2": f"{t} open", "score": n / 5} for n, t in enumerate(THINGS)
    ],
    "triplets": [{"anchor": f"open {t}", "positive": f"{t} open", "negative": f"the {t}"} for t in THINGS],
}


def write(rows: list[dict[str, object]], path: Path) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        path.write_text(
            "\n".join(mark.join(map(str, line)) for line in [rows[0], *(r.values() for r in rows)])
        )
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("kind", ROWS)
def test_the_columns_say_the_kind_in_every_format(kind: str, ending: str, tmp_path: Path) -> None:
    path = write(ROWS[kind], tmp_path / f"data.{ending}")
    assert detect(path).kind == kind
    tuples = read_tuples([str(path)])
    assert [list(texts) for texts in tuples.texts] == [
        [value for value in row.values() if isinstance(value, str)] for row in ROWS[kind]
    ]
    assert tuples.scores == [row["score"] for row in ROWS[kind] if "score" in row]


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("pairs", None),
        ("pairs", "CachedMultipleNegativesRankingLoss"),
        ("scored pairs", None),
        ("scored pairs", "AnglELoss"),
        ("triplets", None),
        ("triplets", "TripletLoss"),
    ],
)
def test_each_kind_is_trained_on_with_a_loss_that_fits(
    kind: str, loss: str | None, data: Path, tiny_model: Path
) -> None:
    path = write(ROWS[kind], data / "rows.jsonl")
    chosen = {} if loss is None else {"loss": loss}
    searched = {"queries": data / "queries.jsonl", "index": data / "index.jsonl"}
    prompts = {"query": "q: ", "passage": "p: "}
    run = trainer.fit(
        str(tiny_model), path, out=data / "out", prompts=prompts, **searched, **OPTIONS, **chosen
    )
    training = json.loads((run.checkpoint / "training.json").read_text())
    assert (training["kind"], training["records"]) == (kind, 6)
    assert training["options"]["loss"] == loss or loss is None
    vectors = SentenceTransformer(str(run.checkpoint), device="cpu").encode(["open the door"])
    assert (
        np.abs(vectors - SentenceTransformer(str(tiny_model), device="cpu").encode(["open the door"])).max()
        > 0
    )
    assert len(run.evaluations) == 2


def test_a_run_on_pairs_goes_on_to_the_same(data: Path, tiny_model: Path) -> None:
    path = write(ROWS["pairs"], data / "rows.jsonl")
    options = {
        **OPTIONS,
        "epochs": 3,
        "checkpoint_steps": 1,
        "matryoshka": [8, 32],
        "runs_dir": data / "runs",
    }
    trainer.fit(str(tiny_model), path, run="whole", **options)

    def cut(progress: trainer.Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(str(tiny_model), path, run="cut", on_progress=cut, **options)
    trainer.resume("cut", runs_dir=data / "runs")
    runs = [trainer.get_run(name, data / "runs") for name in ("whole", "cut")]
    assert runs[0].metrics() == runs[1].metrics()
    weights = [(run.checkpoint / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (
            ROWS["pairs"],
            {"loss": "CoSENTLoss"},
            CognateError,
            "no loss 'CoSENTLoss' for pairs; .*Cached",
        ),
        (ROWS["pairs"], {"loss_options": {"scael": 1}}, CognateError, "has no option scael; those .*scale"),
        (ROWS["pairs"], {"loss_options": {"scale": "x"}}, CognateError, "scale must be a number, not 'x'"),
        (ROWS["pairs"], {"val_split": 0.1}, CognateError, "val_split needs labels, and the data has pairs"),
        (ROWS["pairs"], {"miner": "BatchHardMiner"}, CognateError, "a miner needs labels"),
        (ROWS["pairs"][:1], {}, CognateError, "has 1 rows"),
        ([row | {"label": 0} for row in ROWS["pairs"]], {}, CognateError, "has 0 rows that are marked 1"),
        (
            [row | {"label": n} for n, row in enumerate(ROWS["pairs"])],
            {},
            RecordError,
            "rows.jsonl:3: label must be 0 or 1, as in the first row, not 2",
        ),
        ([{"query": "a", "passage": " "}], {}, RecordError, "rows.jsonl:1: the passage is empty"),
        ([{"query": "a", "passage": 1}], {}, RecordError, "rows.jsonl:1: passage must be a string"),
        ([{"query": "a", "passage": "b", "score": "x"}], {}, RecordError, "score must be a number, not 'x'"),
        ([{"query": "a", "passage": "b", "score": 4}], {}, RecordError, "score must be between -1 and 1"),
    ],
)
def test_tuples_that_will_not_do_are_one_line(
    rows: list[dict[str, object]],
    options: dict[str, object],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    tiny_model: Path,
) -> None:
    path = write(rows, tmp_path / "rows.jsonl")
    with pytest.raises(error, match=message):
        trainer.fit(str(tiny_model), path, out=tmp_path / "out", **options)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("first", "second", "mark"), [("question1", "question2", "is_duplicate"), ("query", "passage", "label")]
)
def test_of_pairs_that_are_marked_0_and_1_those_of_1_are_positives(
    first: str, second: str, mark: str, ending: str, tmp_path: Path
) -> None:
    rows = [
        {"id": n, first: f"open {t}", second: f"{t} open", mark: n % 2, "qid1": 2 * n}
        for n, t in enumerate(THINGS)
    ]
    tuples = read_tuples([str(write(rows, tmp_path / f"rows.{ending}"))])
    assert tuples.kind == "pairs"
    assert tuples.texts == [(f"open {t}", f"{t} open") for t in THINGS[1::2]]
    assert tuples.apart == 3


def test_pairs_that_are_left_out_are_told_and_a_label_of_another_kind_marks_nothing(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marked = [row | {"label": n % 2} for n, row in enumerate(ROWS["pairs"])]
    path = write(marked, tmp_path / "marked.jsonl")
    trainer.fit(str(tiny_model), path, out=tmp_path / "out", **OPTIONS)
    assert "3 pairs are marked 0, and left out" in caplog.text
    topics = write([row | {"label": "doors"} for row in ROWS["pairs"]], tmp_path / "topics.jsonl")
    assert len(read_tuples([str(topics)]).texts) == len(ROWS["pairs"])


def test_files_of_two_kinds_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    paths = [write(ROWS[kind], tmp_path / f"{kind}.jsonl") for kind in ("pairs", "triplets")]
    with pytest.raises(CognateError, match="has pairs and .* has triplets; train on one kind"):
        trainer.fit(str(tiny_model), paths, out=tmp_path / "out")


def test_scored_pairs_of_one_query_share_batches_and_other_pairs_of_one_cannot(
    tmp_path: Path, tiny_model: Path
) -> None:
    rows = [{"query": "open", "passage": f"{t} open", "score": n / 5} for n, t in enumerate(THINGS)]
    steps: list[trainer.Progress] = []
    path = write(rows, tmp_path / "scored.jsonl")
    trainer.fit(str(tiny_model), path, out=tmp_path / "out", on_progress=steps.append, **OPTIONS)
    assert len(steps) == 2
    pairs = [{"query": row["query"], "passage": row["passage"]} for row in rows]
    path = write(pairs, tmp_path / "pairs.jsonl")
    with pytest.raises(CognateError, match="no batch to train on: all 6 pairs share a text"):
        trainer.fit(str(tiny_model), path, out=tmp_path / "none", **OPTIONS)


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), min_size=2), st.integers(2, 5)
)
def test_no_text_occurs_twice_in_a_batch_of_pairs(rows: list[tuple[str, ...]], size: int) -> None:
    batches = list(distinct_batches(rows, batch_size=size, rng=np.random.default_rng(0)))
    positions = [position for batch in batches for position in batch]
    assert len(set(positions)) == len(positions)
    for batch in batches:
        assert 2 <= len(batch) <= size
        texts = [text for position in batch for text in rows[position]]
        assert len(set(texts)) == len(texts)
