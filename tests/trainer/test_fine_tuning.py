"""``trainer.fit``: a checkpoint that is whole and repeatable, or one sentence and nothing."""

import json
from pathlib import Path

import numpy as np
import pydantic
import pytest
from sentence_transformers import SentenceTransformer

import trainer
from cognate.artifact import sha256_file
from cognate.checkpoint import CheckpointManifest
from cognate.errors import ArtifactError, CognateError, ModelError, RecordError
from cognate.evaluation import evaluate, read_queries_and_index
from cognate.metrics import METRICS

OPTIONS = {"epochs": 2, "batch_size": 16, "records_per_label": 4, "learning_rate": 1e-3, "k": 5}


def fit(data: Path, model: Path, out: Path, **options: object) -> trainer.Run:
    return trainer.fit(
        str(model),
        data / "train.jsonl",
        queries=data / "queries.jsonl",
        index=data / "index.jsonl",
        out=out,
        **{**OPTIONS, **options},
    )


def test_a_run_leaves_a_checkpoint_that_sentence_transformers_opens(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[trainer.Progress] = []
    run = fit(data, tiny_model, tmp_path / "checkpoint", on_progress=steps.append)
    assert capsys.readouterr().out == ""
    assert len(run.evaluations) == 1 + OPTIONS["epochs"]
    assert [progress.step for progress in steps] == list(range(1, steps[-1].steps + 1))

    manifest = CheckpointManifest.read(run.checkpoint)
    assert manifest.model == str(tiny_model)
    training = json.loads((run.checkpoint / "training.json").read_text())
    assert training["data"]["train"]["sha256"] == sha256_file(data / "train.jsonl")
    assert training["options"]["learning_rate"] == 1e-3
    assert set(training["evaluations"][2]["metrics"]) == set(METRICS)
    assert len(training["losses"]) == len(steps)

    texts = ["how do i open the door", "printer"]
    tuned = SentenceTransformer(str(run.checkpoint), device="cpu").encode(texts)
    assert np.abs(tuned - SentenceTransformer(str(tiny_model), device="cpu").encode(texts)).max() > 1e-3
    assert trainer.load_encoder(str(run.checkpoint)).encode(texts) == pytest.approx(tuned, abs=1e-6)


def test_the_same_seed_gives_the_same_metrics_and_another_does_not(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    first, again, other = (
        fit(data, tiny_model, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.evaluations[-1].metrics == again.evaluations[-1].metrics
    weights = [sha256_file(run.checkpoint / "model.safetensors") for run in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_training_goes_on_from_a_checkpoint_and_without_evaluation(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    first = fit(data, tiny_model, tmp_path / "first")
    second = trainer.fit(
        str(first.checkpoint), data / "train.jsonl", out=tmp_path / "second", optimizer="adam", **OPTIONS
    )
    assert second.evaluations == []
    assert (second.checkpoint / "model.safetensors").is_file()


def test_records_that_are_alone_in_their_label_are_left_out_and_counted(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with (data / "train.jsonl").open("a") as file:
        file.write('{"text": "nothing like it", "label": "alone"}\n')
    run = fit(data, tiny_model, tmp_path / "checkpoint")
    training = json.loads((run.checkpoint / "training.json").read_text())
    assert training["records_dropped_as_alone_in_their_label"] == 1
    assert training["labels"] == 10


def test_what_ends_training_early_leaves_nothing(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    def interrupt(progress: trainer.Progress) -> None:
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        fit(data, tiny_model, tmp_path / "checkpoint", on_progress=interrupt)
    assert set(tmp_path.iterdir()) == before


def test_a_destination_that_exists_is_refused_before_any_work(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(ArtifactError, match="exists"):
            fit(data, tiny_model, tmp_path / "checkpoint", force=force)
    assert (tmp_path / "checkpoint/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("", CognateError, "has no records"),
        ('{"text": "a"}\n', RecordError, r"train.jsonl:1: there is no label"),
        ('{"text": 5, "label": "x"}\n', RecordError, r"train.jsonl:1: text must be a string"),
        (
            '{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n',
            CognateError,
            "1 labels.*at least two",
        ),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', CognateError, "2 labels, 0 of them"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(
    lines: str, error: type[Exception], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text(lines)
    with pytest.raises(error, match=message):
        trainer.fit(str(tiny_model), tmp_path / "train.jsonl", out=tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_queries_without_index_are_refused(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CognateError, match="needs both queries and index"):
        trainer.fit(
            str(tiny_model), data / "train.jsonl", queries=data / "queries.jsonl", out=tmp_path / "checkpoint"
        )


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"batch_size": 6, "records_per_label": 4}, {"scheduler": "step"}, {"lr": 1}]
)
def test_options_out_of_range_are_refused(options: dict[str, object], data: Path, tmp_path: Path) -> None:
    with pytest.raises(pydantic.ValidationError):
        trainer.fit("minilm", data / "train.jsonl", out=tmp_path / "checkpoint", **options)


def test_an_unknown_model_is_told_with_those_that_exist(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model named 'no-such-model'.*minilm.*network"):
        fit(data, Path("no-such-model"), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_the_share_of_the_weights_before_training_is_in_the_checkpoint_and_its_metrics(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = fit(data, tiny_model, tmp_path / "kept", pretrained_weight=1.0)
    texts = ["how do i open the door", "printer"]
    kept = SentenceTransformer(str(run.checkpoint), device="cpu").encode(texts)
    assert kept == pytest.approx(SentenceTransformer(str(tiny_model), device="cpu").encode(texts), abs=1e-6)
    assert run.evaluations[-1].metrics == pytest.approx(run.evaluations[0].metrics)
    mixed = fit(data, tiny_model, tmp_path / "mixed", pretrained_weight=0.5)
    evaluated = trainer.load_encoder(str(mixed.checkpoint))
    again = evaluate(
        evaluated,
        *read_queries_and_index(data / "queries.jsonl", data / "index.jsonl"),
        k=OPTIONS["k"],
    )
    assert again.metrics == pytest.approx(mixed.evaluations[-1].metrics)
