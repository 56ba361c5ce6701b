"""Hard negatives: the labels nearest to a label, but those so near that they may be the same."""

from pathlib import Path

import numpy as np
import pytest

import trainer
from cognate.errors import CognateError
from tests.trainer.test_resuming import CutError, at, check_same, fit, get, resume
from trainer.hard_negatives import NEIGHBOURS, confusable_labels


def vectors_at(*degrees: float) -> np.ndarray:
    angles = np.radians(np.repeat(degrees, 2) + np.tile([-1.0, 1.0], len(degrees)))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_nearest_labels_come_first_and_what_is_as_near_as_a_positive_is_left_alone() -> None:
    # The second label is the first one, though nobody said so; then two others, and one opposite.
    vectors = vectors_at(0, 2, 30, 60, 180)
    labels = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    found = confusable_labels(vectors, labels, margin=0.05)
    assert found[0].tolist() == [2, 3, 4, -1]
    assert found[1].tolist() == [2, 3, 4, -1]
    assert found[2, 0] in (0, 1, 3)
    unguarded = confusable_labels(vectors, labels, margin=0.0)
    assert unguarded[0, 0] == 1
    assert found.shape == (5, NEIGHBOURS)


def test_records_that_all_look_alike_have_no_hard_negatives() -> None:
    vectors = np.tile(np.array([[1, 0]], np.float32), (6, 1))
    assert (confusable_labels(vectors, [0, 0, 1, 1, 2, 2], margin=0.05) == -1).all()


def test_mining_is_told_in_the_log_and_changes_the_next_epoch_only(data: Path, tiny_model: Path) -> None:
    plain = fit(data, tiny_model, "plain", epochs=2)
    mined = fit(data, tiny_model, "mined", epochs=2, mine_negatives=True)
    assert "labels have some" in get(data, "mined").logs()
    assert plain.evaluations[1].metrics == mined.evaluations[1].metrics
    losses = [
        [line["loss"] for line in get(data, name).metrics() if line["kind"] == "step"]
        for name in ("plain", "mined")
    ]
    half = len(losses[0]) // 2
    assert losses[0][:half] == losses[1][:half]
    assert losses[0][half:] != losses[1][half:]


def test_a_run_that_is_cut_goes_on_with_the_negatives_that_it_had(data: Path, tiny_model: Path) -> None:
    options = {"mine_negatives": True, "checkpoint_steps": 1}
    fit(data, tiny_model, "whole", **options)
    with pytest.raises(CutError):
        fit(data, tiny_model, "cut", on_progress=at(5), **options)
    resume(data, "cut")
    check_same(data, "whole", "cut")


def test_data_without_labels_has_nothing_to_mine(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "passage": "b"}\n{"query": "c", "passage": "d"}\n')
    with pytest.raises(CognateError, match="mine_negatives needs labels, and the data has pairs"):
        trainer.fit(str(tiny_model), tmp_path / "pairs.jsonl", out=tmp_path / "out", mine_negatives=True)
